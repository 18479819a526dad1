"""Class means in several subspaces, those that no image gave told from likeness."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.functional import check_finite
from avalanche_peftcl.models import Head, exportable

_UNKNOWN = -1000.0  # the host's logit of a class that may not be predicted


def complete_prototypes(means: Tensor, known: Tensor, own: Tensor) -> Tensor:
    r"""Tell where classes would be in subspaces in which no image of theirs was seen.

    A class :math:`i` of subspace :math:`o` is in subspace :math:`s` where the classes :math:`J_s`
    with images there are, weighted by how like them it is in its own,

    .. math:: \hat p_i^{(s)} = \sum_{j \in J_s} \operatorname{softmax}_j \cos\bigl(p_i^{(o)},
              p_j^{(o)}\bigr)\, p_j^{(s)}

    Args:
        means: ``p``, ``(R, S, D)``.
        known: Which means are of images, ``(R, S)``; of a class in :math:`J_s` those in earlier
            subspaces are.
        own: Subspace that each class came with, ``(R,)``.

    Returns:
        ``(R, S, D)``; means of images as they were, 0 for classes without an image.

    Source:
        Zhou et al., EASE, CVPR 2024; released code sun-hailong/CVPR24-Ease. Differs: nothing.

    Example:
        >>> means = torch.tensor([[[1.0], [0.0]], [[2.0], [5.0]]])
        >>> known = torch.tensor([[True, False], [True, True]])
        >>> complete_prototypes(means, known, torch.tensor([0, 1]))[0].flatten()
        tensor([1., 5.])
    """
    whole, met = means.clone(), known.any(dim=1)
    for s in range(means.shape[1]):
        lacking, there = met & ~known[:, s], known[:, s]
        if not bool(there.any()):
            continue
        for o in sorted(set(own[lacking].tolist())):
            rows = lacking & (own == o)
            mine, theirs = F.normalize(means[rows, o], dim=1), F.normalize(means[there, o], dim=1)
            whole[rows, s] = (mine @ theirs.T).softmax(dim=1) @ means[there, s]
    return whole


@exportable
class SubspacePrototypeHead(Head):
    r"""Cosines to class means in each subspace, that of the class itself above all others.

    .. math:: \cos\bigl(z_o, p_r^{(o)}\bigr)
              + \frac{\alpha}{S - 1} \sum_{s \ne o} \cos\bigl(z_s, p_r^{(s)}\bigr)

    with ``o`` the subspace that the class came with. Features are those of all subspaces side by
    side. A class that is met again in a later subspace has a further mean, which came with that;
    its logit is that of the mean that fits best.

    Args:
        in_features: ``D``, width of one subspace.
        alpha: :math:`\alpha`.

    Attributes:
        sums: :math:`\sum z` of each mean in each subspace, ``(M, S, D)``, in float64.
        counts: Images of each mean in each subspace, ``(M, S)``.
        own: Subspace that each came with, ``(M,)``.
        row_of: Whose mean each is, ``(M,)``.
        prototypes: Means, those told from likeness too, ``(M, S, D)``.
        latest: The last mean of each row, which its images join, ``(R,)``.

    Source:
        Zhou et al., EASE, CVPR 2024; released code sun-hailong/CVPR24-Ease. Differs: means are
        summed in float64; several of a class are ours.

    Example:
        >>> head = SubspacePrototypeHead(2)
        >>> head.grow(1)
        >>> head.observe(torch.tensor([[0.0, 4.0]]), torch.tensor([0]))
        >>> head.settle()
        >>> head(torch.tensor([[3.0, 4.0]]))
        tensor([[0.8000]])
    """

    fitted = True
    score_name = "similarity"
    free_tensors: tuple[str, ...] = ("sums", "counts", "own", "row_of", "prototypes", "latest")
    sums: Tensor
    counts: Tensor
    own: Tensor
    row_of: Tensor
    prototypes: Tensor
    latest: Tensor

    def __init__(self, in_features: int, *, alpha: float = 0.1) -> None:
        super().__init__(in_features)
        self.alpha = alpha
        self.register_buffer("sums", torch.zeros(0, 1, in_features, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, 1, dtype=torch.long))
        for name in ("own", "row_of", "latest"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.long))
        self.register_buffer("prototypes", torch.zeros(0, 1, in_features))

    def grow(self, n_rows: int) -> None:
        """Lengthen to ``n_rows``; new rows are of the last subspace."""
        rows = torch.arange(len(self.latest), n_rows, device=self.latest.device)
        self.latest = torch.cat([self.latest, torch.zeros_like(rows)])
        self._add_means(rows)

    def meet(self, rows: Sequence[int]) -> None:
        """Let rows whose last mean is of an earlier subspace have one that comes with the last."""
        again = self.latest.new_tensor(sorted(rows))
        self._add_means(again[self.own[self.latest[again]] < self.counts.shape[1] - 1])

    def _add_means(self, rows: Tensor) -> None:
        """Give each of some rows a further mean."""
        known = len(self.own)
        for name in self.free_tensors:
            if name != "latest":
                old = self.get_buffer(name)
                setattr(self, name, torch.cat([old, old.new_zeros(len(rows), *old.shape[1:])]))
        self.own[known:] = self.counts.shape[1] - 1
        self.row_of[known:] = rows
        self.latest[rows] = torch.arange(known, len(self.own), device=rows.device)

    def widen(self, n_subspaces: int) -> None:
        """Make room for ``n_subspaces``; what is known of earlier ones stays."""
        for name in ("sums", "counts", "prototypes"):
            old = self.get_buffer(name)
            new = old.new_zeros(len(old), n_subspaces, *old.shape[2:])
            new[:, : old.shape[1]] = old
            setattr(self, name, new)

    @torch.no_grad()
    def observe(self, features: Tensor, rows: Tensor) -> None:
        """Add images to the sums: ``(B, S D)``."""
        means = self.latest[rows]
        self.sums.index_add_(0, means, self._apart(features.double()))
        self.counts += torch.bincount(means, minlength=len(self.counts))[:, None]

    @torch.no_grad()
    def settle(self) -> None:
        """Compute the means, and tell those that are missing.

        Raises:
            NotFiniteError: If the sums are not finite numbers.
        """
        check_finite([self.sums], "the class means of the subspaces")
        means = self.sums / self.counts.clamp_min(1)[..., None]
        self.prototypes = complete_prototypes(means, self.counts > 0, self.own).float()

    def forward(self, features: Tensor) -> Tensor:
        """Return logits: ``(B, S D)`` to ``(B, R)``; -1000 for rows without an image yet."""
        n = self.counts.shape[1]
        weights = torch.full(self.counts.shape, self.alpha / max(1, n - 1), device=features.device)
        weights.scatter_(1, self.own[:, None], 1.0)
        z = F.normalize(self._apart(features.float()), dim=2)  # (B, S, D)
        w = F.normalize(self.prototypes, dim=2) * weights[..., None]  # (M, S, D)
        logits = z.flatten(1) @ w.flatten(1).T
        logits = logits.masked_fill(self.counts.sum(dim=1) == 0, _UNKNOWN)  # (B, M)
        if len(self.own) == len(self.latest):
            return logits
        best = logits.new_full((len(logits), len(self.latest)), _UNKNOWN)
        return best.scatter_reduce(1, self.row_of.expand(len(logits), -1), logits, "amax")

    def scores(self, logits: Tensor) -> Tensor:
        """Return the mean cosine of the subspaces, by their weights."""
        others = self.alpha if self.counts.shape[1] > 1 else 0.0
        return logits / (1 + others)

    def _apart(self, features: Tensor) -> Tensor:
        return features.reshape(len(features), -1, self.in_features)
