"""From folders with run records to methods, tests between them, and what was left out and why."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avalanche_peftcl.compare.alike import Difference, protocol_differences
from avalanche_peftcl.compare.methods import (
    QUANTITIES,
    Method,
    Quantity,
    each_floor_once,
    further_quantities,
    gather,
)
from avalanche_peftcl.compare.pairs import PairTest, called, paired_tests
from avalanche_peftcl.compare.published import Quoted, quoted_beside
from avalanche_peftcl.compare.records import LeftOut, find_records, read_run
from avalanche_peftcl.errors import ConfigError, ProtocolError
from avalanche_peftcl.registry.wording import join, show
from avalanche_peftcl.runs.record import RunRecord

SortBy = Literal["average", "last", "forgetting"]
_SORTED: dict[SortBy, tuple[str, int]] = {  # quantity, and whether the largest comes first
    "average": ("average_incremental_accuracy", -1),
    "last": ("last_accuracy", -1),
    "forgetting": ("forgetting", 1),
}
_MACHINE = ("device", "device_name", "threads")  # what times depend on


@dataclass(frozen=True)
class Comparison:
    """Everything that is shown.

    Args:
        methods: In the order of their first run, unless another one was asked for.
        tests: Of every pair of methods, or with one of them, in every quantity that is tested.
        differences: Where the runs do not share one protocol; none unless that was asked for.
        versions: Packages of which runs have several versions, and points in which the machines
            differ: name and versions.
        incomplete: Runs that were not finished, left out.
        unreadable: Records that could not be read, left out.
        quoted: Published numbers of the same protocol; ``None`` if they were not asked for.
        against: The method that all others are tested against; ``None``, each against each.
    """

    methods: tuple[Method, ...]
    tests: tuple[PairTest, ...]
    differences: tuple[Difference, ...] = ()
    versions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    incomplete: tuple[LeftOut, ...] = ()
    unreadable: tuple[LeftOut, ...] = ()
    quoted: tuple[Quoted, ...] | None = None
    against: Method | None = None

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All runs that are compared."""
        return tuple(run for method in self.methods for run in method.runs)

    @property
    def further(self) -> tuple[Quantity, ...]:
        """Metrics that runs were asked for beside their own."""
        return further_quantities(self.runs)


def compare_runs(
    folders: Sequence[str | Path],
    *,
    force: bool = False,
    published: bool = False,
    against: str | None = None,
    sort: SortBy | None = None,
) -> Comparison:
    """Compare the runs in ``folders``, and their floors, each once, see :func:`.floor_runs`.

    Args:
        folders: Run records, or folders with run records at any depth below them.
        force: Compare runs that do not share one protocol, instead of refusing.
        published: Look for published numbers of the same protocol.
        against: The method that all others are tested against, by its label or a part that only it
            has; ``None`` tests every pair. Holm's correction is over the pairs that are tested.
        sort: The accuracy by which methods are sorted, the best first; those that have none, as
            joint training has no average, come last. ``None`` keeps the order of first runs.

    Returns:
        The comparison of all complete runs; those that are not, and records that cannot be read,
        are in it with their reason.

    Raises:
        ConfigError: A folder without a run record, no complete run at all, the same method twice
            with the same seed, or ``against`` is no method, or several.
        ProtocolError: Runs that do not share one protocol, unless ``force``.
    """
    read = [read_run(folder) for folder in find_records([Path(folder) for folder in folders])]
    unreadable = tuple(one for one in read if isinstance(one, LeftOut))
    readable = [one for one in read if isinstance(one, RunRecord)]
    runs = each_floor_once([run for run in readable if run.record.complete])
    incomplete = tuple(
        LeftOut(
            run.folder,
            f"{run.record.experiences.finished} of {run.record.experiences.total} experiences "
            "are finished",
        )
        for run in readable
        if not run.record.complete
    )
    if not runs:
        reasons = "".join(f"\n  {left.folder}: {left.reason}" for left in incomplete + unreadable)
        raise ConfigError(f"there is no complete run to compare:{reasons}")
    differences = protocol_differences(runs)
    if differences and not force:
        raise ProtocolError(
            "these runs do not share one protocol, so their numbers do not belong side by side:"
            + "".join(f"\n  {difference}" for difference in differences)
            + "\nCompare those that do, or all of them nevertheless with --force (in Python, "
            "force=True)"
        )
    methods = _sorted(gather(runs), sort)
    chosen = None if against is None else called(against, methods)
    return Comparison(
        methods,
        paired_tests(methods, chosen),
        differences,
        _versions(runs),
        incomplete,
        unreadable,
        quoted_beside(runs) if published else None,
        chosen,
    )


def _sorted(methods: Sequence[Method], sort: SortBy | None) -> tuple[Method, ...]:
    if sort is None:
        return tuple(methods)
    if sort not in _SORTED:
        raise ConfigError(f"sort={show(sort)} must be one of {join(map(repr, _SORTED))}, or None")
    key, sign = _SORTED[sort]
    quantity = next(each for each in QUANTITIES if each.key == key)

    def place(method: Method) -> float:
        estimate = method.estimate(quantity)
        return math.inf if estimate is None else sign * estimate.mean

    return tuple(sorted(methods, key=place))


def _versions(runs: Sequence[RunRecord]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return what ``runs`` were made with in several versions."""
    seen: dict[str, set[str]] = {}
    for run in runs:
        providers = {part.provider: part.version for part in run.record.components}
        platform = {key: str(run.record.platform.get(key)) for key in _MACHINE}
        for name, version in (run.record.versions | providers | platform).items():
            seen.setdefault(name, set()).add(version)
    return tuple(
        (name, tuple(sorted(versions)))
        for name, versions in sorted(seen.items())
        if len(versions) > 1
    )
