"""Avalanche strategies for parameter-efficient continual learning."""

from avalanche_peftcl.training.ntk_cl import NTKCL
from avalanche_peftcl.training.pegp import PEGP
from avalanche_peftcl.training.template import PEFTTemplate

__all__ = ["NTKCL", "PEGP", "PEFTTemplate"]
