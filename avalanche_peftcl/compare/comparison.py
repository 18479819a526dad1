"""From folders with run records to methods, tests between them, and what was left out and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from avalanche_peftcl.compare.alike import Difference, protocol_differences, same_streams
from avalanche_peftcl.compare.methods import (
    QUANTITIES,
    Method,
    Quantity,
    each_floor_once,
    further_quantities,
    gather,
)
from avalanche_peftcl.compare.published import Quoted, quoted_beside
from avalanche_peftcl.compare.records import LeftOut, find_records, read_run
from avalanche_peftcl.compare.statistics import PairedTest, holm, paired_t_test
from avalanche_peftcl.errors import ConfigError, ProtocolError
from avalanche_peftcl.runs.record import RunRecord

TESTED = tuple(
    quantity
    for quantity in QUANTITIES
    if quantity.key in ("average_incremental_accuracy", "last_accuracy")
)
_MACHINE = ("device", "device_name", "threads")  # what times depend on


@dataclass(frozen=True)
class PairTest:
    """A paired test between two methods.

    Args:
        first: One method.
        second: The other.
        quantity: What they are compared in.
        result: The test on the seeds that both have.
        corrected: Its p-value after Holm's correction over all pairs that have one, for this
            quantity; ``None`` without a p-value.
    """

    first: Method
    second: Method
    quantity: Quantity
    result: PairedTest
    corrected: float | None


@dataclass(frozen=True)
class Comparison:
    """Everything that is shown.

    Args:
        methods: In the order of their first run.
        tests: Of every pair of methods, in every quantity that is tested.
        differences: Where the runs do not share one protocol; none unless that was asked for.
        versions: Packages of which runs have several versions, and points in which the machines
            differ: name and versions.
        incomplete: Runs that were not finished, left out.
        unreadable: Records that could not be read, left out.
        quoted: Published numbers of the same protocol; ``None`` if they were not asked for.
    """

    methods: tuple[Method, ...]
    tests: tuple[PairTest, ...]
    differences: tuple[Difference, ...] = ()
    versions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    incomplete: tuple[LeftOut, ...] = ()
    unreadable: tuple[LeftOut, ...] = ()
    quoted: tuple[Quoted, ...] | None = None

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """All runs that are compared."""
        return tuple(run for method in self.methods for run in method.runs)

    @property
    def further(self) -> tuple[Quantity, ...]:
        """Metrics that runs were asked for beside their own."""
        return further_quantities(self.runs)


def compare_runs(
    folders: Sequence[str | Path], *, force: bool = False, published: bool = False
) -> Comparison:
    """Compare the runs in ``folders``, and their floors, each once, see :func:`.floor_runs`.

    Args:
        folders: Run records, or folders with run records at any depth below them.
        force: Compare runs that do not share one protocol, instead of refusing.
        published: Look for published numbers of the same protocol.

    Returns:
        The comparison of all complete runs; those that are not, and records that cannot be read,
        are in it with their reason.

    Raises:
        ConfigError: A folder without a run record, no complete run at all, or the same method twice
            with the same seed.
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
    methods = tuple(gather(runs))
    return Comparison(
        methods,
        paired_tests(methods),
        differences,
        _versions(runs),
        incomplete,
        unreadable,
        quoted_beside(runs) if published else None,
    )


def paired_tests(methods: Sequence[Method]) -> tuple[PairTest, ...]:
    """Test every pair of ``methods`` on the seeds that both have.

    Args:
        methods: What to compare.

    Returns:
        For average and last accuracy a test of each pair. Pairs whose runs of one seed did not see
        the same stream have no p-value, and a reason.
    """
    tests: list[PairTest] = []
    alike = same_streams([run for method in methods for run in method.runs])  # so any two are
    for quantity in TESTED:
        pairs = list(combinations(methods, 2))
        results = [_test(first, second, quantity, alike=alike) for first, second in pairs]
        defined = [result.p_value for result in results if result.p_value is not None]
        corrected = iter(holm(defined))
        tests += [
            PairTest(first, second, quantity, result, None if result.reason else next(corrected))
            for (first, second), result in zip(pairs, results, strict=True)
        ]
    return tuple(tests)


def _test(first: Method, second: Method, quantity: Quantity, *, alike: bool) -> PairedTest:
    a, b = first.by_seed(quantity), second.by_seed(quantity)
    seeds = sorted(a.keys() & b.keys())
    paired = [run for run in first.runs + second.runs if run.record.seed in seeds]
    if not alike and not same_streams(paired):
        return PairedTest(None, reason="not the same streams")
    if not (a and b):  # as the average accuracy of joint training is
        whom = "the second" if a else "the first" if b else "both"
        return PairedTest(None, reason=f"undefined for {whom}")
    return paired_t_test([a[seed] for seed in seeds], [b[seed] for seed in seeds])


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
