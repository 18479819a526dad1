"""How far features moved, and how much of it a map tells, over any number of images."""

from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor

from avalanche_peftcl.functional.precision import in_double


class Fit:
    """Sums of squares over images, which add up.

    Args:
        values: What :attr:`values` was.

    Attributes:
        values: Of features before; of what they moved; of what those moved that were held out; and
            what of that a map does not tell.

    Example:
        >>> fit = Fit([4.0, 1.0, 0.5, 0.1]) + Fit([0.0, 0.0, 0.5, 0.1])
        >>> fit.drift, fit.explained
        (0.5, 0.8)
    """

    def __init__(self, values: Sequence[float] = (0.0, 0.0, 0.0, 0.0)) -> None:
        self.values = list(values)

    @classmethod
    def of(
        cls,
        before: Tensor,
        after: Tensor,
        *,
        old: Tensor | None = None,
        new: Tensor | None = None,
        told: Tensor | None = None,
    ) -> Self:
        """Return the sums of some images, ``(N, D)``, and of those that were held out."""
        a, b = in_double(before), in_double(after)
        moved, missed = 0.0, 0.0
        if old is not None and new is not None and told is not None:
            moved = float((in_double(new) - in_double(old)).square().sum())
            missed = float((in_double(new) - in_double(told)).square().sum())
        return cls([float(a.square().sum()), float((b - a).square().sum()), moved, missed])

    def __add__(self, other: Self) -> Self:
        return type(self)([x + y for x, y in zip(self.values, other.values, strict=True)])

    @property
    def drift(self) -> float | None:
        """How far features moved, relative to their length; ``None`` of features of length 0."""
        length, moved = self.values[:2]
        drift: float | None = (moved / length) ** 0.5 if length else None
        return drift

    @property
    def explained(self) -> float | None:
        """The share of it that the map tells, negative if it is worse than none."""
        moved, missed = self.values[2:]
        return 1 - missed / moved if moved else None

    def report(self) -> dict[str, Any]:
        """Return what the record keeps."""
        return {"drift": self.drift, "explained": self.explained}


def in_a_line(sections: Sequence[dict[str, Any]]) -> str:
    """Return one line about the sections of an experience.

    Args:
        sections: ``drift`` and ``explained`` of each, see
            :meth:`.DriftCompensationPlugin.summary`.

    Example:
        >>> in_a_line([{"drift": 0.25, "explained": 0.8}])
        'drift: features moved by 25 % of their length, of which the map tells 80 %'
    """
    moved = " and ".join(_percent(section["drift"]) for section in sections)
    told = " and ".join(_percent(section["explained"]) for section in sections)
    return f"drift: features moved by {moved} of their length, of which the map tells {told}"


def _percent(share: float | None) -> str:
    return "nothing" if share is None else f"{100 * share:.0f} %"
