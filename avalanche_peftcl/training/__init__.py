"""Avalanche strategies for parameter-efficient continual learning."""

from avalanche_peftcl.training.checkpoint import maybe_load_checkpoint, save_checkpoint
from avalanche_peftcl.training.ntk_cl import NTKCL
from avalanche_peftcl.training.pegp import PEGP
from avalanche_peftcl.training.template import PEFTTemplate

__all__ = ["NTKCL", "PEGP", "PEFTTemplate", "maybe_load_checkpoint", "save_checkpoint"]
