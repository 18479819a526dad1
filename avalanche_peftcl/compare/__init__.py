"""Compare run records: methods over seeds, tests between them, published numbers beside them."""

from avalanche_peftcl.compare.comparison import Comparison, PairTest, compare_runs

__all__ = ["Comparison", "PairTest", "compare_runs"]
