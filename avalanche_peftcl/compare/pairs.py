"""Paired tests between methods."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from avalanche_peftcl.compare.alike import same_streams
from avalanche_peftcl.compare.methods import QUANTITIES, Method, Quantity
from avalanche_peftcl.compare.statistics import PairedTest, holm, paired_t_test
from avalanche_peftcl.errors import ConfigError

TESTED = tuple(
    quantity
    for quantity in QUANTITIES
    if quantity.key in ("average_incremental_accuracy", "last_accuracy")
)


@dataclass(frozen=True)
class PairTest:
    """A paired test between two methods.

    Args:
        first: One method.
        second: The other.
        quantity: What they are compared in.
        result: The test on the seeds that both have.
        corrected: Its p-value after Holm's correction over all tested pairs that have one, for this
            quantity; ``None`` without a p-value.
    """

    first: Method
    second: Method
    quantity: Quantity
    result: PairedTest
    corrected: float | None


def paired_tests(methods: Sequence[Method], against: Method | None = None) -> tuple[PairTest, ...]:
    """Test pairs of ``methods`` on the seeds that both have.

    Args:
        methods: What to compare.
        against: The one that all others are tested against; ``None`` tests every pair.

    Returns:
        For average and last accuracy a test of each pair. Pairs whose runs of one seed did not see
        the same stream have no p-value, and a reason.
    """
    tests: list[PairTest] = []
    alike = same_streams([run for method in methods for run in method.runs])  # so any two are
    pairs = list(combinations(methods, 2))
    if against is not None:
        pairs = [(method, against) for method in methods if method is not against]
    for quantity in TESTED:
        results = [_test(first, second, quantity, alike=alike) for first, second in pairs]
        defined = [result.p_value for result in results if result.p_value is not None]
        corrected = iter(holm(defined))
        tests += [
            PairTest(first, second, quantity, result, None if result.reason else next(corrected))
            for (first, second), result in zip(pairs, results, strict=True)
        ]
    return tuple(tests)


def called(name: str, methods: Sequence[Method]) -> Method:
    """Return the method of a label, or the only one whose label has these words.

    Args:
        name: The label, or a part of it.
        methods: What to choose from.

    Raises:
        ConfigError: If there is none, or several.
    """
    exact = [method for method in methods if method.label == name]
    found = exact or [method for method in methods if name.strip() and name in method.label]
    if len(found) == 1:
        return found[0]
    what = "is a part of several labels" if found else "is the label of no method"
    there = "".join(f"\n  {method.label}" for method in found or methods)
    raise ConfigError(f"--against {name!r} {what} (in Python, against=); give one of{there}")


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
