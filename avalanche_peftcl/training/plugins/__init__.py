"""Avalanche plugins: the pieces of NTK-CL that other strategies can use."""

from avalanche_peftcl.training.plugins.prototype_contrast import (
    PrototypeContrastPlugin,
    ReleasedContrastPlugin,
)
from avalanche_peftcl.training.plugins.prototypes import PrototypePlugin
from avalanche_peftcl.training.plugins.retention import RetentionPlugin
from avalanche_peftcl.training.plugins.running_mean import (
    ReleasedRunningMeanPlugin,
    RunningMeanPlugin,
)
from avalanche_peftcl.training.plugins.task_orthogonality import (
    ReleasedOrthogonalityPlugin,
    TaskOrthogonalityPlugin,
)

__all__ = [
    "PrototypeContrastPlugin",
    "PrototypePlugin",
    "ReleasedContrastPlugin",
    "ReleasedOrthogonalityPlugin",
    "ReleasedRunningMeanPlugin",
    "RetentionPlugin",
    "RunningMeanPlugin",
    "TaskOrthogonalityPlugin",
]
