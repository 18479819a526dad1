import copy
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from avalanche_peftcl.benchmarks import make_benchmark
from avalanche_peftcl.checkpoints import maybe_load_checkpoint, save_checkpoint
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    FrozenBranch,
    InputConfig,
    PEFTModel,
    TextContextHead,
    build_adapters,
    build_frozen,
    build_text_context,
)
from avalanche_peftcl.testing import HeadContract, toy_backbone, toy_images
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.pegp import build_pegp
from tests.models.heads.test_zero_shot import WIDTH, image_text

NAMES = ["cat", "dog", "gnu", "owl", "bat", "cow"]


def toy_texts(width, text_width=32):
    """A text side of a random key a name, by which the mean of the context is multiplied."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(8, text_width, width, generator=generator)

    def behind(context, words):
        index = [int(word.split()[-1]) for word in words]
        return F.normalize(torch.einsum("d,ndw->nw", context.sum(dim=0), keys[index]), dim=1)

    return SimpleNamespace(words=list, side=SimpleNamespace(encode_context=behind))


class TestContract(HeadContract):
    def create_head(self, in_features):
        head = TextContextHead(in_features, text_width=32, n_context=4)
        head.texts = toy_texts(in_features)
        head.scale.fill_(20.0)
        return head


def benchmark(scenario="class", **options):
    train, test = toy_images(), toy_images(seed=1)
    defaults = {"classes_per_experience": [2, 2, 2], "augment": "none", "class_names": NAMES}
    if scenario == "domain":
        domains = [i % 3 for i in range(36)]
        defaults |= {"train_domains": domains, "test_domains": domains}
        del defaults["classes_per_experience"]
    size = InputConfig(img_size=16)
    return make_benchmark(train, test, input_config=size, scenario=scenario, **defaults | options)


def coop(backbone, *, module=build_frozen, seed=0, **options):
    torch.manual_seed(seed)

    def head(width):
        return build_text_context(in_features=width, backbone=backbone, n_context=3)

    defaults = {"loss": "local", "train_epochs": 2, "train_mb_size": 4, "lr": 0.1}
    branch = module(backbone=backbone)
    return build_naive(backbone=backbone, module=branch, head=head, **defaults | options)


def logits(strategy, images):
    with torch.no_grad():
        return strategy.network.eval()(images)


def test_logits_are_scaled_cosines_to_names_behind_the_context():
    backbone = image_text()
    head = build_text_context(
        in_features=WIDTH, backbone=backbone, class_words={"cat": "tabby", "dog": "dog"}
    )
    assert head.context.shape == (16, WIDTH)
    head = build_text_context(in_features=WIDTH, backbone=backbone, n_context=3)
    head.grow(2)
    head.start(["cat", "dog"])
    assert 0 < head.context.std() < 0.05
    z = torch.randn(5, WIDTH)
    texts = backbone.encode_context(head.context, ["cat", "dog"]).double()
    expected = 30 * F.cosine_similarity(z.double()[:, None], texts[None], dim=2)
    torch.testing.assert_close(head(z).double(), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(head(z).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scenario", ["class", "task", "online"])
def test_old_logits_stay_to_the_bit_while_new_contexts_train(scenario):
    backbone, images = image_text(), torch.rand(4, 3, 16, 16)
    strategy, rows = coop(backbone), []
    weights = copy.deepcopy(backbone.text.module.state_dict())
    seen = []
    stream = benchmark(scenario)
    for experience in stream.train_stream:
        start = strategy.network.head.context
        strategy.train(experience)
        with torch.no_grad():
            z = strategy.network.embed(images)
            rows.append(strategy.network.head(z))
        if len(rows[-1][0]) > len(seen):
            assert strategy.network.head.context is not start  # another one
        seen = rows[-1][0]
    assert rows[-1].shape == (4, 6)
    for earlier, later in pairwise(rows):
        known = earlier.shape[1] if later.shape[1] > earlier.shape[1] else earlier.shape[1] - 2
        assert torch.equal(later[:, :known], earlier[:, :known])
    head = strategy.network.head
    assert [p.requires_grad for p in head.parameters()] == [True]
    assert all(torch.equal(v, weights[k]) for k, v in backbone.text.module.state_dict().items())
    names = [stream.class_names[c] for c in strategy.network.classes.keys[-2:, 1].tolist()]
    torch.testing.assert_close(
        head.rows[-2:], backbone.encode_context(head.context, names).detach()
    )


def test_classes_that_are_met_again_keep_their_rows_and_the_context_trains_on():
    strategy = coop(image_text())
    first, second, _ = benchmark("domain").train_stream
    strategy.train(first)
    start, rows = strategy.network.head.context.detach().clone(), strategy.network.head.rows
    strategy.train(second)
    head = strategy.network.head
    head.refresh()
    assert (len(rows), len(head.rows)) == (6, 6)
    assert (head.context - start).abs().max() > 1e-4


def test_what_is_exported_needs_no_text_side_and_learns_no_more():
    backbone, images = image_text(), torch.rand(3, 3, 16, 16)
    strategy = coop(backbone)
    for experience in benchmark().train_stream:
        strategy.train(experience)
    with torch.no_grad():
        strategy.network.head.context.add_(0.01)  # as of training that nobody has looked at since
    state = strategy.network.state_dict()
    head = TextContextHead(WIDTH, text_width=WIDTH, n_context=3)
    other = PEFTModel(image_text(seed=1, text=False), FrozenBranch(), head).eval()
    plain = {k: v for k, v in state.items() if not k.startswith("branch.")}
    other.load_state_dict(plain)
    torch.testing.assert_close(other(images), logits(strategy, images), atol=1e-5, rtol=0)
    other.start_experience([(0, 9)])
    with pytest.raises(ConfigError, match="of an exported network knows the classes that it was"):
        other.start_rows(6, [*NAMES, "x", "y", "z", "ape"])


def test_a_copy_goes_on_as_the_original():
    backbone = image_text()
    strategy = coop(backbone)
    strategy.train(benchmark().train_stream[0])
    twin = coop(backbone, seed=5)
    twin.network.start_experience([(0, 0), (0, 1)])
    twin.network.load_state_dict(strategy.network.state_dict())
    z = torch.randn(4, WIDTH)
    head, other = strategy.network.head, twin.network.head
    for each in (head, other):
        each.zero_grad()
        each(z)[:, 0].sum().backward()
    assert torch.equal(head.context.grad, other.context.grad)


def test_a_run_that_was_stopped_goes_on_to_the_bit(tmp_path):
    ends, path, stream = [], tmp_path / "run.checkpoint", benchmark()
    for stops in (False, True):
        strategy = coop(image_text(), module=build_adapters)
        for number, experience in enumerate(stream.train_stream):
            torch.manual_seed(number)
            strategy.train(experience)
            strategy.eval(stream.test_stream)
            if stops and number == 0:
                save_checkpoint(strategy, path, benchmark=stream)
                fresh = coop(image_text(), module=build_adapters, seed=9)
                strategy, start = maybe_load_checkpoint(fresh, path, benchmark=stream)
                assert start == 1
        ends.append(strategy.network.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_evaluation_in_between_changes_nothing():
    ends = []
    for evaluates in (False, True):
        strategy = coop(image_text(), module=build_adapters)
        stream = benchmark()
        for experience in stream.train_stream:
            torch.manual_seed(1)
            strategy.train(experience, eval_streams=[stream.test_stream] if evaluates else [])
            strategy.network.state_dict()
        ends.append(strategy.network.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_pegp_trains_it_beside_a_module():
    backbone = image_text()

    def head(width):
        return build_text_context(in_features=width, backbone=backbone, n_context=3)

    torch.manual_seed(0)
    strategy = build_pegp(backbone=backbone, peft="prompt", head=head, train_epochs=2)
    before = None
    for experience in benchmark().train_stream:
        strategy.train(experience)
        rows = strategy.network.head.rows
        assert before is None or torch.equal(rows[: len(before)], before)
        strategy.network.head.refresh()
        before = strategy.network.head.rows
    assert strategy.projection.unprotected == ["head.context"]


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (
            lambda: build_text_context(in_features=32, backbone=toy_backbone()),
            "a ViTBackbone has no text side, which the names of classes are encoded by; take backb",
        ),
        (
            lambda: build_text_context(in_features=48, backbone=image_text()),
            "a text_context head reads the embedding of an image, of width 24, and not 48 features",
        ),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(build, told):
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_a_context_that_is_too_long_is_refused_when_classes_come():
    head = build_text_context(in_features=WIDTH, backbone=image_text(), n_context=18)
    head.grow(1)
    with pytest.raises(ConfigError, match="18 vectors of context and the name 'cat' are longer"):
        head.start(["cat"])
