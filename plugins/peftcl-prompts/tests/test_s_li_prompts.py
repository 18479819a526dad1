"""S-liPrompts: texts behind the context of their domain, by hand; the rest as S-iPrompts."""

import peftcl_prompts
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from peftcl_prompts.s_li_prompts import DomainTextModel, build_s_li_prompts
from peftcl_prompts.s_prompts import build_domain_prompts
from scipy.spatial.distance import cdist
from torch import nn
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import TextTower
from avalanche_peftcl.testing import (
    StrategyContract,
    count_costs,
    differing_costs,
    learnable_benchmark,
    seeing_backbone,
    toy_backbone,
    toy_image_text,
)

ROOM = 32  # tokens of a text
SHORT = {"train_epochs": 1, "train_mb_size": 16, "lr": 0.5, "mixed_precision": "no"}


class Words(nn.Module):
    """A text tower in which what stands in front of a name changes what it says."""

    def __init__(self, width):
        super().__init__()
        self.table, self.out = nn.Embedding(256, width), nn.Linear(width, width, bias=False)

    def forward(self, ids):
        return self.out(torch.tanh(self.table(ids).sum(dim=1)))


def letters(texts):
    return torch.tensor([list(text.encode().ljust(ROOM, b"\0"))[:ROOM] for text in texts])


def image_text(vit=None):
    backbone = toy_image_text(vit or seeing_backbone(), out_features=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        backbone.text = TextTower(Words(32), letters)
    return backbone


def build(backbone=None, **options):
    torch.manual_seed(0)
    given = {"length": 3, "centroids": 2, "n_context": 4, "init_std": 0.5} | SHORT
    return build_s_li_prompts(
        backbone=backbone or image_text(), evaluator=EvaluationPlugin(), **(given | options)
    )


@pytest.fixture(scope="module")
def trained():
    """A strategy after three domains, what it held after each, the images of each."""
    strategy = build()
    benchmark = learnable_benchmark("domain", classes_per_experience=(2, 1, 1), per_class=4)
    kept, images = [], []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        kept.append({n: t.clone() for n, t in strategy.network.state_dict().items()})
        images.append(torch.stack([x for x, *_ in experience.dataset.eval()]))
    return strategy, kept, images, benchmark


@torch.no_grad()
def test_an_image_has_the_prompts_of_its_domain_in_both_towers(trained):
    strategy, kept, images, benchmark = trained
    network = strategy.network.eval()
    backbone, branch = network.backbone, network.branch
    test = torch.cat(images)
    away = cdist(
        F.normalize(backbone(test), dim=1).numpy(), branch.centroids.values.numpy(), "cityblock"
    )
    owners = branch.centroids.owners.numpy()[away.argmin(axis=1)]
    assert len(set(owners.tolist())) == 3
    names = [name.replace("_", " ") for name in benchmark.class_names]
    keys = network.classes.keys[:, 1].tolist()
    expected = []
    for image, owner in zip(test, owners, strict=True):
        then = kept[owner]  # as it was when the domain ended
        tokens = backbone.embed(image[None])
        tokens = torch.cat(
            [tokens[:, :1], then["branch.parts.prompts"][None], tokens[:, 1:]], dim=1
        )
        embedding = backbone.pool(backbone.vit.blocks(tokens))[0]
        texts = backbone.encode_context(then["head.current.context"], [names[c] for c in keys])
        expected.append(20 * F.cosine_similarity(embedding[None], texts))
    by_class = torch.stack(expected)
    found = network(test)[:, keys]
    torch.testing.assert_close(found, by_class, atol=1e-4, rtol=1e-4)


def test_contexts_train_one_by_one_and_old_texts_stay(trained):
    strategy, kept, _, _ = trained
    named = {n for n, p in strategy.network.named_parameters() if p.requires_grad}
    assert named == {"branch.parts.prompts", "head.current.context"}
    contexts = [then["head.current.context"] for then in kept]
    assert not torch.equal(contexts[0], contexts[1])
    texts = [then["head.current.rows"] for then in kept]
    assert torch.equal(kept[2]["head.past.rows"], torch.cat(texts[:2]))
    assert not torch.allclose(texts[0], texts[1], atol=1e-3)


def test_training_moves_the_context():
    stream = learnable_benchmark("domain", per_class=4).train_stream
    found = []
    for rate in (1e-6, 0.5):
        strategy = build(lr=rate)
        strategy.train(stream[0])
        found.append(strategy.network.head.current.context.detach().clone())
    assert not torch.allclose(*found, atol=1e-3)


def test_what_is_loaded_predicts_without_texts_and_goes_on_with_them(trained):
    strategy, _, images, benchmark = trained
    state = strategy.network.state_dict()
    backbone = image_text()
    backbone.text = None
    branch = build_domain_prompts(backbone=backbone, length=3)
    network = DomainTextModel(backbone, branch, text_width=32, n_context=4, init_std=0.5)
    network.load_state_dict(state)
    test = torch.cat(images)
    with torch.no_grad():
        assert torch.equal(network.eval()(test), strategy.network.eval()(test))
    with pytest.raises(ConfigError, match="texts of an exported network are those of the domains"):
        network.head.begin_experience(3)
    again = build()
    again.network.load_state_dict(state)
    again.network.head.learn_rows([1, 0])
    again.network.head.begin_experience(3)
    assert again.network.head.current._names == tuple(
        benchmark.class_names[again.network.classes.keys[row, 1]].replace("_", " ")
        for row in (1, 0)
    )


def test_what_takes_no_contexts_is_refused():
    with pytest.raises(ConfigError, match="has no text side"):
        build(toy_backbone())
    with pytest.raises(ConfigError, match="takes no vectors in front of a name"):
        build(toy_image_text())


def test_it_costs_what_it_says():
    (costs,) = (c.costs for c in peftcl_prompts.peftcl_strategies() if c.name == "s_li_prompts")
    strategy = build(length=10, centroids=5, n_context=16, train_mb_size=12, eval_mb_size=24)
    benchmark = learnable_benchmark("domain", classes_per_experience=(1, 2, 3), per_class=4)
    counted = count_costs(strategy, benchmark)
    assert differing_costs(costs, counted, D=32) == []


@pytest.mark.slow
class TestContract(StrategyContract):
    """Held against chance: with random towers no prompt makes up for what the backbone misses."""

    scenarios = ("domain",)
    adapts = False

    def backbone(self):
        return image_text(super().backbone())

    def create_strategy(self, backbone, *, plugins, evaluator):
        return build_s_li_prompts(
            backbone=backbone,
            plugins=plugins,
            evaluator=evaluator,
            n_context=4,
            **SHORT | {"train_epochs": 8, "train_mb_size": 8},
        )
