"""A small backbone, benchmark and strategy for the tests of PEGP."""

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl.benchmarks import make_benchmark
from avalanche_peftcl.models import InputConfig, PEFTModel
from avalanche_peftcl.models.modules.attention_adapter import build_attention_adapters
from avalanche_peftcl.models.modules.lora import build_lora
from avalanche_peftcl.models.modules.prefix import build_prefix
from avalanche_peftcl.models.modules.prompt import build_prompt
from avalanche_peftcl.testing import toy_backbone, toy_images
from avalanche_peftcl.training import PEGP

# wide enough that some images leave room to learn
ROOMY = {
    "adapter": lambda b: build_attention_adapters(backbone=b, r=32),
    "lora": lambda b: build_lora(backbone=b, r=32),
    "prefix": lambda b: build_prefix(backbone=b, length=32),
    "prompt": lambda b: build_prompt(
        backbone=b, length=48, init_bound=1.0, against="queries", project_values=True
    ),
}


@pytest.fixture
def sharp():
    """A ViT of 5 tokens, 64 dimensions and 2 heads whose attention is far from uniform."""
    backbone = toy_backbone(img_size=8, embed_dim=64, num_heads=2)
    with torch.no_grad():
        for block in backbone.blocks:
            block.attn.qkv.weight.mul_(8)
            block.attn.proj.weight.mul_(8)
    return backbone


@pytest.fixture
def small_benchmark():
    """Build three experiences of images of 8 pixels, 5 tokens each."""

    def small(scenario="class", *, per_class=1, **options):
        train, test = toy_images(6, per_class), toy_images(6, 3, seed=1)
        defaults = {"classes_per_experience": (2, 2, 2)} if scenario != "domain" else {}
        return make_benchmark(
            train,
            test,
            input_config=InputConfig(img_size=8),
            scenario=scenario,
            **(defaults | {"augment": "none", "class_order": list(range(6))} | options),
        )

    return small


@pytest.fixture
def make_pegp():
    """Build PEGP on a backbone, with a roomy branch of this kind or the one a function builds."""

    def make(backbone, branch="adapter", *, seed=0, lr=0.01, optimizer=torch.optim.Adam, **options):
        torch.manual_seed(seed)
        build = ROOMY[branch] if isinstance(branch, str) else branch
        model = PEFTModel(backbone, build(backbone))
        defaults = {"train_mb_size": 2, "train_epochs": 3, "head_epochs": 1, "merge_epochs": 0}
        defaults |= {"threshold": 1.0, "n_samples": None, "evaluator": EvaluationPlugin()}
        defaults |= options
        return PEGP(model=model, optimizer=optimizer(model.parameters(), lr=lr), **defaults)

    return make
