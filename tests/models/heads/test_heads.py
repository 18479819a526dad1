import pytest
import torch
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError, NotFiniteError
from avalanche_peftcl.models import (
    Branch,
    ClassRows,
    CosineHead,
    FrozenBranch,
    LinearDrift,
    LinearHead,
    NTKCLModel,
    PEFTModel,
    PrototypeHead,
    ShiftDrift,
)
from avalanche_peftcl.models.heads.cosine import build_cosine
from avalanche_peftcl.models.heads.linear import build_linear
from avalanche_peftcl.models.heads.prototypes import build_prototypes


@pytest.mark.parametrize("head", [LinearHead(4), CosineHead(4)])
def test_growing_keeps_old_rows(head):
    head.grow(2)
    torch.nn.init.normal_(head.weight)
    old = head.weight.detach().clone()
    head.grow(5)
    assert head.weight.shape == (5, 4)
    assert head.weight.requires_grad
    assert torch.equal(head.weight[:2], old)


def test_reset_draws_within_the_bound_and_restores_the_factor():
    head = CosineHead(16)
    head.grow(3)
    with torch.no_grad():
        head.sigma.fill_(7)
    kept = head.weight[2].clone()
    head.reset([0, 1])
    assert head.sigma.item() == 1
    assert head.weight[:2].abs().max() <= 0.25
    assert head.weight[:2].abs().min() > 0
    assert torch.equal(head.weight[2], kept)


def test_prototypes_are_means_over_all_images_of_a_class():
    torch.manual_seed(0)
    head = PrototypeHead(6)
    head.grow(2)
    features = torch.randn(10, 6, dtype=torch.double)
    for part in (features[:3], features[3:]):
        head.add([1], part.sum(0, keepdim=True), torch.tensor([len(part)]))
    torch.testing.assert_close(head.prototypes[1].double(), features.mean(0), atol=1e-6, rtol=1e-5)
    assert head.counts.tolist() == [0, 10]
    assert head(torch.randn(1, 6))[0, 0] == -1000


def test_sections_are_weighted_cosines():
    torch.manual_seed(0)
    head = PrototypeHead(6, section_weights=(0.3, 0.1))
    head.grow(2)
    prototypes, z = torch.randn(2, 6), torch.randn(4, 6)
    head.add([0, 1], prototypes.double(), torch.ones(2, dtype=torch.long))
    expected = 0.3 * F.cosine_similarity(z[:, None, :3], prototypes[None, :, :3], dim=2)
    expected += 0.1 * F.cosine_similarity(z[:, None, 3:], prototypes[None, :, 3:], dim=2)
    torch.testing.assert_close(head(z), expected)


def test_state_dicts_load_into_heads_of_another_size():
    for make in (ClassRows, lambda: LinearHead(3), lambda: CosineHead(3), lambda: PrototypeHead(3)):
        full = make()
        if isinstance(full, ClassRows):
            full.add([(0, 3), (1, 1)])
        else:
            full.grow(4)
        empty = make()
        empty.load_state_dict(full.state_dict())
        assert empty.state_dict().keys() == full.state_dict().keys()
        for name, value in full.state_dict().items():
            assert torch.equal(empty.state_dict()[name], value)
    assert full.counts.shape == (4,)


def test_observed_features_are_added_when_they_settle_and_not_before():
    torch.manual_seed(0)
    head, features, rows = PrototypeHead(6), torch.randn(9, 6), torch.tensor([0, 2] * 4 + [2])
    head.grow(3)
    head.begin([0, 2], [4, 5])
    for part in (slice(0, 4), slice(4, 9)):
        head.observe(features[part], rows[part])
    assert not head.counts.any()
    head.settle()
    assert head.counts.tolist() == [4, 0, 5]
    assert head.running is None
    torch.testing.assert_close(head.prototypes[2], features[rows == 2].mean(0))
    old = head.prototypes.clone()
    head.settle()  # an experience without a pass over it
    assert torch.equal(head.prototypes, old)


def test_what_is_not_finite_reaches_no_prototype():
    head = PrototypeHead(2)
    head.grow(1)
    head.begin([0], [1])
    head.observe(torch.tensor([[1.0, float("nan")]]), torch.tensor([0]))
    with pytest.raises(NotFiniteError, match="the class means are not finite"):
        head.settle()
    assert not head.counts.any()
    head.observe(torch.ones(1, 2), torch.tensor([0]))
    head.settle()
    assert head.counts.tolist() == [1]


def test_followed_features_stand_for_the_means_and_go_on_from_their_state():
    head = PrototypeHead(2)
    head.grow(2)
    head.begin([1], [4])
    assert head(torch.ones(1, 2)).tolist() == [[-1000, -1000]]
    head.follow(torch.tensor([[0.0, 2.0]]), torch.tensor([1]))
    state = head.passing_state()
    assert head(torch.tensor([[0.0, 1.0]])).tolist() == [[-1000, 1]]
    assert not any(key.startswith("running") for key in head.state_dict())
    other = PrototypeHead(2)
    other.grow(2)
    other.begin([1], [4])
    other.load_passing_state(state)
    assert other(torch.tensor([[0.0, 1.0]])).tolist() == [[-1000, 1]]
    other.grow(2)
    assert other.passing_state() == {}


def test_prototypes_move_with_a_drift_and_empty_rows_stay():
    head = PrototypeHead(2)
    head.grow(2)
    head.add([0], torch.tensor([[1.0, 2.0]]), torch.tensor([1]))
    head.move(ShiftDrift(lambda old: 2 * old + 1))
    assert head.prototypes.tolist() == [[3, 5], [0, 0]]


def test_a_class_whose_images_are_all_removed_is_unseen_and_no_more_can_be():
    head = PrototypeHead(2)
    head.grow(2)
    features = torch.tensor([[0.1, 0.7], [0.3, 0.2]])
    head.observe(features, torch.tensor([0, 0]))
    head.settle()
    head.remove(features, torch.tensor([0, 0]))
    head.settle()
    assert head(features).eq(-1000).all()
    assert not head.prototypes.any()
    head.remove(features[:1], torch.tensor([1]))
    with pytest.raises(ConfigError, match=r"more images of rows \[1\] were removed"):
        head.settle()
    assert head.counts.tolist() == [0, 0]


@pytest.mark.parametrize("head", [LinearHead(4), CosineHead(4)])
def test_a_trained_head_refuses_to_move(head):
    with pytest.raises(ConfigError, match=rf"a {type(head).__name__} cannot move with features"):
        head.move(LinearDrift(torch.eye(4)))
    with pytest.raises(ConfigError, match=rf"a {type(head).__name__} cannot take an image out"):
        head.remove(torch.ones(1, 4), torch.tensor([0]))


def test_new_cosines_can_train():
    head = CosineHead(16)
    head.grow(2)
    old = head.weight.detach().clone()
    head.grow(3)
    assert torch.equal(head.weight[:2], old)
    assert 0 < head.weight[2].norm() < 1
    head(torch.randn(4, 16)).sum().backward()
    assert 0 < head.weight.grad.abs().max() < 10


def test_sections_are_of_one_width():
    with pytest.raises(ConfigError, match="of width 6 are no 4 sections of one width"):
        PrototypeHead(6, section_weights=(1.0, 1.0, 1.0, 1.0))


@pytest.mark.parametrize("build", [build_linear, build_cosine, build_prototypes])
def test_every_head_classifies_for_a_tuned_network(backbone, build):
    model = PEFTModel(backbone, FrozenBranch(), build(in_features=backbone.embed_dim))
    model.start_experience([(0, 1), (0, 0)])
    (head,) = model.heads
    images = torch.randn(4, 3, 16, 16)
    rows = torch.tensor([0, 1, 0, 1])
    head.begin([0, 1], [2, 2])
    head.observe(model.embed(images), rows)
    head.settle()
    logits = model(images)
    assert logits.shape == (4, 2)
    assert torch.equal(logits[:, [1, 0]], head(model.embed(images)))
    sited = {id(site.parameter) for site in head.head_sites()}
    assert sited == ({id(p) for p in head.parameters()} if build is build_linear else set())


def test_ntk_cl_predicts_with_the_head_that_it_is_given(backbone):
    widths = []

    def build(width):
        widths.append(width)
        return PrototypeHead(width)

    model = NTKCLModel(backbone, n_copies=2, head=build)
    model.start_experience([(0, 0), (0, 1)])
    assert widths == [model.embed_dim]
    assert [type(head) for head in model.heads] == [CosineHead, PrototypeHead, PrototypeHead]
    model.eval()
    features = model.embed(torch.randn(2, 3, 16, 16))
    for head in (head for head in model.heads if head.fitted):
        head.observe(features, torch.tensor([0, 1]))
        head.settle()
    assert torch.equal(model.classify(features), model.head(features))
    assert not torch.equal(model.classify(features), model.prototypes(features))
    model.train()
    assert torch.equal(model.classify(features), model.proxies(features))
    with pytest.raises(ConfigError, match="a LinearHead is trained; take one such as"):
        NTKCLModel(backbone, head=LinearHead)


def test_the_default_is_a_linear_head(backbone):
    assert isinstance(PEFTModel(backbone, Branch()).head, LinearHead)
