"""Counts, sums and products of the features of each class, of which its Gaussian follows."""

import math
from typing import Literal

import torch
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.functional.gaussians import within_scatter
from avalanche_peftcl.functional.precision import in_double
from avalanche_peftcl.models import Drift
from avalanche_peftcl.models.heads.drift import move_moments

Covariance = Literal["shared", "class"]
MOST_ENTRIES = 2**28  # of all covariances: 2 GiB


class ClassMoments:
    """Sums over images, by class: no feature is kept. Classes met again add to theirs.

    Args:
        covariance: ``"shared"``: one for all classes, of images about their class means.
            ``"class"``: one each.

    Attributes:
        held: Of each row ``counts`` of images, ``(R,)``, ``sums`` of their features, ``(R, D)``,
            ``grams`` of their products, ``(D, D)`` or ``(R, D, D)``, both in float64, and with
            which experience it was ``born``, ``(R,)``, from 0. Nothing before :meth:`grow`.

    Raises:
        ConfigError: If there is no such covariance.

    Example:
        >>> moments = ClassMoments("class")
        >>> moments.grow(2, 1, born=0)
        >>> moments.add(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 1]))
        >>> means, covariances = moments.gaussians()
        >>> means.flatten().tolist(), covariances.flatten().tolist()
        ([2.0, 5.0], [2.0, 0.0])
    """

    remembers: tuple[str, ...] = ("held",)

    def __init__(self, covariance: Covariance = "shared") -> None:
        if covariance not in ("shared", "class"):
            raise ConfigError(f"covariance must be shared or class, not {covariance!r}")
        self.covariance: Covariance = covariance
        self.held: dict[str, Tensor] = {}

    def grow(self, n_rows: int, width: int, *, born: int) -> None:
        """Make room for ``n_rows`` classes of features of a width; old ones stay.

        Args:
            n_rows: ``R``.
            width: ``D``.
            born: Number of the experience that brings the new ones.

        Raises:
            ConfigError: If that takes too much memory.
        """
        shape = (width, width) if self.covariance == "shared" else (n_rows, width, width)
        if math.prod(shape) > MOST_ENTRIES:
            raise ConfigError(
                f"a covariance for each of {n_rows:,} classes of features of width {width:,} takes "
                f"{8 * math.prod(shape) / 2**30:,.1f} GiB, and the most is "
                f'{8 * MOST_ENTRIES / 2**30:.0f}; take covariance="shared"'
            )
        whole = {
            "counts": torch.zeros(n_rows, dtype=torch.long),
            "sums": torch.zeros(n_rows, width, dtype=torch.float64),
            "grams": torch.zeros(shape, dtype=torch.float64),
            "born": torch.full((n_rows,), born),
        }
        for name, old in self.held.items():
            whole[name] = whole[name].to(old.device)
            whole[name][: len(old)] = old
        self.held = whole

    def add(self, features: Tensor, rows: Tensor) -> None:
        """Take in images.

        Args:
            features: ``(B, D)``, without gradient.
            rows: Row of each, ``(B,)``.
        """
        z = in_double(features)
        rows = rows.to(z.device)
        self.held = held = {name: tensor.to(z.device) for name, tensor in self.held.items()}
        held["counts"] += torch.bincount(rows, minlength=len(held["counts"]))
        held["sums"].index_add_(0, rows, z)
        if self.covariance == "shared":
            held["grams"] += z.T @ z
        else:
            for row in set(rows.tolist()):
                of = z[rows == row]
                held["grams"][row] += of.T @ of

    def move(self, drift: Drift) -> None:
        """Move all to where the features of old images are now."""
        if held := self.held:
            moved = move_moments(drift, held["grams"], held["sums"], held["counts"])
            held["grams"], held["sums"] = moved

    def gaussians(self) -> tuple[Tensor, Tensor]:
        """Return the class means, ``(R, D)``, and covariances, ``(R, D, D)`` or ``(D, D)``."""
        counts, sums, grams = (self.held[name] for name in ("counts", "sums", "grams"))
        n = counts[:, None].to(sums)
        means = sums / n.clamp_min(1)
        if self.covariance == "shared":
            within = within_scatter(grams, sums, counts)
            return means, within / max(1, int(counts.sum()) - self.n_known)
        within = grams - sums[:, :, None] * means[:, None]
        return means, within / (n[..., None] - 1).clamp_min(1)

    @property
    def known(self) -> Tensor:
        """Which rows have an image, ``(R,)``."""
        return self.held["counts"] > 0

    @property
    def n_known(self) -> int:
        """How many these are."""
        return int(self.known.sum())

    @property
    def born(self) -> Tensor:
        """With which experience each row came, ``(R,)``."""
        return self.held["born"]

    @property
    def stored_floats(self) -> int:
        """Floats of the sums and products."""
        return sum(self.held[name].numel() for name in ("sums", "grams") if name in self.held)

    def check_finite(self, number: int) -> None:
        """Refuse what is not finite numbers after experience ``number``."""
        held = [self.held["sums"], self.held["grams"]]
        check_finite(held, f"the class statistics of experience {number}")
