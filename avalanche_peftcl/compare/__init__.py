"""Compare run records: methods over seeds, tests between them, published numbers beside them."""

from avalanche_peftcl.compare.command import compare_and_show
from avalanche_peftcl.compare.comparison import Comparison, PairTest, compare_runs
from avalanche_peftcl.compare.statistics import (
    Correlation,
    Estimate,
    PairedTest,
    correlation,
    paired_t_test,
)

__all__ = [
    "Comparison",
    "Correlation",
    "Estimate",
    "PairTest",
    "PairedTest",
    "compare_and_show",
    "compare_runs",
    "correlation",
    "paired_t_test",
]
