"""Every strategy built in keeps the contract that is shipped to method authors."""

from functools import partial

import pytest
import torch

from avalanche_peftcl.models import NTKCLModel, build_zero_shot, build_zero_shot_ridge
from avalanche_peftcl.models.branch import build_frozen
from avalanche_peftcl.models.modules.attention_adapter import build_attention_adapters
from avalanche_peftcl.models.modules.lora import build_lora
from avalanche_peftcl.models.modules.prefix import build_prefix
from avalanche_peftcl.models.modules.prompt import build_prompt
from avalanche_peftcl.testing import (
    StrategyContract,
    captioned_backbone,
    captioned_benchmark,
    learnable_benchmark,
)
from avalanche_peftcl.testing.probes import outputs, own_accuracy
from avalanche_peftcl.training import NTKCL
from avalanche_peftcl.training.closed_form import build_closed_form
from avalanche_peftcl.training.contrastive import build_contrastive
from avalanche_peftcl.training.joint import build_joint
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.nearest_class_mean import build_nearest_class_mean
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp

QUICK = {"train_epochs": 8, "train_mb_size": 8}  # enough to learn the toys


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


@pytest.mark.slow  # as the recipe above it; the net holds its numbers
class TestReleasedNTKCL(TestNTKCL):
    recipe = "released"


class TestKernelNTKCL(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_ntk_cl(
            backbone=backbone,
            recipe="kernel",
            r=8,
            plugins=plugins,
            evaluator=evaluator,
            optimizer="adam",
            lr=0.02,
            **QUICK,
        )


class TestContrastive(StrategyContract):
    """On captioned toys: an accuracy is image-to-text R@1 among the experience's test images."""

    scenarios = ("task",)

    def backbone(self):
        return captioned_backbone()

    def benchmark(self, scenario):
        return captioned_benchmark()

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_contrastive(
            backbone=backbone,
            plugins=plugins,
            evaluator=evaluator,
            lr=0.01,
            train_epochs=8,
            train_mb_size=12,
        )

    @pytest.mark.parametrize("scenario", ["task"])
    def test_learns(self, scenario):
        """As there, with what the network finds before training for a floor."""
        trial, untrained = self.trial(scenario), self.build()
        tests = list(trial.benchmark.test_stream)
        floors = [own_accuracy(outputs(untrained, test), test) for test in tests]
        learnt, floor = (sum(scores) / len(scores) for scores in (trial.scores, floors))
        assert learnt >= floor + (1 - floor) / 2, f"{learnt:.2f} is learnt, {floor:.2f} is not"


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


@pytest.mark.slow  # the closed form below with another head
class TestNearestClassMean(StrategyContract):
    adapts = False

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_nearest_class_mean(backbone=backbone, plugins=plugins, evaluator=evaluator)


class TestClosedForm(StrategyContract):
    adapts = False

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_closed_form(backbone=backbone, plugins=plugins, evaluator=evaluator)


@pytest.mark.slow  # it trains as the naive strategy does
class TestJoint(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_joint(
            backbone=backbone,
            plugins=plugins,
            evaluator=evaluator,
            optimizer="adam",
            lr=0.03,
            **QUICK,
        )


@pytest.mark.slow  # the strategy above without a module
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


@pytest.mark.slow  # another module of the method above
class TestPEGPLoRA(TestPEGP):
    scenarios = ("class",)  # the others are tried with adapters
    module = staticmethod(build_lora)


@pytest.mark.slow  # another module of the method above
class TestPEGPPrefix(TestPEGP):
    scenarios = ("class",)
    # keys and values that start near 0 take longer
    module = partial(build_prefix, length=8, init_bound=1.0)


@pytest.mark.slow  # another module of the method above
class TestPEGPPrompt(TestPEGP):
    scenarios = ("class",)
    module = partial(build_prompt, length=8, init_bound=1.0, blocks=[0, 1])


@pytest.mark.slow  # as the recipe above it; the net holds its numbers
class TestReleasedPEGP(TestPEGP):
    recipe = "released"


class TestReleasedPEGPLoRA(TestPEGPLoRA):
    recipe = "released"


class OnTexts(StrategyContract):
    """On a network of images and texts, by the names of classes."""

    build_head = staticmethod(build_zero_shot)

    def backbone(self):
        return captioned_backbone(blind=self.adapts)

    def benchmark(self, scenario):
        return learnable_benchmark(
            scenario,
            per_class=8 if scenario == "domain" else 12,
            class_names=["bee", "cat", "dog", "fox"],
        )

    def head(self, backbone):
        return lambda width: self.build_head(in_features=width, backbone=backbone)


@pytest.mark.slow  # the method above with another head
class TestPEGPOnTexts(OnTexts):
    scenarios = ("class",)

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_pegp(
            backbone=backbone,
            head=self.head(backbone),
            plugins=plugins,
            evaluator=evaluator,
            lr=0.03,
            n_samples=8,
            merge_epochs=1,
            **QUICK,
        )


@pytest.mark.slow  # another head, which trains proxies
class TestNaiveRidgeOnTexts(OnTexts):
    scenarios = ("class", "task")
    build_head = staticmethod(build_zero_shot_ridge)

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_naive(
            backbone=backbone,
            head=self.head(backbone),
            plugins=plugins,
            evaluator=evaluator,
            optimizer="adam",
            lr=0.03,
            **QUICK,
        )


class TestClosedFormOnTexts(OnTexts):
    scenarios = ("class", "task")
    adapts = False
    build_head = staticmethod(build_zero_shot_ridge)

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_closed_form(
            backbone=backbone, head=self.head(backbone), plugins=plugins, evaluator=evaluator
        )
