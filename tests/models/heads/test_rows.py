import pytest
import torch

from avalanche_peftcl.models.heads.rows import ClassRows


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
