"""The contracts of the core, for each method; they are for a long run of the tests, but for one."""

import pytest
from peftcl_lora.inflora import build_inflora
from peftcl_lora.lae import build_lae
from peftcl_lora.o_lora import build_o_lora
from peftcl_lora.sd_lora import build_sd_lora

from avalanche_peftcl.models import build_lora
from avalanche_peftcl.testing import StrategyContract

FEW_STEPS = {"train_epochs": 8, "train_mb_size": 8, "optimizer": "adam", "lr": 0.01}


@pytest.mark.slow
class TestOLoRA(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_o_lora(backbone=backbone, plugins=plugins, evaluator=evaluator, **FEW_STEPS)


@pytest.mark.slow
class TestInfLoRA(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_inflora(backbone=backbone, plugins=plugins, evaluator=evaluator, **FEW_STEPS)


@pytest.mark.slow
class TestSDLoRA(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_sd_lora(backbone=backbone, plugins=plugins, evaluator=evaluator, **FEW_STEPS)


@pytest.mark.slow
class TestContinuousSDLoRA(StrategyContract):
    scenarios = ("class", "online")

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_sd_lora(
            backbone=backbone, continuous=True, plugins=plugins, evaluator=evaluator, **FEW_STEPS
        )


class LAEContract(StrategyContract):
    module = None

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_lae(
            backbone=backbone,
            module=self.module and self.module(backbone=backbone),
            decay=0.8,  # a hundred steps are few for the published one
            plugins=plugins,
            evaluator=evaluator,
            **FEW_STEPS | {"train_epochs": 12},
        )


@pytest.mark.slow
class TestLAE(LAEContract):
    pass


@pytest.mark.slow
class TestLAEWithLoRA(LAEContract):
    scenarios = ("class", "task")

    def module(self, backbone):
        return build_lora(backbone=backbone)


def test_inflora_goes_on_from_its_state():
    TestInfLoRA().test_goes_on_from_its_state()
