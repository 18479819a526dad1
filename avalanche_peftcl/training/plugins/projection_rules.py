"""Which directions of a site a gradient projection holds."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.ratio_directions import complement, ratio_directions
from avalanche_peftcl.functional.subspace import extend_basis, extend_centred_basis
from avalanche_peftcl.training.plugins.site_statistics import SiteStatistics

Rule = Literal["energy", "ratio"]
Bases = list[Tensor]
"""One ``(D, K)`` a group of a site, orthonormal: the directions that are held."""


class ProjectionRule(Protocol):
    """Where bases come from: before an experience, after it, or both."""

    remembers: tuple[str, ...]

    @property
    def stored_floats(self) -> int:
        """Floats that it keeps from experience to experience, beside the bases."""

    def settings(self) -> dict[str, Any]:
        """Return what it was built with."""

    def wants(self, experience: int) -> bool:
        """Whether it reads features of experience number ``experience``, from 0, before that."""

    def before(self, statistics: SiteStatistics, experience: int) -> dict[str, Bases]:
        """Return the bases for an experience, by site's name, from features before it."""

    def after(self, name: str, bases: Bases, statistics: SiteStatistics) -> tuple[Bases, float]:
        """Return a site's bases from features after an experience, and the energy's share in them.

        Args:
            name: Of the site.
            bases: Those that were held while the experience trained.
            statistics: Of the experience.
        """


class EnergyRule:
    r"""Hold what has a share of the energy of each experience's features.

    Args:
        threshold: The share :math:`\epsilon`, in [0, 1].
        centred: Count it on the covariance, and hold the mean before; see
            :func:`~avalanche_peftcl.functional.extend_centred_basis`.
    """

    remembers: tuple[str, ...] = ()
    stored_floats = 0

    def __init__(self, threshold: float, *, centred: bool = False) -> None:
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold must be in [0, 1], not {threshold}")
        self.threshold, self.centred = threshold, centred

    def settings(self) -> dict[str, Any]:
        """Return what it was built with."""
        return {"rule": "energy", "threshold": self.threshold, "centred": self.centred}

    def wants(self, experience: int) -> bool:
        """Nothing."""
        return False

    def before(self, statistics: SiteStatistics, experience: int) -> dict[str, Bases]:
        """Nothing."""
        return {}

    def after(self, name: str, bases: Bases, statistics: SiteStatistics) -> tuple[Bases, float]:
        """Extend a site's bases; return the share of the experience's energy in them."""
        grams, total, count = (
            statistics.grams[name],
            statistics.totals[name],
            statistics.counts[name],
        )
        if self.centred:
            both = [
                extend_centred_basis(v, r, s, count, threshold=self.threshold)
                for v, r, s in zip(bases, grams, total, strict=True)
            ]
            grams = grams - total[:, :, None] * total[:, None, :] / max(1, count)
        else:
            both = [
                extend_basis(v, r, threshold=self.threshold)
                for v, r in zip(bases, grams, strict=True)
            ]
        energies = grams.diagonal(dim1=1, dim2=2).sum(dim=1).tolist()
        whole = sum(energies)
        captured = sum(e * share for e, (_, share) in zip(energies, both, strict=True))
        return [basis for basis, _ in both], captured / whole if whole else 1.0


class RatioRule:
    r"""Leave open what the experience at hand needs most and old features least.

    Before each experience but the first :math:`k = \lfloor \kappa D \rfloor` directions are chosen
    at each site, see :func:`~avalanche_peftcl.functional.ratio_directions`; all others are held
    while it trains. Afterwards the Gram of its features is added to the old one. So sites of one
    dimension, biases and scales, are held unless ``kept`` is 1.

    Args:
        kept: The share :math:`\kappa` of directions that stay open, in [0, 1].

    Attributes:
        grams: :math:`S_{old}` by site's name, ``(G, D, D)`` in float64, whatever was trained.
        aimed_at: Number of the experience that the bases are for.

    Source:
        LoDA, arXiv 2603.00191. Differs: see :func:`~avalanche_peftcl.functional.ratio_directions`;
        any site, not adapters alone.
    """

    remembers: tuple[str, ...] = ("grams", "aimed_at")

    def __init__(self, kept: float) -> None:
        if not 0 <= kept <= 1:
            raise ConfigError(f"kept must be in [0, 1], not {kept}")
        self.kept = kept
        self.grams: dict[str, Tensor] = {}
        self.aimed_at = 0  # the first, which may use everything

    @property
    def stored_floats(self) -> int:
        """Those of the old Grams."""
        return sum(gram.numel() for gram in self.grams.values())

    def settings(self) -> dict[str, Any]:
        """Return what it was built with."""
        return {"rule": "ratio", "kept": self.kept}

    def wants(self, experience: int) -> bool:
        """Features of each experience, once: none where a run goes on inside it."""
        return bool(self.grams) and self.aimed_at != experience

    def before(self, statistics: SiteStatistics, experience: int) -> dict[str, Bases]:
        """Return all directions but those that the experience needs most."""
        self.aimed_at = experience
        return {
            name: [self._held(new, old) for new, old in zip(grams, self.grams[name], strict=True)]
            for name, grams in statistics.grams.items()
            if name in self.grams
        }

    def after(self, name: str, bases: Bases, statistics: SiteStatistics) -> tuple[Bases, float]:
        """Add the experience's Gram; return the share of the old energy that was held."""
        new, old = statistics.grams[name], self.grams.get(name)
        self.grams[name] = new if old is None else old + new
        return bases, 1.0 if old is None else _share(bases, old)

    def _held(self, new: Tensor, old: Tensor) -> Tensor:
        n_directions = int(self.kept * len(new) + 1e-9)  # 0.29 of 100 is 29
        return complement(ratio_directions(new, old, n_directions=n_directions))


def _share(bases: Sequence[Tensor], grams: Tensor) -> float:
    inside = sum(float(((g @ v) * v).sum()) for v, g in zip(bases, grams, strict=True))
    whole = float(grams.diagonal(dim1=1, dim2=2).sum())
    return min(max(inside / whole, 0.0), 1.0) if whole else 1.0


def make_rule(rule: Rule, *, threshold: float, centred: bool, kept: float) -> ProjectionRule:
    """Return the rule of that name; arguments of the other one are checked too.

    Raises:
        ConfigError: If there is none, or an argument is out of range or not of this rule.
    """
    energy, ratio = EnergyRule(threshold, centred=centred), RatioRule(kept)
    if rule not in ("energy", "ratio"):
        raise ConfigError(f"rule must be energy or ratio, not {rule!r}")
    if rule == "ratio" and centred:
        raise ConfigError(
            'centred=True counts the threshold of rule="energy"; rule="ratio" has none, leave '
            "centred out"
        )
    return energy if rule == "energy" else ratio


def empty_bases(grams: Tensor) -> Bases:
    """Return bases of nothing for each group of a site."""
    return [grams.new_zeros(grams.shape[-1], 0) for _ in grams]


def n_floats(bases: Mapping[str, Bases]) -> int:
    """Return how many floats bases have."""
    return sum(basis.numel() for groups in bases.values() for basis in groups)
