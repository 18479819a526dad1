"""Everything built in keeps the contracts that are shipped to method authors."""

import pytest
import torch

from avalanche_peftcl.benchmarks.sources.digits import digits
from avalanche_peftcl.models import AdapterBranch, PatchPromptBranch
from avalanche_peftcl.models.backbones.glyph import vit_glyph
from avalanche_peftcl.models.modules.adapter import build_adapters
from avalanche_peftcl.models.modules.patch_prompt import build_patch_prompts
from avalanche_peftcl.testing import (
    BackboneContract,
    BenchmarkContract,
    BranchContract,
    StrategyContract,
    toy_backbone,
)
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.nearest_class_mean import build_nearest_class_mean
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp


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


class TestReleasedNTKCL(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_ntk_cl(
            backbone=backbone,
            plugins=plugins,
            evaluator=evaluator,
            recipe="released",
            train_epochs=1,
            train_mb_size=8,
        )


class TestCorrectedNTKCL(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_ntk_cl(
            backbone=backbone,
            plugins=plugins,
            evaluator=evaluator,
            train_epochs=1,
            train_mb_size=8,
        )


class TestNaive(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_naive(
            backbone=backbone,
            plugins=plugins,
            evaluator=evaluator,
            train_epochs=1,
            train_mb_size=8,
        )


class TestNearestClassMean(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_nearest_class_mean(backbone=backbone, plugins=plugins, evaluator=evaluator)


class TestPEGP(StrategyContract):
    peft, recipe = "adapter", "corrected"

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_pegp(
            backbone=backbone,
            plugins=plugins,
            evaluator=evaluator,
            peft=self.peft,
            recipe=self.recipe,
            r=3,
            length=4,
            n_samples=4,
            train_epochs=2,
            head_epochs=1,
            merge_epochs=1,
            train_mb_size=8,
        )


class TestPEGPLoRA(TestPEGP):
    peft = "lora"


class TestPEGPPrefix(TestPEGP):
    peft = "prefix"


class TestPEGPPrompt(TestPEGP):
    peft = "prompt"


class TestReleasedPEGP(TestPEGP):
    recipe = "released"


class TestReleasedPEGPLoRA(TestPEGP):
    peft, recipe = "lora", "released"


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


def test_a_contract_notices_a_prediction_that_leans_on_its_minibatch():
    class Leaks(TestNaive):
        def create_strategy(self, backbone, **options):
            strategy = super().create_strategy(backbone, **options)
            forward = strategy.model.forward
            strategy.forward = lambda: (
                forward(strategy.mb_x - strategy.mb_x.mean(0)).roll(
                    int(strategy.mb_x.shape[0] == 1), dims=1
                )
                if not strategy.is_training
                else type(strategy).forward(strategy)
            )
            return strategy

    with pytest.raises(AssertionError):
        Leaks().test_prediction_is_independent_of_the_minibatch()


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
