"""Avalanche plugins: pieces that any strategy can use, those of NTK-CL and PEGP among them."""

from avalanche_peftcl.training.plugins.budget import BudgetPlugin
from avalanche_peftcl.training.plugins.drift_compensation import DriftCompensationPlugin
from avalanche_peftcl.training.plugins.feature_replay import FeatureReplayPlugin
from avalanche_peftcl.training.plugins.gradient_projection import GradientProjectionPlugin
from avalanche_peftcl.training.plugins.head import HeadPlugin
from avalanche_peftcl.training.plugins.head_only import HeadOnlyPlugin
from avalanche_peftcl.training.plugins.margin import MarginLossPlugin
from avalanche_peftcl.training.plugins.prototype_contrast import (
    PrototypeContrastPlugin,
    ReleasedContrastPlugin,
)
from avalanche_peftcl.training.plugins.released_projection import ReleasedProjectionPlugin
from avalanche_peftcl.training.plugins.retention import RetentionPlugin
from avalanche_peftcl.training.plugins.running_mean import (
    ReleasedRunningMeanPlugin,
    RunningMeanPlugin,
)
from avalanche_peftcl.training.plugins.task_orthogonality import (
    ReleasedOrthogonalityPlugin,
    TaskOrthogonalityPlugin,
)
from avalanche_peftcl.training.plugins.text_retrieval import TextRetrievalPlugin

__all__ = [
    "BudgetPlugin",
    "DriftCompensationPlugin",
    "FeatureReplayPlugin",
    "GradientProjectionPlugin",
    "HeadOnlyPlugin",
    "HeadPlugin",
    "MarginLossPlugin",
    "PrototypeContrastPlugin",
    "ReleasedContrastPlugin",
    "ReleasedOrthogonalityPlugin",
    "ReleasedProjectionPlugin",
    "ReleasedRunningMeanPlugin",
    "RetentionPlugin",
    "RunningMeanPlugin",
    "TaskOrthogonalityPlugin",
    "TextRetrievalPlugin",
]
