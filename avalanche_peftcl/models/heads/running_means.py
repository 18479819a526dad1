"""Class means of features while the network that makes them still trains."""

from collections.abc import Sequence

import torch
from torch import Tensor


class RunningClassMeans:
    r"""Mean feature of each class over about its last epoch of minibatches.

    Each image moves the mean of its class by one part in :math:`n`, the number of its images so
    far, at most that of the experience: the plain mean in the first epoch, in later ones one that
    forgets the features of an epoch ago.

    Args:
        rows: Head rows of the classes in the experience.
        counts: Images of each.
        n_rows: Rows of the head.
        dim: ``D``, width of a feature.
        device: Where the features are.

    Example:
        >>> running = RunningClassMeans([1], [2], n_rows=2, dim=1)
        >>> for value in (1.0, 3.0, 8.0):
        ...     running.update(torch.tensor([[value]]), torch.tensor([1]))
        >>> running.means  # (1 + 3) / 2, then half the way to 8
        tensor([[5.]])
    """

    def __init__(
        self,
        rows: Sequence[int],
        counts: Sequence[int],
        *,
        n_rows: int,
        dim: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.rows = torch.tensor(rows, dtype=torch.long, device=device)
        self.counts = torch.tensor(counts, dtype=torch.float32, device=device)
        self.seen = torch.zeros_like(self.counts)
        self.means = torch.zeros(len(rows), dim, device=device)
        self._place = torch.full((n_rows,), len(rows), device=device)  # past the end: not of ours
        self._place[self.rows] = torch.arange(len(rows), device=device)

    @torch.no_grad()
    def update(self, features: Tensor, rows: Tensor) -> None:
        """Take in a minibatch; images of other classes are left out.

        Args:
            features: ``(B, D)``.
            rows: Head row of each image, ``(B,)``.
        """
        n, place = len(self.rows), self._place[rows]
        new = self.seen.new_zeros(n + 1).index_add_(
            0, place, torch.ones_like(features[:, 0]).float()
        )
        sums = self.means.new_zeros(n + 1, self.means.shape[1])
        sums.index_add_(0, place, features.float())
        new, sums = new[:n], sums[:n]
        self.seen = torch.minimum(self.seen + new, torch.maximum(self.counts, new))
        self.means += (sums - new[:, None] * self.means) / self.seen.clamp_min(1)[:, None]
