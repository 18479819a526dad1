"""Plugin metrics for any Avalanche strategy, benchmark and logger."""

from avalanche_peftcl.evaluation.accuracy_matrix import AccuracyMatrix, accuracy_matrix_metrics
from avalanche_peftcl.evaluation.any_time import AnyTimeMetric, any_time_metrics
from avalanche_peftcl.evaluation.cost import CostMetric, cost_metrics
from avalanche_peftcl.evaluation.ntk import NTKMetric, ntk_metrics

__all__ = [
    "AccuracyMatrix",
    "AnyTimeMetric",
    "CostMetric",
    "NTKMetric",
    "accuracy_matrix_metrics",
    "any_time_metrics",
    "cost_metrics",
    "ntk_metrics",
]
