"""Networks: a frozen backbone, adapted passes through it, and heads that grow."""

from avalanche_peftcl.models.backbones.backbone import (
    Backbone,
    ContextSide,
    InputConfig,
    TextSide,
)
from avalanche_peftcl.models.backbones.dual_encoder import create_dual_encoder
from avalanche_peftcl.models.backbones.embedded import Embedded
from avalanche_peftcl.models.backbones.glyph import vit_glyph
from avalanche_peftcl.models.backbones.image_text import ImageTextBackbone
from avalanche_peftcl.models.backbones.open_clip import create_open_clip
from avalanche_peftcl.models.backbones.text_tower import TextTower
from avalanche_peftcl.models.backbones.timm_vit import create_backbone
from avalanche_peftcl.models.backbones.vit import ViTBackbone
from avalanche_peftcl.models.block_features import FeatureKind, block_features
from avalanche_peftcl.models.branch import Branch, FrozenBranch, build_frozen
from avalanche_peftcl.models.experience_parts import ExperienceParts
from avalanche_peftcl.models.exportable import BuildSpec, export_spec, exportable
from avalanche_peftcl.models.further_keys import attend_with_prefix, attend_with_prompts
from avalanche_peftcl.models.heads.cosine import CosineHead, build_cosine
from avalanche_peftcl.models.heads.drift import Drift, LinearDrift, ShiftDrift
from avalanche_peftcl.models.heads.exact_kernel_ridge import ExactKernelRidgeHead
from avalanche_peftcl.models.heads.gaussian import GaussianHead, build_gaussian
from avalanche_peftcl.models.heads.head import Head, HeadBuilder
from avalanche_peftcl.models.heads.kernel_ridge import KernelRidgeHead, build_kernel_ridge
from avalanche_peftcl.models.heads.lda import LDAHead, build_lda
from avalanche_peftcl.models.heads.linear import LinearHead, build_linear
from avalanche_peftcl.models.heads.prototypes import PrototypeHead, build_prototypes
from avalanche_peftcl.models.heads.random_ridge import RandomRidgeHead, build_random_ridge
from avalanche_peftcl.models.heads.regression import RegressionHead
from avalanche_peftcl.models.heads.ridge import RidgeHead, build_ridge
from avalanche_peftcl.models.heads.rows import ClassRows, Growing
from avalanche_peftcl.models.heads.text_context import TextContextHead, build_text_context
from avalanche_peftcl.models.heads.zero_shot import ClassTexts, ZeroShotHead, build_zero_shot
from avalanche_peftcl.models.heads.zero_shot_ridge import ZeroShotRidgeHead, build_zero_shot_ridge
from avalanche_peftcl.models.modules.adapter import Adapter, AdapterBranch, build_adapters
from avalanche_peftcl.models.modules.attention_adapter import (
    AttentionAdapter,
    AttentionAdapterBranch,
    build_attention_adapters,
)
from avalanche_peftcl.models.modules.choose_blocks import choose_blocks
from avalanche_peftcl.models.modules.full import FullBranch, build_full
from avalanche_peftcl.models.modules.injection import TunedBranch, view_of
from avalanche_peftcl.models.modules.linear_adapter import (
    LinearAdapterBranch,
    build_linear_adapter,
)
from avalanche_peftcl.models.modules.lora import LoRABranch, build_lora
from avalanche_peftcl.models.modules.patch_prompt import (
    PatchPrompt,
    PatchPromptBranch,
    build_patch_prompts,
)
from avalanche_peftcl.models.modules.peft_tuner import build_peft_tuner
from avalanche_peftcl.models.modules.prefix import PrefixBranch, PrefixTokens, build_prefix
from avalanche_peftcl.models.modules.prompt import PromptBranch, PromptTokens, build_prompt
from avalanche_peftcl.models.modules.tuned_text import TunedText
from avalanche_peftcl.models.networks.dynamic import DynamicModel
from avalanche_peftcl.models.networks.image_encoder import ImageEncoder
from avalanche_peftcl.models.networks.ntk_cl import (
    Fusion,
    NTKCLModel,
    Recipe,
    ReleasedFusion,
    Views,
)
from avalanche_peftcl.models.networks.tuned import PEFTModel
from avalanche_peftcl.models.passes import forward_branches, forward_tokens
from avalanche_peftcl.models.precision import native_bfloat16
from avalanche_peftcl.models.projection.sites import (
    Probe,
    ProjectionSite,
    linear_sites,
    projection_sites,
)
from avalanche_peftcl.models.sections import Sections

__all__ = [
    "Adapter",
    "AdapterBranch",
    "AttentionAdapter",
    "AttentionAdapterBranch",
    "Backbone",
    "Branch",
    "BuildSpec",
    "ClassRows",
    "ClassTexts",
    "ContextSide",
    "CosineHead",
    "Drift",
    "DynamicModel",
    "Embedded",
    "ExactKernelRidgeHead",
    "ExperienceParts",
    "FeatureKind",
    "FrozenBranch",
    "FullBranch",
    "Fusion",
    "GaussianHead",
    "Growing",
    "Head",
    "HeadBuilder",
    "ImageEncoder",
    "ImageTextBackbone",
    "InputConfig",
    "KernelRidgeHead",
    "LDAHead",
    "LinearAdapterBranch",
    "LinearDrift",
    "LinearHead",
    "LoRABranch",
    "NTKCLModel",
    "PEFTModel",
    "PatchPrompt",
    "PatchPromptBranch",
    "PrefixBranch",
    "PrefixTokens",
    "Probe",
    "ProjectionSite",
    "PromptBranch",
    "PromptTokens",
    "PrototypeHead",
    "RandomRidgeHead",
    "Recipe",
    "RegressionHead",
    "ReleasedFusion",
    "RidgeHead",
    "Sections",
    "ShiftDrift",
    "TextContextHead",
    "TextSide",
    "TextTower",
    "TunedBranch",
    "TunedText",
    "ViTBackbone",
    "Views",
    "ZeroShotHead",
    "ZeroShotRidgeHead",
    "attend_with_prefix",
    "attend_with_prompts",
    "block_features",
    "build_adapters",
    "build_attention_adapters",
    "build_cosine",
    "build_frozen",
    "build_full",
    "build_gaussian",
    "build_kernel_ridge",
    "build_lda",
    "build_linear",
    "build_linear_adapter",
    "build_lora",
    "build_patch_prompts",
    "build_peft_tuner",
    "build_prefix",
    "build_prompt",
    "build_prototypes",
    "build_random_ridge",
    "build_ridge",
    "build_text_context",
    "build_zero_shot",
    "build_zero_shot_ridge",
    "choose_blocks",
    "create_backbone",
    "create_dual_encoder",
    "create_open_clip",
    "export_spec",
    "exportable",
    "forward_branches",
    "forward_tokens",
    "linear_sites",
    "native_bfloat16",
    "projection_sites",
    "view_of",
    "vit_glyph",
]
