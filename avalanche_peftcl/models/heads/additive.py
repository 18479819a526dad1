"""Heads that are fitted to sums over images: what was added can be taken out again."""

import torch
from torch import Tensor

from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.models.heads.drift import Drift, move_moments
from avalanche_peftcl.models.heads.head import Head, check_removed, check_whole


class AdditiveHead(Head):
    """A head whose images add to sums; a subclass says in :meth:`_take` how.

    Args:
        in_features: ``D``.
    """

    fitted = True

    @torch.no_grad()
    def observe(self, features: Tensor, rows: Tensor) -> None:
        """Add images to the sums."""
        self._take(features, rows, sign=1)

    @torch.no_grad()
    def remove(self, features: Tensor, rows: Tensor) -> None:
        """Take images out of the sums."""
        self._take(features, rows, sign=-1)

    def _take(self, features: Tensor, rows: Tensor, *, sign: int) -> None:
        """Add ``sign`` times what images give: 1 where they are observed, -1 where removed."""
        raise NotImplementedError


class SolvedHead(AdditiveHead):
    """A head that is solved from its sums when it settles, if they have changed.

    A subclass names the sums (:attr:`~.Growing.statistics`, those with an entry a row among
    :attr:`~.Growing.row_tensors`), adds to them in :meth:`_take`, and says in :meth:`_solve` what
    follows from them.

    Args:
        in_features: ``D``.

    Attributes:
        summed: What the sums are, for messages.
        counts: Images of each row, ``(R,)``.
        pending: Whether the sums have changed since it was solved.
    """

    summed: str = "the sums of features"
    counts: Tensor
    pending: Tensor

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features)
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))
        self.register_buffer("pending", torch.zeros((), dtype=torch.bool))

    def _take(self, features: Tensor, rows: Tensor, *, sign: int) -> None:
        self.counts += sign * torch.bincount(rows, minlength=len(self.counts))
        self.pending.fill_(True)

    @torch.no_grad()
    def settle(self) -> None:
        """Solve, if the sums have changed.

        Raises:
            ConfigError: If more images of a class were removed than it has.
            NotFiniteError: If the sums are not finite numbers.
        """
        if not self.pending:
            return
        sums = {name: self.get_buffer(name) for name in self.statistics}
        check_finite([held for held in sums.values() if held.is_floating_point()], self.summed)
        check_removed(self.counts)
        for name in sums.keys() & set(self.row_tensors):
            sums[name][self.counts == 0] = 0  # of none, not what rounding has left
        self._solve(int(self.counts.sum()))
        self.pending.fill_(False)

    def _solve(self, n: int) -> None:
        """Compute what predicts from the sums over ``n`` images, which may be 0."""
        raise NotImplementedError


class MomentHead(SolvedHead):
    r"""A head that follows from :math:`G = \sum h h^\top` and :math:`s_r = \sum h` of each row.

    Args:
        in_features: ``D``.
        width: ``M``, of what :meth:`regressors` makes of a feature.

    Attributes:
        gram: ``G``, ``(M, M)``, in float64; of no rows until there is an image.
        sums: ``s``, ``(R, M)``, in float64.
    """

    free_tensors: tuple[str, ...] = ("gram",)  # which takes memory from the first image on
    statistics: tuple[str, ...] = ("gram", "sums")
    gram: Tensor
    sums: Tensor

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__(in_features)
        self.register_buffer("gram", torch.zeros(0, width, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(0, width, dtype=torch.float64))

    def regressors(self, features: Tensor) -> Tensor:
        """Return ``h``, ``(B, D)`` to ``(B, M)``, in float32: here the features themselves."""
        return features.float()

    def _take(self, features: Tensor, rows: Tensor, *, sign: int) -> None:
        check_whole(self)
        if not len(self.gram):
            self.gram = self.gram.new_zeros(2 * self.gram.shape[1:])
        with torch.autocast(features.device.type, enabled=False):
            h = self.regressors(features).double()
            self.gram.addmm_(h.T, h, alpha=sign)
            self.sums.index_add_(0, rows, h, alpha=sign)
        super()._take(features, rows, sign=sign)

    def _move_sums(self, drift: Drift) -> None:
        """Move the sums, where ``h`` is the feature itself; exact where the drift is linear."""
        check_whole(self)
        if len(self.gram):
            self.gram, self.sums = move_moments(drift, self.gram, self.sums, self.counts)
            self.pending.fill_(True)
