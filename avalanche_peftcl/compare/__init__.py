"""Compare run records: methods over seeds, tests between them, published numbers beside them.

The room is a function as well, :func:`.compare`, so that ``from avalanche_peftcl import compare``
is one.
"""

import sys
from types import ModuleType
from typing import Any

from avalanche_peftcl.compare.command import compare_and_show
from avalanche_peftcl.compare.comparison import Comparison, compare_runs
from avalanche_peftcl.compare.pairs import PairTest
from avalanche_peftcl.compare.result import ComparisonResult, compare
from avalanche_peftcl.compare.statistics import (
    Correlation,
    Estimate,
    PairedTest,
    correlation,
    paired_t_test,
)

__all__ = [
    "Comparison",
    "ComparisonResult",
    "Correlation",
    "Estimate",
    "PairTest",
    "PairedTest",
    "compare",
    "compare_and_show",
    "compare_runs",
    "correlation",
    "paired_t_test",
]


class _Callable(ModuleType):
    def __call__(self, *runs: Any, **options: Any) -> ComparisonResult:
        return compare(*runs, **options)


sys.modules[__name__].__class__ = _Callable
