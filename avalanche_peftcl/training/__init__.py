"""Avalanche strategies for parameter-efficient continual learning."""

from avalanche_peftcl.training.arguments import TemplateArguments
from avalanche_peftcl.training.contrastive import Contrastive
from avalanche_peftcl.training.feature_pass import draw, feature_pass
from avalanche_peftcl.training.forgetting import forget_experience
from avalanche_peftcl.training.joints import Features
from avalanche_peftcl.training.losses import add_loss
from avalanche_peftcl.training.ntk_cl import NTKCL
from avalanche_peftcl.training.optimizers import OptimizerName, annealing, make_optimizer
from avalanche_peftcl.training.options import FeatureOptions, StrategyOptions, TrainingOptions
from avalanche_peftcl.training.pegp import PEGP
from avalanche_peftcl.training.plugins.budget import out_of_time
from avalanche_peftcl.training.streams import ends_experience, starts_experience
from avalanche_peftcl.training.template import PEFTTemplate

__all__ = [
    "NTKCL",
    "PEGP",
    "Contrastive",
    "FeatureOptions",
    "Features",
    "OptimizerName",
    "PEFTTemplate",
    "StrategyOptions",
    "TemplateArguments",
    "TrainingOptions",
    "add_loss",
    "annealing",
    "draw",
    "ends_experience",
    "feature_pass",
    "forget_experience",
    "make_optimizer",
    "out_of_time",
    "starts_experience",
]
