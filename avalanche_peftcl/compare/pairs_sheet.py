"""The table of paired tests."""

from avalanche_peftcl.compare.comparison import Comparison
from avalanche_peftcl.compare.pairs import TESTED, PairTest
from avalanche_peftcl.compare.sheets import Scale, cell
from avalanche_peftcl.runs.tables import Sheet

_SHOWN = 45  # pairs of methods: those of ten
_SAID = (
    "Paired two-sided t-tests on the seeds that both methods have: first minus second, mean ± "
    "standard deviation (± half-width of the 95 % confidence interval). p (Holm): corrected over "
    "all {pairs}, for each accuracy on its own."
)


def pairs_sheet(comparison: Comparison) -> Sheet:
    """Return the table of paired tests; of many pairs it says how to see those that matter."""
    columns = ("methods", "accuracy", "seeds", "difference (points)", "t", "p", "p (Holm)")
    tests, pairs = comparison.tests, len(comparison.tests) // len(TESTED)
    against = comparison.against
    if not tests:
        note = "There is one method: nothing to test."
    elif against is not None:
        note = _SAID.format(pairs=f"pairs with {against.label}")
    elif pairs > _SHOWN:
        note = (
            f"{pairs:,} pairs of methods are not shown: with --against METHOD (in Python, "
            "against=) each is tested against one, and p is corrected for these alone. --csv and "
            "--json have all pairs."
        )
        tests = ()
    else:
        note = _SAID.format(pairs="pairs of methods")
    return Sheet("Paired tests", columns, tuple(map(_row, tests)), (), (note,), heads=2)


def p_value(value: float | None) -> str:
    """Return a p-value with two digits.

    Example:
        >>> p_value(0.0312), p_value(0.00001), p_value(None)
        ('0.031', '< 0.0001', '-')
    """
    if value is None:
        return "-"
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}"


def _row(test: PairTest) -> tuple[str, ...]:
    result, points = test.result, Scale(100.0, "points", 1)
    p = p_value(result.p_value)
    return (
        f"{test.first.label} / {test.second.label}",
        test.quantity.title.removesuffix(" accuracy"),
        str(result.difference.count if result.difference else 0),
        cell(result.difference, points),
        "-" if result.statistic is None else f"{result.statistic:.2f}",
        f"{p} ({result.reason})" if result.reason else p,
        p_value(test.corrected),
    )
