"""What a gradient projection tells of an experience, in words and to the host's loggers."""

from collections.abc import Mapping, Sequence
from typing import Any

from avalanche_peftcl.training.publishing import publish

_TOLD = ("size", "captured_energy", "removed_share")


def tell(strategy: Any, plugin: Any, site: Mapping[str, Any]) -> None:
    """Tell the host's loggers of a site: its report, see :func:`in_a_line`, and its name."""
    for key in _TOLD:
        publish(strategy, plugin, f"Projection_{key.title()}", site[key], of=site["site"])


def tell_drift(strategy: Any, plugin: Any, drift: Mapping[str, Any]) -> None:
    """Tell them how far features moved, see :meth:`.FeatureWatch.end`."""
    publish(strategy, plugin, "Drift_Learnt", drift["learnt"])
    for number, old in enumerate(drift["old"]):
        publish(strategy, plugin, "Drift_Old", old, of=f"Exp{number:03d}")


def in_a_line(sites: Sequence[dict[str, Any]], drift: Mapping[str, Any] | None = None) -> str:
    """Return one line about the sites of an experience.

    Args:
        sites: ``size``, ``dim``, ``captured_energy`` and ``removed_share`` of each, see
            :meth:`.GradientProjectionPlugin.summary`.
        drift: What moved in it, where that is watched.

    Example:
        >>> in_a_line([{"size": 3, "dim": 8, "captured_energy": 0.99, "removed_share": 0.25}])
        'projection: 3 of 8 directions at 1 sites, 99.0 to 99.0 % of the energy; removed 25 to ...'
    """
    size, dim = (sum(site[key] for site in sites) for key in ("size", "dim"))
    shares = [site["removed_share"] for site in sites]
    energy = [site["captured_energy"] for site in sites]
    line = (
        f"projection: {size} of {dim} directions at {len(sites)} sites, "
        f"{100 * min(energy):.1f} to {100 * max(energy):.1f} % of the energy; "
        f"removed {100 * min(shares):.0f} to {100 * max(shares):.0f} % of the updates"
    )
    if drift is None:
        return line
    old = [100 * moved for moved in drift["old"]]
    line += f"; its features moved by {100 * drift['learnt']:.1f} %"
    return line + (f", old ones by {min(old):.1f} to {max(old):.1f} %" if old else "")
