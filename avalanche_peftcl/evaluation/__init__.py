"""Plugin metrics for any Avalanche strategy, benchmark and logger."""

from avalanche_peftcl.evaluation.accuracy_matrix import AccuracyMatrix, accuracy_matrix_metrics
from avalanche_peftcl.evaluation.any_time import AnyTimeMetric, any_time_metrics
from avalanche_peftcl.evaluation.cost import CostMetric, cost_metrics
from avalanche_peftcl.evaluation.ntk import NTKMetric, ntk_metrics
from avalanche_peftcl.evaluation.released import (
    ReleasedAccuracyMetric,
    released_accuracy_metrics,
)
from avalanche_peftcl.evaluation.retrieval import RetrievalMetric, retrieval_metrics
from avalanche_peftcl.evaluation.wrong_matches import WrongMatchesMetric, wrong_matches_metrics
from avalanche_peftcl.evaluation.zero_shot_retention import (
    ZeroShotRetentionMetric,
    zero_shot_retention_metrics,
)
from avalanche_peftcl.models.counting import uncounted_passes

__all__ = [
    "AccuracyMatrix",
    "AnyTimeMetric",
    "CostMetric",
    "NTKMetric",
    "ReleasedAccuracyMetric",
    "RetrievalMetric",
    "WrongMatchesMetric",
    "ZeroShotRetentionMetric",
    "accuracy_matrix_metrics",
    "any_time_metrics",
    "cost_metrics",
    "ntk_metrics",
    "released_accuracy_metrics",
    "retrieval_metrics",
    "uncounted_passes",
    "wrong_matches_metrics",
    "zero_shot_retention_metrics",
]
