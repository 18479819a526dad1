"""What a gradient projection tells of an experience, in words and to the host's loggers."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from avalanche_peftcl.training.publishing import publish

_TOLD: dict[str, Callable[[list[float]], float]] = {
    "size": sum,
    "captured_energy": min,
    "removed_share": fmean,
}


def tell(
    strategy: Any, plugin: Any, sites: Sequence[Mapping[str, Any]], *, log_sites: bool
) -> None:
    """Tell the host's loggers of an experience: all sites in one value a kind.

    They are the number of protected directions, the least share of the energy that they hold at a
    site, and the mean share of the updates that was removed.

    Args:
        strategy: Which trains.
        plugin: Which projects.
        sites: See :func:`in_a_line`, each with its name.
        log_sites: Whether there is a value of each site too.
    """
    for key, of_all in _TOLD.items():
        name = f"Projection_{key.title()}"
        publish(strategy, plugin, name, of_all([site[key] for site in sites]))
        for site in sites if log_sites else ():
            publish(strategy, plugin, name, site[key], of=site["site"])


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
