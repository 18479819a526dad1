import pytest
import torch
from torch.nn import functional as F

from avalanche_peftcl.models.heads.heads import ClassRows, CosineHead, LinearHead, PrototypeHead


def test_rows_are_kept_and_outputs_stand_at_their_class():
    rows = ClassRows()
    assert rows.add([(0, 4), (0, 2)]) == [0, 1]
    assert rows.add([(0, 2), (0, 0)]) == [1, 2]
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert rows.scatter(logits).tolist() == [[3, -1000, 2, -1000, 1]]


def test_a_task_label_restricts_prediction_to_its_own_rows():
    rows = ClassRows()
    rows.add([(0, 0), (0, 1), (1, 0), (1, 2)])
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2)
    out = rows.scatter(logits, torch.tensor([0, 1]))
    assert out.tolist() == [[1, 2, -1000], [3, -1000, 4]]
    assert rows.index(torch.tensor([0, 0]), torch.tensor([0, 1])).tolist() == [0, 2]
    with pytest.raises(ValueError, match="task_labels are needed"):
        rows.scatter(logits)


def test_gradient_reaches_only_the_rows_that_may_be_predicted():
    rows = ClassRows()
    rows.add([(0, 0), (1, 0)])
    logits = torch.tensor([[0.5, 0.7]], requires_grad=True)
    rows.scatter(logits, torch.tensor([1])).sum().backward()
    assert logits.grad.tolist() == [[0, 1]]


def test_a_target_without_a_row_is_refused():
    rows = ClassRows()
    rows.add([(0, 0)])
    with pytest.raises(ValueError, match=r"\(0, 5\)"):
        rows.index(torch.tensor([0, 5]))


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
