"""Networks: a frozen backbone, adapted passes through it, and heads that grow."""

from avalanche_peftcl.models.adapter import Adapter, AdapterBranch
from avalanche_peftcl.models.backbone import Backbone, InputConfig, create_backbone
from avalanche_peftcl.models.branch import Branch, forward_branches
from avalanche_peftcl.models.glyph import vit_glyph
from avalanche_peftcl.models.heads import ClassRows, CosineHead, LinearHead, PrototypeHead
from avalanche_peftcl.models.ntk_cl import Fusion, NTKCLModel, Recipe, ReleasedFusion, Views
from avalanche_peftcl.models.peft_model import PEFTModel, PrototypeModel
from avalanche_peftcl.models.prompt import PatchPrompt, PatchPromptBranch

__all__ = [
    "Adapter",
    "AdapterBranch",
    "Backbone",
    "Branch",
    "ClassRows",
    "CosineHead",
    "Fusion",
    "InputConfig",
    "LinearHead",
    "NTKCLModel",
    "PEFTModel",
    "PatchPrompt",
    "PatchPromptBranch",
    "PrototypeHead",
    "PrototypeModel",
    "Recipe",
    "ReleasedFusion",
    "Views",
    "create_backbone",
    "forward_branches",
    "vit_glyph",
]
