"""The contracts of the core, for each method and for both ways to read a network."""

from functools import partial

import pytest
from peftcl_adapters.aper import build_aper
from peftcl_adapters.c_ada import build_c_ada
from peftcl_adapters.ease import build_ease
from peftcl_adapters.mos import build_mos
from peftcl_adapters.ranpac import build_ranpac
from peftcl_adapters.simplecil import build_simplecil
from peftcl_adapters.slca_pp import build_slca_pp
from peftcl_adapters.ssiat import build_ssiat

from avalanche_peftcl.models import RandomRidgeHead
from avalanche_peftcl.testing import StrategyContract

few_steps = {"train_epochs": 12, "train_mb_size": 8, "lr": 0.5}
without_domains = ("class", "task", "online")
aligned = {"align_samples": 32, "align_epochs": 3}
small = partial(RandomRidgeHead, n_features=40)


class TestSimpleCIL(StrategyContract):
    adapts = False

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_simplecil(backbone=backbone, plugins=plugins, evaluator=evaluator)


class TestSimpleCILOnBlocks(StrategyContract):
    adapts = False

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_simplecil(
            backbone=backbone, features="blocks", plugins=plugins, evaluator=evaluator
        )


class TestAPER(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_aper(backbone=backbone, plugins=plugins, evaluator=evaluator, **few_steps)


class TestRanPAC(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_ranpac(
            backbone=backbone, head=small, plugins=plugins, evaluator=evaluator, **few_steps
        )


class TestRanPACWithoutPhaseOne(StrategyContract):
    adapts = False

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_ranpac(
            backbone=backbone, head=small, phase_one=False, plugins=plugins, evaluator=evaluator
        )


@pytest.mark.slow
class TestSSIAT(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_ssiat(
            backbone=backbone,
            plugins=plugins,
            evaluator=evaluator,
            later_epochs=10,
            scale=5.0,
            **(few_steps | aligned | {"lr": 0.2}),
        )


@pytest.mark.slow
class TestSLCA(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_slca_pp(
            backbone=backbone,
            plugins=plugins,
            evaluator=evaluator,
            module_lr_scale=1.0,
            temperature=1.0,
            drop_after=9,
            **(few_steps | aligned),
        )


@pytest.mark.slow
class TestEASE(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_ease(backbone=backbone, plugins=plugins, evaluator=evaluator, **few_steps)


@pytest.mark.slow
class TestMOS(StrategyContract):
    scenarios = without_domains
    adapts = False  # its search begins with what the frozen network sees

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_mos(
            backbone=backbone,
            plugins=plugins,
            evaluator=evaluator,
            **(few_steps | aligned | {"lr": 0.2, "head_lr_scale": 1.0}),
        )


@pytest.mark.slow
class TestCADA(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_c_ada(
            backbone=backbone, plugins=plugins, evaluator=evaluator, **(few_steps | {"lr": 0.1})
        )
