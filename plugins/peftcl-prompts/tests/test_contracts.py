"""The contracts of the core, for each method and for what it is made of.

Most are slow: the costs train and evaluate each method over three experiences in a second.
"""

import pytest
import torch
from peftcl_prompts.coda_prompt import build_coda_prompt, build_coda_prompts
from peftcl_prompts.dualprompt import build_dual_prompts, build_dualprompt
from peftcl_prompts.hide_prompt import build_hide_prompt
from peftcl_prompts.l2p import build_l2p, build_prompt_pool
from peftcl_prompts.one_prompt import build_one_prompt
from peftcl_prompts.s_prompts import build_domain_prompts, build_s_prompts
from peftcl_prompts.vpt_nsp import build_deep_prompts, build_vpt_nsp

from avalanche_peftcl.errors import ConfigWarning
from avalanche_peftcl.models import Embedded
from avalanche_peftcl.testing import BranchContract, StrategyContract

SCENARIOS = StrategyContract.scenarios
few_steps = {"train_epochs": 8, "train_mb_size": 8, "lr": 0.05}


class TestPromptPool(BranchContract):
    """Each image has chosen another prompt."""

    identity_at_start = False
    batchwise = False

    def create_branch(self, backbone):
        branch = build_prompt_pool(
            backbone=backbone, size=4, length=2, top_k=1, pull=0.5, batchwise=self.batchwise
        )
        with torch.no_grad():
            branch.keys.copy_(Embedded(backbone, self.images()).query())
        return branch

    def shaken(self):
        backbone, branch = self.build()
        with torch.no_grad():
            branch.prompts.add_(torch.randn_like(branch.prompts))
            branch.keys.mul_(1 + torch.rand(4, 1)).add_(1e-3 * torch.randn_like(branch.keys))
        return backbone, branch


class BatchwisePool(TestPromptPool):
    __test__ = False
    batchwise = True


@pytest.mark.slow
class TestL2P(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_l2p(
            backbone=backbone, plugins=plugins, evaluator=evaluator, top_k=2, length=2, **few_steps
        )


def test_a_choice_by_minibatch_warns_and_is_told():
    backbone = TestL2P().backbone()
    with pytest.warns(ConfigWarning, match="the same prompts, in evaluation too"):
        strategy = build_l2p(backbone=backbone, batchwise=True)
    assert strategy.batch_independent_at_test is False
    assert build_l2p(backbone=backbone).batch_independent_at_test is True


@pytest.mark.slow
class TestDualPrompts(BranchContract):
    """The fourth experience of four trains; each image has chosen another one's prompts."""

    identity_at_start = False
    batchwise = False

    def create_branch(self, backbone):
        branch = build_dual_prompts(
            backbone=backbone, g_length=2, e_length=2, pull=0.5, batchwise=self.batchwise
        )
        for number, query in enumerate(Embedded(backbone, self.images()).query(), start=1):
            branch.start_experience(number)
            with torch.no_grad():
                branch.parts.key.copy_(query)
                branch.parts.prompts.uniform_(-1, 1)
        return branch

    def test_gradients(self):
        """In train mode the last part trains, in eval mode each image has its own."""
        backbone, branch = self.build()
        features = self.run(backbone, branch.train(), self.images())
        (features.square().sum() + branch.losses()["pull"]).backward()
        assert all(p.grad.abs().max() > 0 for p in branch.parameters())


class BatchwiseDualPrompts(TestDualPrompts):
    __test__ = False
    batchwise = True


@pytest.mark.parametrize("violator", [BatchwisePool, BatchwiseDualPrompts])
def test_the_contract_catches_a_choice_by_minibatch(violator):
    with pytest.raises(AssertionError, match=r"alone|in reverse|beside others"):
        violator().test_images_are_independent()


class TestDualPrompt(StrategyContract):
    scenarios = ("class",)

    def create_strategy(self, backbone, *, plugins, evaluator):
        fewer = few_steps | {"train_epochs": 5}
        return build_dualprompt(backbone=backbone, plugins=plugins, evaluator=evaluator, **fewer)


@pytest.mark.slow
class TestDualPromptEverywhere(TestDualPrompt):
    scenarios = SCENARIOS


@pytest.mark.slow
class TestCODAPrompts(BranchContract):
    """The second experience of two trains."""

    identity_at_start = False

    def create_branch(self, backbone):
        branch = build_coda_prompts(backbone=backbone, components=2, length=4, orthogonality=0.1)
        branch.start_experience(1)
        branch.start_experience(2)
        return branch


@pytest.mark.slow
class TestCODAPrompt(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        more = {"lr": 0.1, "components": 8, "anneal": False}  # weights of components are small
        return build_coda_prompt(
            backbone=backbone, plugins=plugins, evaluator=evaluator, **(few_steps | more)
        )


@pytest.mark.slow
class TestDomainPrompts(BranchContract):
    """Each of four images is nearest to the centroid of another experience."""

    identity_at_start = False

    def create_branch(self, backbone):
        branch = build_domain_prompts(backbone=backbone, length=2)
        for number, query in enumerate(Embedded(backbone, self.images()).query()):
            branch.start_experience(1 + number)
            branch.centroids.put(torch.nn.functional.normalize(query[None]), number)
            with torch.no_grad():
                branch.parts.prompts.uniform_(-1, 1)
        return branch


@pytest.mark.slow
class TestSPrompts(StrategyContract):
    scenarios = ("domain",)

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_s_prompts(
            backbone=backbone, plugins=plugins, evaluator=evaluator, **(few_steps | {"lr": 0.5})
        )


@pytest.mark.slow
class TestOnePrompt(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_one_prompt(
            backbone=backbone, plugins=plugins, evaluator=evaluator, **few_steps
        )


@pytest.mark.slow
class TestDeepPrompts(BranchContract):
    identity_at_start = False

    def create_branch(self, backbone):
        return build_deep_prompts(backbone=backbone)


@pytest.mark.slow
class TestVPTNSP(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        more = {"lr": 0.2, "temperature": 1.0}
        return build_vpt_nsp(
            backbone=backbone, plugins=plugins, evaluator=evaluator, **(few_steps | more)
        )


@pytest.mark.slow
class TestHiDePrompt(StrategyContract):
    scenarios = ("class", "task")

    def create_strategy(self, backbone, *, plugins, evaluator):
        more = {"head_lr": 0.02, "identity_lr": 0.01, "align_epochs": 2, "align_samples": 8}
        return build_hide_prompt(
            backbone=backbone, plugins=plugins, evaluator=evaluator, **few_steps, **more
        )
