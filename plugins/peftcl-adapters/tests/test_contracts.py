"""The contracts of the core, for each method and for both ways to read a network."""

import pytest
from peftcl_adapters.aper import build_aper
from peftcl_adapters.random_ridge import build_random_ridge
from peftcl_adapters.ranpac import build_ranpac
from peftcl_adapters.simplecil import build_simplecil

from avalanche_peftcl.testing import StrategyContract

short = {"train_epochs": 1, "train_mb_size": 6}


def small(in_features):
    return build_random_ridge(in_features=in_features, n_features=40)


class TestSimpleCIL(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_simplecil(backbone=backbone, plugins=plugins, evaluator=evaluator)


class TestSimpleCILOnBlocks(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_simplecil(
            backbone=backbone, features="blocks", plugins=plugins, evaluator=evaluator
        )


class TestAPER(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_aper(backbone=backbone, plugins=plugins, evaluator=evaluator, **short)


class TestRanPAC(StrategyContract):
    @pytest.fixture(autouse=True, params=[True, False], ids=["both phases", "phase two"])
    def phase_one(self, request):
        self.phase_one = request.param

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_ranpac(
            backbone=backbone,
            head=small,
            phase_one=self.phase_one,
            plugins=plugins,
            evaluator=evaluator,
            **short,
        )
