"""Heads that grow: rows for (task label, class) pairs, and the three ways to score them."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.functional.precision import in_double
from avalanche_peftcl.models.heads.running_means import RunningClassMeans
from avalanche_peftcl.models.projection.sites import ProjectionSite, column, ones

MAX_CLASSES = 2**20
MASK_VALUE = -1000.0  # the host's logit of a class that may not be predicted


class Growing(nn.Module):
    """A module whose tensors grow along the first axis and load from any size."""

    def grow(self, n_rows: int) -> None:
        """Lengthen every tensor named in ``_rows`` to ``n_rows``; old rows stay as they are."""
        for name in self._rows:
            old = getattr(self, name)
            new = old.new_zeros(n_rows, *old.shape[1:])
            new[: len(old)] = old.detach()
            setattr(self, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)

    _rows: tuple[str, ...] = ()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        sizes = {len(state_dict[prefix + n]) for n in self._rows if prefix + n in state_dict}
        if len(sizes) == 1:
            n_rows = sizes.pop()
            for name in self._rows:
                old = getattr(self, name)
                if len(old) != n_rows:
                    new = old.new_zeros(n_rows, *old.shape[1:])
                    setattr(self, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class ClassRows(Growing):
    """Which row of a head belongs to which (task label, class) pair.

    As in Avalanche's ``MultiHeadClassifier`` a class belongs to the task label it comes with.
    Where all task labels are 0 this is one head over all classes; where a test image comes with
    a task label, only classes of that label can be predicted.

    Example:
        >>> rows = ClassRows()
        >>> rows.add([(0, 3), (0, 1)])
        [0, 1]
        >>> rows.scatter(torch.tensor([[5.0, 7.0]]))
        tensor([[-1000.,     7., -1000.,     5.]])
    """

    _rows = ("keys",)
    keys: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(0, 2, dtype=torch.long))
        self.num_outputs = 0

    def __len__(self) -> int:
        return len(self.keys)

    def get_extra_state(self) -> Tensor:
        """Return the number of columns, which goes into the state dict."""
        return torch.tensor(self.num_outputs)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the number of columns.

        Raises:
            CheckpointError: If it is not that of the classes, which were loaded before.
        """
        columns, classes = int(state), self.keys[:, 1:]
        if self.keys.shape[1] != 2 or not 0 <= columns <= MAX_CLASSES:
            raise CheckpointError(
                f"a head of {columns} columns for {len(self.keys)} classes is none; there may be "
                f"{MAX_CLASSES:,}"
            )
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < columns:
            raise CheckpointError(
                f"a head of {columns} columns has classes from {int(classes.min())} to "
                f"{int(classes.max())}"
            )
        self.num_outputs = columns

    @property
    def task_labels(self) -> list[int]:
        """The task labels seen, sorted."""
        return sorted(set(self.keys[:, 0].tolist()))

    def add(self, pairs: Iterable[tuple[int, int]]) -> list[int]:
        """Give each new ``(task label, class)`` pair a row; return the rows of all ``pairs``."""
        rows = {(t, c): r for r, (t, c) in enumerate(self.keys.tolist())}
        pairs = list(pairs)
        for pair in pairs:
            rows.setdefault(pair, len(rows))
        self.keys = torch.tensor(list(rows), dtype=torch.long, device=self.keys.device)
        self.keys = self.keys.reshape(-1, 2)
        self.widen(max((c for _, c in rows), default=-1) + 1)
        return [rows[pair] for pair in pairs]

    def widen(self, num_outputs: int) -> None:
        """Make :meth:`scatter` return at least ``num_outputs`` columns."""
        self.num_outputs = max(self.num_outputs, num_outputs)

    def index(self, targets: Tensor, task_labels: Tensor | None = None) -> Tensor:
        """Return the row of each target, ``(B,)``.

        Raises:
            ValueError: If a pair has no row, or ``task_labels`` is left out and there are several.
        """
        wanted = torch.stack([self._tasks(task_labels, len(targets)), targets], dim=1)
        match = (wanted[:, None] == self.keys[None]).all(dim=2)  # (B, R)
        if not bool(match.any(dim=1).all()):
            lost = sorted(set(map(tuple, wanted[~match.any(dim=1)].tolist())))
            raise ValueError(f"no rows for (task label, class) pairs {lost}; add() them first")
        return match.int().argmax(dim=1)

    def scatter(self, logits: Tensor, task_labels: Tensor | None = None) -> Tensor:
        """Put each row's logit in the column of its class.

        Args:
            logits: ``(B, R)``.
            task_labels: ``(B,)``; ``None`` where only one task label was seen.

        Returns:
            ``(B, C)`` with ``C`` the largest class id plus 1; -1000 for classes without a row.
        """
        tasks = self._tasks(task_labels, len(logits))
        allowed = tasks[:, None] == self.keys[None, :, 0]  # (B, R)
        values = logits.masked_fill(~allowed, MASK_VALUE)
        out = logits.new_full((len(logits), self.num_outputs), MASK_VALUE)
        columns = self.keys[:, 1].expand(len(logits), -1)
        return out.scatter_reduce(1, columns, values, "amax")

    def _tasks(self, task_labels: Tensor | None, batch: int) -> Tensor:
        if task_labels is not None:
            return task_labels.to(self.keys.device)  # the host leaves those of a memory behind
        labels = self.task_labels or [0]
        if len(labels) > 1:
            raise ValueError(f"task_labels are needed: rows belong to task labels {labels}")
        return self.keys.new_full((batch,), labels[0])


class LinearHead(Growing):
    """Logits ``W z + b``; new rows start at zero.

    Args:
        in_features: ``D``.
    """

    _rows = ("weight", "bias")

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, in_features))
        self.bias = nn.Parameter(torch.zeros(0))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits: ``(B, D)`` to ``(B, R)``."""
        return F.linear(features, self.weight, self.bias)

    def head_sites(self) -> Iterator[ProjectionSite]:
        """State what must hold for the logits of old features to stay.

        They are no ``projection_sites()``: a head whose rows are of one experience each needs none.
        """
        yield ProjectionSite("weight", self.weight, self)
        yield ProjectionSite("bias", self.bias, self, view=column, features=ones)


class CosineHead(Growing):
    r"""Logits :math:`\sigma \cos(z, w_r)` with trained rows and one trained factor.

    Args:
        in_features: ``D``.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712 (``CosineLinear``).
        Differs: rows of earlier classes are kept for replayed images.
    """

    _rows = ("weight",)

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, in_features))
        self.sigma = nn.Parameter(torch.ones(1))

    @torch.no_grad()
    def reset(self, rows: Sequence[int]) -> None:
        r"""Draw ``rows`` anew from :math:`U(\pm 1/\sqrt D)` and set the factor to 1."""
        bound = 1 / math.sqrt(self.weight.shape[1])
        fresh = torch.empty(len(rows), self.weight.shape[1]).uniform_(-bound, bound)
        self.weight[list(rows)] = fresh.to(self.weight)
        self.sigma.fill_(1.0)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits: ``(B, D)`` to ``(B, R)``."""
        normed = F.normalize(features.float(), dim=1)
        return self.sigma * (normed @ F.normalize(self.weight, dim=1).T)


class PrototypeHead(Growing):
    r"""Logits from class means, each section of the feature with its own weight.

    .. math:: \sum_s \mu_s \cos(z_s, \bar z_{r,s})

    Args:
        in_features: ``D``, a multiple of the number of sections.
        section_weights: :math:`\mu_s`, one a section of equal width.

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

    _rows = ("prototypes", "counts")
    prototypes: Tensor
    counts: Tensor
    section_weights: Tensor

    def __init__(self, in_features: int, *, section_weights: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.zeros(0, in_features))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))
        self.register_buffer("section_weights", torch.tensor(section_weights), persistent=False)
        self.running: RunningClassMeans | None = None

    def begin(self, rows: Sequence[int], counts: Sequence[int]) -> RunningClassMeans:
        """Start an experience with ``counts`` images of the classes of ``rows``.

        Until :meth:`add` ends it, the means returned here, which are to be kept up to date, stand
        for what it will add: logits in training are on the scale of those after it.
        """
        self.running = RunningClassMeans(
            rows,
            counts,
            n_rows=len(self.counts),
            dim=self.prototypes.shape[1],
            device=self.counts.device,
        )
        return self.running

    def grow(self, n_rows: int) -> None:
        """Lengthen to ``n_rows`` for another experience."""
        super().grow(n_rows)
        self.running = None

    @torch.no_grad()
    def add(self, rows: Sequence[int], sums: Tensor, counts: Tensor) -> None:
        """Add images to the means of ``rows``; they are those of an experience that has ended.

        Args:
            rows: ``K`` row numbers.
            sums: Sum of the features of the new images of each row, ``(K, D)``.
            counts: How many images that is, ``(K,)``.
        """
        index = list(rows)
        means = in_double(self.prototypes[index])
        old, new = self.counts[index].to(means.device), counts.to(means.device)
        total = (old + new).clamp_min(1)[:, None]
        mean = (means * old[:, None] + sums.to(means.device)) / total
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
