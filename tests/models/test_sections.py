"""What a head reads: blocks, sections on unit norm, and the frozen network beside the adapted."""

import pytest
import torch
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    AdapterBranch,
    Branch,
    CosineHead,
    LinearHead,
    PEFTModel,
    PrototypeHead,
    forward_branches,
)
from avalanche_peftcl.models.block_features import chosen_blocks
from avalanche_peftcl.models.sections import Sections, Sketch
from avalanche_peftcl.testing import toy_backbone

DIM, DEPTH = 32, 3


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return toy_backbone()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(4, 3, 16, 16)


def adapters():
    branch = AdapterBranch(DIM, DEPTH, r=4)
    for p in branch.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return branch.eval()


def layer_normed(part):
    centred = part - part.mean(dim=1, keepdim=True)
    return centred / (part.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()


def by_hand(backbone, images, numbers):
    tokens, parts = backbone.embed(images), []
    for index in range(DEPTH):
        hidden = backbone.attend(index, tokens)
        tokens = hidden + backbone.feed(index, hidden)
        if index in numbers:
            parts += [layer_normed(tokens[:, 0]), layer_normed(tokens[:, 1:].mean(dim=1))]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize(("features", "numbers"), [("blocks", [0, 1, 2]), ([2, 0], [0, 2])])
def test_blocks_are_read_as_said(backbone, images, features, numbers):
    (read,) = forward_branches(backbone, [Branch()], images, features=[features])
    assert read.shape == (4, 2 * DIM * len(numbers))
    torch.testing.assert_close(read, by_hand(backbone, images, numbers))


def test_each_section_is_on_unit_norm_and_says_where_it_stands(backbone, images):
    branch = adapters()
    model = PEFTModel(backbone, branch, features="pooled", frozen_section="blocks").eval()
    read = model.embed(images)
    width = 2 * DIM * DEPTH
    assert read.shape == (4, width + DIM) == (4, model.head.in_features)
    torch.testing.assert_close(read[:, :width], F.normalize(by_hand(backbone, images, range(3))))
    (adapted,) = forward_branches(backbone, [branch], images)
    torch.testing.assert_close(read[:, width:], F.normalize(adapted))
    assert model.sections.slices == [slice(0, width), slice(width, width + DIM)]
    assert model.sections.moving == [slice(width, width + DIM)]
    assert model.forward_passes == 2


def test_one_pooled_section_is_left_as_it_is(backbone, images):
    model = PEFTModel(backbone, adapters()).eval()
    assert torch.equal(model.embed(images), forward_branches(backbone, [model.branch], images)[0])
    assert "sections" not in " ".join(model.state_dict())


def test_proxies_train_and_the_head_predicts(backbone, images):
    model = PEFTModel(
        backbone, adapters(), PrototypeHead, proxies=LinearHead, frozen_section="pooled"
    )
    model.start_experience([(0, 0), (0, 1)])
    assert model.heads == (model.proxies, model.head)
    model.train()
    features = model.embed(images)
    assert features.shape == (4, DIM)
    assert torch.equal(model.classify(features), model.proxies(features))
    model.eval()
    with torch.no_grad():
        model.head.observe(model.embed(images), torch.tensor([0, 1, 0, 1]))
        model.head.settle()
        features = model.embed(images)
        assert features.shape == (4, 2 * DIM)
        assert torch.equal(model.classify(features), model.head(features))


def test_a_trained_head_reads_sections_in_training_too(backbone, images):
    model = PEFTModel(backbone, adapters(), CosineHead, features=[0], frozen_section=[1, 2])
    model.start_experience([(0, 0), (0, 1)])
    model.train()(images).sum().backward()
    assert all(p.grad is not None for name, p in model.branch.named_parameters() if ".0." in name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": [0, 3]}, r"block numbers from 0 to 2, not \[0, 3\]"),
        ({"features": "last"}, "not 'last'"),
        ({"features": []}, r"not \[\]"),
        ({"frozen_section": [1, 1]}, r"\[1, 1\] name a block twice"),
        ({"proxies": LinearHead}, "proxies are trained for a head that is fitted"),
        ({"head": PrototypeHead, "proxies": PrototypeHead}, "proxies are trained"),
        ({"head": LinearHead(5)}, "width 5 cannot read features of width 32"),
    ],
)
def test_what_does_not_fit_is_refused(backbone, options, message):
    with pytest.raises(ConfigError, match=message):
        PEFTModel(backbone, adapters(), **options)


def test_chosen_blocks_are_in_the_order_of_the_network(backbone):
    assert chosen_blocks(backbone, [2, 0]) == [0, 2]
    assert chosen_blocks(backbone, "pooled") == []


def test_a_sketch_keeps_inner_products_on_average():
    """Their error has variance at most ``2 |x|² |y|² / K``, Weinberger et al., lemma 2."""
    torch.manual_seed(0)
    x = F.normalize(torch.randn(200, 3000), dim=1)
    z = Sketch(3000, 500)(x)
    error = z @ z.T - x @ x.T
    assert 0.5 < float(error.square().mean()) / (1 / 500) < 2
    assert torch.equal(Sketch(3000, 500).buckets, Sketch(3000, 500).buckets)


def test_a_wide_section_is_sketched_and_saved(images):
    sections = Sections([40, 8], moving=[False, True], limit=16)
    assert sections.width == 24
    assert sections.moving == [slice(16, 24)]
    z = sections([torch.randn(3, 40), torch.randn(3, 8)])
    torch.testing.assert_close(z[:, :16].norm(dim=1), torch.ones(3))
    assert sorted(sections.state_dict()) == ["sketches.0.buckets", "sketches.0.signs"]
