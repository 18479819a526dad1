"""Avalanche strategies for parameter-efficient continual learning."""

from avalanche_peftcl.training.arguments import TemplateArguments
from avalanche_peftcl.training.feature_pass import Features, draw, feature_pass
from avalanche_peftcl.training.losses import add_loss
from avalanche_peftcl.training.ntk_cl import NTKCL
from avalanche_peftcl.training.options import StrategyOptions, TrainingOptions
from avalanche_peftcl.training.pegp import PEGP
from avalanche_peftcl.training.template import PEFTTemplate

__all__ = [
    "NTKCL",
    "PEGP",
    "Features",
    "PEFTTemplate",
    "StrategyOptions",
    "TemplateArguments",
    "TrainingOptions",
    "add_loss",
    "draw",
    "feature_pass",
]
