"""Logits that are cosines to class means, which are fitted after each experience."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.functional.precision import in_double
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.additive import AdditiveHead
from avalanche_peftcl.models.heads.drift import Drift
from avalanche_peftcl.models.heads.head import check_removed
from avalanche_peftcl.models.heads.rows import MASK_VALUE
from avalanche_peftcl.models.heads.running_means import RunningClassMeans
from avalanche_peftcl.registry.ranges import FeatureWidth, Weight


@exportable
class PrototypeHead(AdditiveHead):
    r"""Logits from class means, each section of the feature with its own weight.

    .. math:: \sum_s \mu_s \cos(z_s, \bar z_{r,s})

    Args:
        in_features: ``D``, a multiple of the number of sections.
        section_weights: :math:`\mu_s`, one a section of equal width.

    Raises:
        ConfigError: If the sections are not of one width.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712.
        Differs: a class met again moves its mean on over all its images instead of losing it; in
        training a class has a mean already, see :meth:`begin`.

    Attributes:
        running: Means of the classes in training, ``None`` between experiences.

    Example:
        >>> head = PrototypeHead(2)
        >>> head.grow(1)
        >>> head.add([0], torch.tensor([[0.0, 4.0]]), torch.tensor([2]))
        >>> head(torch.tensor([[3.0, 4.0]]))
        tensor([[0.8000]])
    """

    follows = True
    row_tensors = ("prototypes", "counts")
    score_name = "similarity"
    prototypes: Tensor
    counts: Tensor
    section_weights: Tensor

    def __init__(self, in_features: int, *, section_weights: Sequence[float] = (1.0,)) -> None:
        super().__init__(in_features)
        if not section_weights or in_features % len(section_weights):
            raise ConfigError(
                f"features of width {in_features} are no {len(section_weights)} sections of one "
                "width; give as many section_weights as sections stand side by side"
            )
        self.register_buffer("prototypes", torch.zeros(0, in_features))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))
        self.register_buffer("section_weights", torch.tensor(section_weights), persistent=False)
        self.running: RunningClassMeans | None = None
        self._sums: tuple[Tensor, Tensor] | None = None

    def grow(self, n_rows: int) -> None:
        """Lengthen to ``n_rows`` for another experience."""
        super().grow(n_rows)
        self.running = None

    def begin(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """Start an experience with ``counts`` images of the classes of ``rows``.

        Until :meth:`settle` or :meth:`add` ends it, running means of what training sees stand for
        those that will be observed: logits meanwhile are on the scale of those after it.
        """
        self.running = RunningClassMeans(
            rows,
            counts,
            n_rows=len(self.counts),
            dim=self.in_features,
            device=self.counts.device,
        )
        self._sums = None

    def follow(self, features: Tensor, rows: Tensor) -> None:
        """Take a minibatch in training into the running means."""
        if self.running is not None:
            self.running.update(features, rows)

    def _take(self, features: Tensor, rows: Tensor, *, sign: int) -> None:
        if self._sums is None:
            self._sums = in_double(torch.zeros_like(self.prototypes)), torch.zeros_like(self.counts)
        sums, counts = self._sums
        sums.index_add_(0, rows.to(sums.device), in_double(features), alpha=sign)
        counts += sign * torch.bincount(rows, minlength=len(counts))

    def settle(self) -> None:
        """Add what was observed to the class means, and take out what was removed.

        Raises:
            ConfigError: If more images of a class were removed than it has.
            NotFiniteError: If a mean is not a finite number. In both cases the head stays as it
                was.
        """
        observed, self._sums = self._sums, None
        if observed is None:
            self.running = None
            return
        sums, counts = observed
        check_finite([sums], "the class means")
        check_removed(self.counts + counts)
        seen = counts.nonzero()[:, 0].tolist()
        self.add(seen, sums[seen], counts[seen])

    def passing_state(self) -> dict[str, Tensor]:
        """Return the running means of an experience in training."""
        if self.running is None:
            return {}
        return {"seen": self.running.seen.clone(), "means": self.running.means.clone()}

    def load_passing_state(self, state: dict[str, Tensor]) -> None:
        """Take over what :meth:`passing_state` returned."""
        if self.running is not None and state:
            self.running.seen.copy_(state["seen"])
            self.running.means.copy_(state["means"])

    @torch.no_grad()
    def move(self, drift: Drift) -> None:
        """Move the class means; exact where the drift is linear."""
        known = self.counts > 0
        self.prototypes[known] = drift(self.prototypes[known])
        if self._sums is not None:  # observed in an earlier chunk, and not settled yet
            sums, counts = self._sums
            seen = counts != 0
            number = counts[seen][:, None].to(sums)
            sums[seen] = number * drift(sums[seen] / number)

    @torch.no_grad()
    def add(self, rows: Sequence[int], sums: Tensor, counts: Tensor) -> None:
        """Add images to the means of ``rows``; they are those of an experience that has ended.

        Args:
            rows: ``K`` row numbers.
            sums: Sum of the features of the new images of each row, ``(K, D)``.
            counts: How many images that is, ``(K,)``; negative where they are taken out.
        """
        index = list(rows)
        means = in_double(self.prototypes[index])
        old, new = self.counts[index].to(means.device), counts.to(means.device)
        total = (old + new).clamp_min(1)[:, None]
        mean = (means * old[:, None] + sums.to(means.device)) / total
        mean[(old + new) == 0] = 0  # of none, not what rounding has left
        self.prototypes[index] = mean.to(self.prototypes)
        self.counts[index] = (old + new).to(self.counts)
        self.running = None

    def means(self) -> tuple[Tensor, Tensor]:
        """Return the class means, ``(R, D)``, and which rows have one, ``(R,)``."""
        prototypes, known = self.prototypes, self.counts > 0
        if (running := self.running) is None:
            return prototypes, known
        prototypes, known, index = prototypes.clone(), known.clone(), running.rows
        old, new = self.counts[index], running.counts * (running.seen > 0)
        sums = prototypes[index] * old[:, None] + running.means * new[:, None]
        prototypes[index] = sums / (old + new).clamp_min(1)[:, None]
        known[index] = (old + new) > 0
        return prototypes, known

    def forward(self, features: Tensor) -> Tensor:
        """Return logits: ``(B, D)`` to ``(B, R)``; -1000 for rows without an image yet."""
        prototypes, known = self.means()
        sections = len(self.section_weights), features.shape[1] // len(self.section_weights)
        z = F.normalize(features.float().reshape(-1, *sections), dim=2)  # (B, S, D / S)
        w = F.normalize(prototypes.reshape(-1, *sections), dim=2)  # (R, S, D / S)
        logits = z.flatten(1) @ (w * self.section_weights[:, None]).flatten(1).T
        return logits.masked_fill(~known, MASK_VALUE)

    def scores(self, logits: Tensor) -> Tensor:
        """Return the mean cosine of the sections, by their weights."""
        return logits / self.section_weights.abs().sum().clamp_min(torch.finfo(torch.float32).tiny)


@exportable
def build_prototypes(
    *,
    in_features: FeatureWidth,
    section_weights: tuple[Weight, ...] = (1.0,),
) -> PrototypeHead:
    """Build a :class:`PrototypeHead`.

    Args:
        in_features: ``D``.
        section_weights: Weight of each section of the feature, in the order of the sections.

    Raises:
        ConfigError: If the sections are not of one width.
    """
    return PrototypeHead(in_features, section_weights=section_weights)
