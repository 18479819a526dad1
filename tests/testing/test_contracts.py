"""Everything built in keeps the contracts that are shipped to method authors."""

from functools import partial

import pytest
import torch

from avalanche_peftcl.benchmarks.sources.digits import digits
from avalanche_peftcl.models import AdapterBranch, NTKCLModel, PatchPromptBranch
from avalanche_peftcl.models.backbones.glyph import vit_glyph
from avalanche_peftcl.models.branch import build_frozen
from avalanche_peftcl.models.modules.adapter import build_adapters
from avalanche_peftcl.models.modules.attention_adapter import build_attention_adapters
from avalanche_peftcl.models.modules.lora import build_lora
from avalanche_peftcl.models.modules.patch_prompt import build_patch_prompts
from avalanche_peftcl.models.modules.prefix import build_prefix
from avalanche_peftcl.models.modules.prompt import build_prompt
from avalanche_peftcl.testing import (
    BackboneContract,
    BenchmarkContract,
    BranchContract,
    StrategyContract,
    toy_backbone,
)
from avalanche_peftcl.training import NTKCL
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.nearest_class_mean import build_nearest_class_mean
from avalanche_peftcl.training.pegp import build_pegp

QUICK = {"train_epochs": 8, "train_mb_size": 8}  # enough to learn the toys


class TestToyBackbone(BackboneContract):
    def create_backbone(self):
        return toy_backbone()


class TestGlyph(BackboneContract):
    def create_backbone(self):
        return vit_glyph()


class TestAdapters(BranchContract):
    def create_branch(self, backbone):
        return build_adapters(backbone=backbone)


class TestPatchPrompts(BranchContract):
    identity_at_start = False
    # prompts of the last block come after the last attention; LN takes the mean of b away
    dead_parameters = tuple(
        f"prompts.2.{name}" for name in ("mix.weight", "mix.bias", "norm.weight", "norm.bias")
    )

    def create_branch(self, backbone):
        return build_patch_prompts(backbone=backbone, length=4)


class TestNTKCL(StrategyContract):
    recipe = "corrected"

    def create_strategy(self, backbone, *, plugins, evaluator):
        model = NTKCLModel(backbone, recipe=self.recipe, r=8, prompt_length=4)
        return NTKCL(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=0.02),
            plugins=plugins,
            evaluator=evaluator,
            **QUICK,
        )


class TestReleasedNTKCL(TestNTKCL):
    recipe = "released"


class TestNaive(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_naive(
            backbone=backbone,
            plugins=plugins,
            evaluator=evaluator,
            optimizer="adam",
            lr=0.03,
            **QUICK,
        )


class TestNearestClassMean(StrategyContract):
    adapts = False

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_nearest_class_mean(backbone=backbone, plugins=plugins, evaluator=evaluator)


class TestLinearProbe(TestNaive):
    adapts = False

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_naive(
            backbone=backbone,
            module=build_frozen(backbone=backbone),
            plugins=plugins,
            evaluator=evaluator,
            lr=0.02,
            **QUICK,
        )


class TestPEGP(StrategyContract):
    module, recipe, lr = staticmethod(build_attention_adapters), "corrected", 0.03

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_pegp(
            backbone=backbone,
            module=self.module(backbone=backbone),
            plugins=plugins,
            evaluator=evaluator,
            recipe=self.recipe,
            lr=self.lr,
            n_samples=8,
            head_epochs=1,
            merge_epochs=1,
            **QUICK,
        )


class TestPEGPLoRA(TestPEGP):
    scenarios = ("class",)  # the others are tried with adapters
    module = staticmethod(build_lora)


class TestPEGPPrefix(TestPEGP):
    scenarios = ("class",)
    # keys and values that start near 0 take longer
    module = partial(build_prefix, length=8, init_bound=1.0)


class TestPEGPPrompt(TestPEGP):
    scenarios = ("class",)
    module = partial(build_prompt, length=8, init_bound=1.0, blocks=[0, 1])


class TestReleasedPEGP(TestPEGP):
    recipe = "released"


class TestReleasedPEGPLoRA(TestPEGPLoRA):
    recipe = "released"


class TestDigits(BenchmarkContract):
    def create_benchmark(self, input_config, *, seed):
        return digits(input_config=input_config, seed=seed, n_experiences=5)


class TestDigitsTask(BenchmarkContract):
    def create_benchmark(self, input_config, *, seed):
        return digits(input_config=input_config, seed=seed, n_experiences=5, scenario="task")


def test_a_contract_notices_a_backbone_that_trains():
    class Trains(BackboneContract):
        def create_backbone(self):
            backbone = toy_backbone()
            backbone.requires_grad_(True)
            return backbone

    with pytest.raises(AssertionError):
        Trains().test_frozen()


def test_a_contract_notices_a_module_that_is_not_the_identity():
    class Prompts(BranchContract):
        def create_branch(self, backbone):
            return PatchPromptBranch(backbone.num_tokens, backbone.embed_dim, backbone.depth)

    with pytest.raises(AssertionError):
        Prompts().test_start()


def test_a_contract_notices_a_parameter_without_gradient():
    class Dead(BranchContract):
        def create_branch(self, backbone):
            branch = AdapterBranch(backbone.embed_dim, backbone.depth)
            branch.unused = torch.nn.Parameter(torch.zeros(3))
            return branch

    with pytest.raises(AssertionError, match="unused"):
        Dead().test_gradients()
