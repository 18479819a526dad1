import pytest
import torch

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import LinearDrift, ShiftDrift


@pytest.mark.parametrize("columns", [None, slice(0, 6), slice(2, 5), slice(4, None)])
def test_second_moments_after_a_linear_drift_are_those_of_moved_rows(columns):
    torch.manual_seed(0)
    rows = torch.randn(9, 6, dtype=torch.float64)
    width = len(range(6)[columns or slice(None)])
    drift = LinearDrift(torch.randn(width, width, dtype=torch.float64), columns)
    moved = drift(rows)
    whole = torch.eye(6, dtype=torch.float64)
    at = columns or slice(None)
    whole[at, at] = drift.matrix
    torch.testing.assert_close(moved, rows @ whole)
    gram = rows.T @ rows
    torch.testing.assert_close(drift.congruence(gram), moved.T @ moved)
    many = drift.congruence(torch.stack([gram, 2 * gram]))
    torch.testing.assert_close(many[1], 2 * moved.T @ moved)
    assert torch.equal(gram, rows.T @ rows)  # what is handed in stays


def test_features_keep_their_dtype_and_their_values():
    for drift in (LinearDrift(torch.eye(3).double()), ShiftDrift(torch.Tensor.double)):
        features = torch.randn(2, 3)
        assert torch.equal(drift(features), features)
        assert drift(features).dtype == torch.float32


def test_a_matrix_that_is_not_square_is_refused():
    with pytest.raises(ConfigError, match=r"a drift of shape \(2, 3\) is not square"):
        LinearDrift(torch.ones(2, 3))
