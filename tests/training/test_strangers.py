"""A method as another package would write it: L2P, with public names only and no side door."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl import Component
from avalanche_peftcl.export import load as exported
from avalanche_peftcl.export.load import load
from avalanche_peftcl.models import Branch, exportable
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.testing import (
    BranchContract,
    StrategyContract,
    blind_backbone,
    learnable_benchmark,
    toy_backbone,
)
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.naive import build_naive
from tests.export.test_write import tiny

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


class L2P(Branch):
    r"""Prompts of an image, chosen from a pool by what the frozen network sees in it.

    Of ``size`` keys the ``k`` next to the query :math:`q` are taken, their prompts stand between
    the CLS token and the patches from the first block on, and the mean of what becomes of them is
    classified. A term :math:`\lambda \sum_i (1 - \cos(q, k_i))` pulls the chosen keys to the query.

    Args:
        embed_dim: ``D``.
        size: Prompts in the pool.
        length: Tokens a prompt.
        k: Prompts an image.
        pull: :math:`\lambda`.

    Source:
        Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022. Differs: an image
        chooses for itself in training too, not by the vote of its minibatch.
    """

    shares_start = False
    reads = "tokens"
    forward_passes = 2

    def __init__(self, embed_dim: int, *, size: int, length: int, k: int, pull: float) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(size, embed_dim))
        self.prompts = nn.Parameter(torch.empty(size, length, embed_dim).uniform_(-1, 1))
        self.k, self.pull = k, pull

    def choose(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return how near the nearest keys are and which they are, each ``(B, k)``."""
        near = F.normalize(query, dim=1) @ F.normalize(self.keys, dim=1).T
        best, index = near.topk(self.k, dim=1)
        return best, index

    def begin(self, backbone, embedded):
        best, index = self.choose(embedded.query())
        self.terms["pull"] = self.pull * (1 - best).sum(dim=1).mean()
        return self.prompts[index].flatten(1, 2)  # (B, k * length, D)

    def attend(self, backbone, index, tokens, *, queries=None, context=None):
        if index == 0:
            first = backbone.num_prefix_tokens
            tokens = torch.cat([tokens[:, :first], context, tokens[:, first:]], dim=1)
        return backbone.attend(index, tokens, queries=queries)

    def pool(self, backbone, tokens):
        first, n = backbone.num_prefix_tokens, self.k * self.prompts.shape[1]
        return backbone.norm(tokens)[:, first : first + n].mean(dim=1)


@exportable
def build_l2p(*, backbone, size: int = 6, length: int = 2, k: int = 2, pull: float = 0.5) -> L2P:
    return L2P(backbone.embed_dim, size=size, length=length, k=k, pull=pull)


# --- what it gets for it --------------------------------------------------------------------------


def l2p(backbone, **options):
    """Return the method: its module under a strategy that is there."""
    torch.manual_seed(0)
    defaults = {"optimizer": "adam", "lr": 0.03, "train_mb_size": 8, "loss": "local"}
    module = build_l2p(backbone=backbone)
    return build_naive(backbone=backbone, module=module, **(defaults | options))


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Let this file count as a package that is installed, whose networks may be loaded."""
    monkeypatch.setattr(exported, "plugin_modules", lambda: {"avalanche_peftcl", "tests"})


class TestL2P(StrategyContract):
    def create_strategy(self, backbone, *, plugins, evaluator):
        return l2p(backbone, train_epochs=15, plugins=plugins, evaluator=evaluator)


class TestL2PModule(BranchContract):
    identity_at_start = False

    def create_branch(self, backbone):
        return build_l2p(backbone=backbone)


def images_and_labels(experience):
    pairs = [experience.dataset[i][:2] for i in range(len(experience.dataset))]
    return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_it_learns_what_the_frozen_network_does_not_see(scenario):
    backbone = blind_backbone()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    benchmark, strategy = learnable_benchmark(scenario), l2p(backbone, train_epochs=15)
    learnt = []
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        images, labels = images_and_labels(benchmark.test_stream[t])
        tasks = torch.full((len(images),), t if scenario == "task" else 0)
        with torch.no_grad():
            logits = strategy.model.eval()(images, tasks)
        learnt.append((logits.argmax(dim=1) == labels).float().mean().item())
    assert min(learnt) > 0.8
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_keys_are_pulled_to_queries_and_the_term_is_told():
    benchmark = learnable_benchmark()
    images, _ = images_and_labels(benchmark.train_stream[0])
    query = toy_backbone()(images)
    ends = {}
    for pull in (0.0, 0.5):
        strategy = l2p(toy_backbone(), train_epochs=4)
        strategy.model.branch.pull = pull
        strategy.train(benchmark.train_stream[0])
        ends[pull] = strategy.model.branch.choose(query)[0].mean().item()
        told = strategy.evaluator.last_metric_results["Loss_pull/train_phase/train_stream"]
        assert (told > 0) is (pull > 0)
    assert ends[0.5] > ends[0.0] + 0.1


def test_an_image_chooses_for_itself():
    benchmark = learnable_benchmark()
    strategy = l2p(toy_backbone(), train_epochs=2)
    strategy.train(benchmark.train_stream)
    model = strategy.model.eval()
    images = torch.cat([images_and_labels(experience)[0] for experience in benchmark.test_stream])
    with torch.no_grad():
        query = model.backbone(images)
        model.branch.keys.copy_((query - query.mean(dim=0))[::5][:6])  # that images differ in
        _, chosen = model.branch.choose(query)
        assert len(set(map(tuple, chosen.tolist()))) > 4
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
        backwards = model(images.flip(0)).flip(0)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(backwards, together, atol=1e-5, rtol=1e-4)


def test_a_run_counts_its_passes_exports_it_and_goes_on(tmp_path, monkeypatch):
    module = Component("l2p", build_l2p, source="CVPR 2022")
    provider = Provider("test", "1")
    registry = Registry([*discover().entries(), Entry("module", module, provider)])
    options = {"train_epochs": 1, "loss": "local", "lr": 0.1, "mixed_precision": "no"}

    def config(name):
        strategy, method = {"name": "naive"} | options, {"name": "l2p", "k": 1}
        return tiny(tmp_path / name, strategy=strategy, module=method, plugins=[])

    whole = run(config("whole"), registry=registry)
    assert whole.metrics["cost"]["forward_passes"] == 2
    network = load(whole.folder)
    assert isinstance(network.model.branch, L2P)
    assert network.model.branch.k == 1

    def stop(strategy, experience, *args, **kwargs):
        if experience.current_experience == 1:
            raise KeyboardInterrupt
        return train(strategy, experience, *args, **kwargs)

    train = PEFTTemplate.train
    with monkeypatch.context() as patch:
        patch.setattr(PEFTTemplate, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config("parts"), registry=registry)
    parts = run(config("parts"), registry=registry, resume=True)
    assert parts.metrics["resumed_at"]
    images = torch.rand(4, 3, 16, 16)
    assert torch.equal(load(parts.folder)(images), network(images))
