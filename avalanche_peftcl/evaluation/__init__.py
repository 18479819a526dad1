"""Plugin metrics for any Avalanche strategy, benchmark and logger."""

from avalanche_peftcl.evaluation.accuracy_matrix import AccuracyMatrix, accuracy_matrix_metrics
from avalanche_peftcl.evaluation.cost import CostMetric, cost_metrics

__all__ = ["AccuracyMatrix", "CostMetric", "accuracy_matrix_metrics", "cost_metrics"]
