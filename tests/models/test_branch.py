"""What a stranger's Branch may offer, and what several of them share."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from torch import nn

from avalanche_peftcl.models import (
    AdapterBranch,
    Branch,
    Embedded,
    FrozenBranch,
    LinearHead,
    NTKCLModel,
    PatchPromptBranch,
    PEFTModel,
    attend_with_prefix,
    attend_with_prompts,
    build_prefix,
    build_prompt,
    forward_branches,
    forward_tokens,
)


class Chosen(Branch):
    """A prompt an image in every block, by the sign of its frozen feature."""

    shares_start = False
    forward_passes = 2

    def __init__(self, embed_dim, *, name="fit"):
        super().__init__()
        self.name = name
        self.prompts = nn.Parameter(torch.randn(2, 3, embed_dim))

    def begin(self, backbone, embedded):
        query = embedded.query()
        prompts = self.prompts[(query[:, 0] > query.median()).long()]
        self.terms[self.name] = prompts.square().mean()
        return prompts

    def attend(self, backbone, index, tokens, *, queries=None, context=None):
        return attend_with_prompts(backbone, index, tokens, context, queries=queries)


class BlockFeatures(Branch):
    """The first token after every block, side by side."""

    reads = "blocks"

    def pool(self, backbone, tokens):
        return torch.cat([each[:, 0] for each in tokens], dim=1)

    def out_features(self, backbone):
        return backbone.depth * backbone.embed_dim


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randn(4, 3, 16, 16)


@pytest.fixture
def calls(backbone, monkeypatch):
    """How often the frozen network was asked for each part of each block, and with how many."""
    counted = Counter()

    def count(name):
        asked = getattr(backbone, name)

        def ask(*args, **kwargs):
            counted[name if name == "embed" else (name, args[0], kwargs.get("queries"))] += 1
            return asked(*args, **kwargs)

        monkeypatch.setattr(backbone, name, ask)

    for name in ("embed", "attend", "feed"):
        count(name)
    return counted


def test_what_branches_have_in_common_is_computed_once(backbone, calls, images):
    adapters = AdapterBranch(backbone.embed_dim, backbone.depth)
    forward_branches(backbone, [Chosen(32), Chosen(32), adapters, Branch()], images)
    assert calls == {
        "embed": 1,
        ("attend", 0, None): 3,  # shared, and one for each whose attention sees prompts there
        ("feed", 0, None): 3,
        ("attend", 1, None): 5,  # the query's, and one a branch
        ("feed", 1, None): 5,
        ("attend", 2, 1): 5,  # of the last block only what is read
        ("feed", 2, None): 5,
    }


def test_nothing_is_computed_that_nobody_asks_for(backbone, calls, images):
    Embedded(backbone, images)
    assert calls == {"embed": 1}
    calls.clear()
    forward_branches(backbone, [FrozenBranch(), BlockFeatures()], images)
    assert calls["attend", 0, None] == calls["feed", 0, None] == 1
    assert calls["attend", 2, None] == 2
    assert calls["attend", 2, 1] == 0


def test_the_query_is_the_frozen_feature_without_gradient(backbone, images):
    images.requires_grad_()
    embedded = Embedded(backbone, images)
    query = embedded.query()
    torch.testing.assert_close(query, backbone(images).detach())
    assert not query.requires_grad
    assert embedded.query() is query
    assert embedded.start()[1].requires_grad  # what is shared with passes that train keeps its own


def test_prompts_are_chosen_image_by_image(backbone, images):
    branch = Chosen(32)
    (features,) = forward_branches(backbone, [branch], images)
    high = backbone(images)[:, 0] > backbone(images).median()
    assert 0 < high.sum() < 4
    for prompts, mask in ((branch.prompts[1], high), (branch.prompts[0], ~high)):
        tokens = backbone.embed(images[mask])
        for index in range(3):
            hidden = attend_with_prompts(backbone, index, tokens, prompts)
            tokens = hidden + backbone.feed(index, hidden)
        torch.testing.assert_close(features[mask], backbone.pool(tokens), atol=1e-5, rtol=1e-5)
    features[:, 0].sum().backward()
    assert branch.prompts.grad.abs().amax(dim=(1, 2)).min() > 0


@pytest.mark.parametrize("queries", [None, 1])
def test_further_keys_and_prompts_are_those_of_our_own_modules(backbone, queries):
    torch.manual_seed(0)
    tokens = torch.randn(3, 17, 32)
    (prefix,) = build_prefix(backbone=backbone, length=4, blocks=[1]).extensions.values()
    (prompt,) = build_prompt(backbone=backbone, length=4, blocks=[1]).extensions.values()
    for ours, extended in (
        (prefix, lambda p: attend_with_prefix(
            backbone, 1, tokens, keys=p(prefix.keys), values=p(prefix.values), queries=queries
        )),
        (prompt, lambda p: attend_with_prompts(
            backbone, 1, tokens, p(prompt.tokens), queries=queries
        )),
    ):  # fmt: skip
        expected = backbone.attend(1, tokens, queries=queries, extend=ours)
        assert expected.shape == (3, queries or 17, 32)
        assert torch.equal(extended(lambda learnt: learnt), expected)
        each = extended(lambda learnt: learnt.expand(3, -1, -1))
        torch.testing.assert_close(each, expected, atol=1e-6, rtol=1e-5)


def test_block_features_are_those_of_the_network_block_by_block(backbone, images):
    (features,) = forward_branches(backbone, [BlockFeatures()], images)
    tokens, expected = backbone.embed(images), []
    for block in backbone.blocks:
        tokens = block(tokens)
        expected.append(tokens[:, 0])
    torch.testing.assert_close(features, torch.cat(expected, dim=1), atol=1e-5, rtol=1e-5)
    model = PEFTModel(backbone, BlockFeatures())
    assert isinstance(model.head, LinearHead)
    assert model.head.in_features == 3 * 32
    model.start_experience([(0, 0), (0, 1)])
    assert model(images).shape == (4, 2)


def test_all_tokens_of_every_block_come_without_those_that_the_pass_added(backbone, images):
    class Read(PatchPromptBranch):
        reads = "blocks"

        def pool(self, backbone, tokens):
            self.shapes = [tuple(each.shape) for each in tokens]
            return backbone.pool(tokens[-1])

    branch = Read(17, 32, 3, length=4)
    features, tokens = forward_tokens(backbone, branch, images)
    assert branch.shapes == [(4, 17, 32)] * 3
    assert torch.equal(features, backbone.pool(tokens))


def test_a_pool_of_its_own_is_read_beside_the_tokens(backbone, images):
    class Mean(Branch):
        reads = "tokens"

        def pool(self, backbone, tokens):
            return backbone.norm(tokens).mean(dim=1)

    features, tokens = forward_tokens(backbone, Mean(), images)
    assert tokens.shape == (4, 17, 32)
    assert torch.equal(features, backbone.norm(tokens).mean(dim=1))
    assert torch.equal(features, forward_branches(backbone, [Mean()], images)[0])


def test_the_context_is_handed_to_every_step_of_its_own_pass(backbone, images):
    class Noted(Branch):
        shares_start = False

        def __init__(self, word):
            super().__init__()
            self.word, self.heard = word, []

        def begin(self, backbone, embedded):
            return self.word

        def attend(self, backbone, index, tokens, *, queries=None, context=None):
            self.heard.append(("attend", context))
            return super().attend(backbone, index, tokens, queries=queries)

        def enter(self, backbone, hidden, output, *, context=None):
            self.heard.append(("enter", context))
            return output

        def step(self, backbone, index, hidden, *, context=None):
            self.heard.append(("step", context))
            return super().step(backbone, index, hidden)

        def leave(self, backbone, tokens, *, context=None):
            self.heard.append(("leave", context))
            return tokens

    one, two = Noted("one"), Noted("two")
    forward_branches(backbone, [one, two], images)
    order = ["attend", "enter", "attend", "step", "attend", "step", "leave"]
    assert one.heard == [(name, "one") for name in order]
    assert two.heard == [(name, "two") for name in order]


def test_losses_are_those_of_the_last_pass_and_of_no_copy(backbone, images):
    model = PEFTModel(backbone, Chosen(32))
    assert model.losses() == {}
    model.start_experience([(0, 0)])
    for _ in range(2):
        model(images)
    (term,) = model.losses().values()
    term.backward()
    assert model.branch.prompts.grad.abs().sum() > 0
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.losses() == {}
        assert torch.equal(twin(images), model(images))
    assert list(model.losses()) == ["fit"]
    assert model.forward_passes == 2


def test_terms_of_one_name_are_summed(backbone, images):
    class Two(PEFTModel):
        @property
        def branches(self):
            return (self.branch, self.branch)

    model = Two(backbone, Chosen(32))
    model.start_experience([(0, 0)])
    model(images)
    assert model.losses() == {"fit": 2 * model.branch.terms["fit"]}


@pytest.mark.parametrize(("copies", "pretrained", "passes"), [(1, False, 4), (3, True, 9)])
def test_the_passes_of_ntk_cl_are_its_branches(backbone, copies, pretrained, passes):
    model = NTKCLModel(backbone, n_copies=copies, use_pretrained=pretrained)
    assert len(model.branches) == model.forward_passes == passes
    assert model.branches[-1] is model.patch
    assert model.branches[pretrained + copies] is model.channel
    assert model.losses() == {}
