"""The contracts of the core, for each method; most scenarios are for a long run of the tests."""

import pytest
from peftcl_lora.inflora import build_inflora
from peftcl_lora.o_lora import build_o_lora
from peftcl_lora.sd_lora import build_sd_lora

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
