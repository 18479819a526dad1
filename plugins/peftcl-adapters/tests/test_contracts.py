"""The contracts of the core, for each method and for both ways to read a network."""

from functools import partial

from peftcl_adapters.aper import build_aper
from peftcl_adapters.ranpac import build_ranpac
from peftcl_adapters.simplecil import build_simplecil

from avalanche_peftcl.models import RandomRidgeHead
from avalanche_peftcl.testing import StrategyContract

few_steps = {"train_epochs": 12, "train_mb_size": 8, "lr": 0.5}
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
