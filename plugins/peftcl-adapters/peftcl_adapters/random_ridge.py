"""RanPAC's head: ridge regression on random ReLU features, summed over all experiences."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from avalanche_peftcl.functional import check_finite
from avalanche_peftcl.models import Head, exportable
from peftcl_adapters.ridge import generalised_cross_validation, penalties, spectrum

_UNSEEN = -1000.0  # the host's logit of a class that may not be predicted


@exportable
class RandomRidgeHead(Head):
    r"""Ridge regression of one-hot targets on :math:`h(z) = \mathrm{relu}(z\,\Omega)`.

    .. math:: G = \sum h h^\top, \quad C = \sum h y^\top, \quad W = (G + \lambda I)^{-1} C

    over all images of the stream, in float64. The sums do not depend on the order of experiences
    and minibatches; a class met again adds to them, a new one adds a column. They are solved when
    a prediction is asked for first after they grew, because an online stream grows them often.

    Args:
        in_features: ``D``.
        n_features: ``M``, how many random features. ``G`` takes ``8 M²`` bytes, 0.8 GB for 10,000;
            solving takes time of order ``M³``: seconds for 2,000, minutes on a CPU for 10,000.
        seed: Of :math:`\Omega`; ``None`` draws from torch's generator, which a run has seeded.

    Attributes:
        projection: :math:`\Omega`, ``(D, M)``, of normal numbers; it is saved, so that it is the
            same with any version of torch.
        gram: ``G``, ``(M, M)``.
        sums: ``C`` transposed, ``(R, M)``.
        counts: Images of each row, ``(R,)``.
        weight: ``W`` transposed, ``(R, M)``.
        penalty: :math:`\lambda`, chosen by generalised cross-validation; 0 until then.

    Source:
        McDonnell et al., RanPAC, NeurIPS 2023; released code 012927f.
        Differs: the penalty is chosen by generalised cross-validation of the sums of all
        experiences, on a grid of quarters of decades relative to the mean squared length of
        ``h``; the release takes the power of ten that is best on the last fifth of the rows of the
        current experience. Sums are in float64.

    Example:
        >>> head = RandomRidgeHead(2, n_features=64, seed=0)
        >>> head.grow(2)
        >>> head.observe(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([0, 1]))
        >>> head.settle()
        >>> head(torch.tensor([[3.0, 0.1], [0.1, 3.0]])).argmax(dim=1)
        tensor([0, 1])
    """

    fitted = True
    row_tensors = ("sums", "counts", "weight")
    projection: Tensor
    gram: Tensor
    sums: Tensor
    counts: Tensor
    weight: Tensor
    penalty: Tensor

    def __init__(
        self, in_features: int, *, n_features: int = 10_000, seed: int | None = None
    ) -> None:
        super().__init__(in_features)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        double = torch.float64
        self.register_buffer(
            "projection", torch.randn(in_features, n_features, generator=generator)
        )
        self.register_buffer("gram", torch.zeros(n_features, n_features, dtype=double))
        self.register_buffer("sums", torch.zeros(0, n_features, dtype=double))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))
        self.register_buffer("weight", torch.zeros(0, n_features))
        self.register_buffer("penalty", torch.zeros((), dtype=double))
        self._solved = True

    def random_features(self, features: Tensor) -> Tensor:
        """Return ``h``: ``(B, D)`` to ``(B, M)``, in float32 whatever the network runs in."""
        with torch.autocast(features.device.type, enabled=False):
            return (features.float() @ self.projection).relu()

    @torch.no_grad()
    def observe(self, features: Tensor, rows: Tensor) -> None:
        """Add images to the sums."""
        h = self.random_features(features).double()
        self.gram.addmm_(h.T, h)
        self.sums.index_add_(0, rows, h)
        self.counts += torch.bincount(rows, minlength=len(self.counts))
        self._solved = False

    def settle(self) -> None:
        """Check the sums.

        Raises:
            NotFiniteError: If they are not finite numbers.
        """
        check_finite([self.gram, self.sums], "the sums of random features")

    @torch.no_grad()
    def solve(self) -> None:
        """Choose the penalty and solve for the weights."""
        n = int(self.counts.sum())
        if n:
            there = spectrum(self.gram, self.sums.T, n=n)
            grid = penalties(there)
            self.penalty.copy_(grid[generalised_cross_validation(there, grid).argmin()])
            self.weight.copy_(there.solve(self.penalty).T)
        self._solved = True

    def forward(self, features: Tensor) -> Tensor:
        """Return logits: ``(B, D)`` to ``(B, R)``; -1000 for rows without an image yet."""
        if not self._solved:
            self.solve()
        h = self.random_features(features)
        with torch.autocast(features.device.type, enabled=False):
            logits = h @ self.weight.T
        return logits.masked_fill(self.counts == 0, _UNSEEN)

    def get_extra_state(self) -> Tensor:
        """Return whether the weights are those of the sums, which goes into the state dict."""
        return torch.tensor(self._solved)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over what :meth:`get_extra_state` returned."""
        self._solved = bool(state)


@exportable
def build_random_ridge(
    *,
    in_features: Annotated[int, Field(ge=1)],
    n_features: Annotated[int, Field(ge=1, le=32_768)] = 10_000,
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None,
) -> RandomRidgeHead:
    """Build a :class:`RandomRidgeHead`.

    Args:
        in_features: ``D``.
        n_features: How many random features.
        seed: Of their projection; ``None`` takes the run's.
    """
    return RandomRidgeHead(in_features, n_features=n_features, seed=seed)
