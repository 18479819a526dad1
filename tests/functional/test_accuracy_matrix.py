import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from avalanche_peftcl.functional import accuracy_matrix as am

NAN = math.nan
SCALARS = (am.average_accuracy, am.forgetting, am.clipped_forgetting, am.backward_transfer)


def reference(matrix, counts, baseline):
    """Everything again with loops; ``matrix`` holds the experiences trained so far, no nan."""
    k = len(matrix)
    curve = []
    for t in range(k):
        right = images = 0.0
        for i in range(t + 1):
            right += counts[i] * matrix[t][i]
            images += counts[i]
        curve.append(right / images)
    drops, clipped, gains, forward = [], [], [], []
    for i in range(k - 1):
        best = -1.0
        for t in range(i, k - 1):
            best = max(best, matrix[t][i])
        drops.append(best - matrix[k - 1][i])
        clipped.append(max(0.0, matrix[i][i] - matrix[k - 1][i]))
        gains.append(matrix[k - 1][i] - matrix[i][i])
        forward.append(matrix[i][i + 1] - baseline[i + 1])
    mean = lambda values: sum(values) / len(values) if values else NAN  # noqa: E731
    return {
        "accuracy_curve": curve,
        "average_incremental_accuracy": mean(curve),
        "last_accuracy": curve[-1],
        "average_accuracy": mean([matrix[k - 1][i] for i in range(k)]),
        "forgetting": mean(drops),
        "clipped_forgetting": mean(clipped),
        "backward_transfer": mean(gains),
        "forward_transfer": mean(forward),
        "learning_accuracy": mean([matrix[i][i] for i in range(k)]),
    }


def ours(matrix, counts, baseline):
    return {
        "average_incremental_accuracy": am.average_incremental_accuracy(matrix, counts),
        "last_accuracy": am.last_accuracy(matrix, counts),
        "average_accuracy": am.average_accuracy(matrix),
        "forgetting": am.forgetting(matrix),
        "clipped_forgetting": am.clipped_forgetting(matrix),
        "backward_transfer": am.backward_transfer(matrix),
        "forward_transfer": am.forward_transfer(matrix, baseline),
        "learning_accuracy": am.learning_accuracy(matrix),
    }


fraction = st.floats(0, 1)


@st.composite
def runs(draw):
    """A full matrix of T experiences, of which the first K are trained."""
    t = draw(st.integers(1, 6))
    return (
        draw(arrays.arrays(np.float64, (t, t), elements=fraction)),
        draw(arrays.arrays(np.int64, t, elements=st.integers(1, 1000))),
        draw(arrays.arrays(np.float64, t, elements=fraction)),
        draw(st.integers(1, t)),
    )


@given(runs())
def test_agrees_with_loops_also_when_unfinished(run):
    full, counts, baseline, k = run
    expected = reference(full[:k, :k].tolist(), counts.tolist(), baseline.tolist())
    matrix = torch.tensor(full)
    matrix[k:] = NAN
    curve = am.accuracy_curve(matrix, torch.tensor(counts))
    np.testing.assert_allclose(curve[:k], expected.pop("accuracy_curve"), atol=1e-12)
    assert curve[k:].isnan().all()
    got = ours(matrix, torch.tensor(counts), torch.tensor(baseline))
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


@given(runs())
def test_future_columns_only_matter_for_forward_transfer(run):
    full, counts, baseline, _ = run
    matrix, counts, baseline = torch.tensor(full), torch.tensor(counts), torch.tensor(baseline)
    seen = torch.where(torch.ones_like(matrix).tril() > 0, matrix, NAN)
    got, expected = ours(seen, counts, baseline), ours(matrix, counts, baseline)
    assert math.isnan(got.pop("forward_transfer"))
    expected.pop("forward_transfer")
    assert got == pytest.approx(expected, nan_ok=True)


@given(runs())
def test_relations(run):
    matrix, counts = torch.tensor(run[0]), torch.tensor(run[1])
    equal = torch.full_like(counts, 7)
    assert am.average_accuracy(matrix) == pytest.approx(am.last_accuracy(matrix, equal))
    assert torch.equal(am.final_row(matrix), matrix[-1])
    if len(matrix) > 1:
        assert am.forgetting(matrix) >= -am.backward_transfer(matrix) - 1e-12
        assert am.clipped_forgetting(matrix) >= max(0, -am.backward_transfer(matrix)) - 1e-12
        assert am.learning_accuracy(matrix) + am.backward_transfer(matrix) * (
            1 - 1 / len(matrix)
        ) == pytest.approx(am.average_accuracy(matrix))


LOGS = {  # published logs of the PEGP CLIP-Adapter, per cent
    "cifar100": {
        "final": [92.0, 85.1, 78.5, 55.0, 29.1, 80.9, 68.7, 71.7, 75.7, 67.0],
        "diagonal": [94.7, 89.5, 76.8, 74.6, 49.1, 79.2, 61.8, 74.2, 78.0, 67.0],
        "curve": [94.7, 91.7, 86.33, 80.22, 73.42, 75.2, 73.29, 72.22, 71.18, 70.37],
        "expected": {"clipped": 5.72, "max": 6.58, "signed": 4.58, "last": 70.37},
    },
    "imagenet100": {
        "final": [86.2, 94.4, 83.0, 51.2, 69.8, 63.4, 89.8, 84.8, 84.8, 84.2],
        "diagonal": [89.6, 93.6, 83.4, 61.0, 72.8, 68.0, 88.6, 86.4, 85.4, 84.2],
        "curve": [89.6, 91.1, 86.0, 79.45, 77.4, 76.2, 79.0, 78.9, 79.62, 79.16],
        "expected": {"clipped": 2.60, "max": 3.09, "signed": 2.38, "last": 79.16},
    },
}


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_published_logs(log):
    final = torch.tensor(log["final"], dtype=torch.float64)
    diagonal = torch.tensor(log["diagonal"], dtype=torch.float64)
    matrix = torch.full((10, 10), NAN, dtype=torch.float64)
    matrix.diagonal().copy_(diagonal / 100)
    matrix[-1] = final / 100
    counts, expected = torch.full((10,), 1000), log["expected"]

    assert round(100 * am.last_accuracy(matrix, counts), 2) == expected["last"]
    assert round(100 * am.average_accuracy(matrix), 2) == expected["last"]
    assert round(100 * am.clipped_forgetting(matrix), 2) == expected["clipped"]
    assert round(-100 * am.backward_transfer(matrix), 2) == expected["signed"]
    assert am.learning_accuracy(matrix) == pytest.approx(float(diagonal.mean()) / 100)
    # the maximum needs the rows between, which the logs do not give; nothing is made up for them
    assert math.isnan(am.forgetting(matrix))
    assert math.isnan(am.average_incremental_accuracy(matrix, counts))


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_published_logs_with_rows_between_that_fit_the_published_totals(log):
    diagonal, curve = log["diagonal"], log["curve"]
    matrix = torch.full((10, 10), NAN, dtype=torch.float64)
    for t in range(10):  # the old experiences share what the total of the step leaves
        matrix[t, :t] = ((t + 1) * curve[t] - diagonal[t]) / max(t, 1) / 100
        matrix[t, t] = diagonal[t] / 100
    matrix[-1] = torch.tensor(log["final"]) / 100
    counts, expected = torch.full((10,), 500), log["expected"]

    assert (100 * am.accuracy_curve(matrix, counts)).tolist() == pytest.approx(curve, abs=5e-3)
    average = 100 * am.average_incremental_accuracy(matrix, counts)
    assert average == pytest.approx(sum(curve) / 10, abs=5e-3)
    assert 100 * am.forgetting(matrix) >= expected["signed"] - 5e-3
    assert expected["max"] >= expected["clipped"] >= expected["signed"]


def test_missing_values_are_never_averaged_away():
    matrix = torch.tensor([[0.9, NAN, NAN], [NAN, 0.8, NAN], [0.5, 0.6, 0.7]])
    counts = torch.tensor([10, 10, 10])
    assert math.isnan(am.forgetting(matrix))
    assert am.backward_transfer(matrix) == pytest.approx(-0.3)
    assert math.isnan(am.average_incremental_accuracy(matrix, counts))
    assert am.last_accuracy(matrix, counts) == pytest.approx(0.6)
    only_diagonal = torch.full((3, 3), NAN)
    only_diagonal.diagonal().copy_(torch.tensor([0.9, 0.8, 0.7]))
    assert am.learning_accuracy(only_diagonal) == pytest.approx(0.8)
    assert math.isnan(am.last_accuracy(only_diagonal, counts))
    assert all(math.isnan(function(only_diagonal)) for function in SCALARS)


def test_one_test_experience_for_all_training_experiences():
    matrix = torch.full((3, 3), NAN)
    matrix[:, 0] = torch.tensor([0.2, 0.4, 0.6])
    counts = torch.tensor([50, 0, 0])
    assert am.accuracy_curve(matrix, counts).tolist() == pytest.approx([0.2, 0.4, 0.6])
    assert am.last_accuracy(matrix, counts) == pytest.approx(0.6)
    assert am.average_incremental_accuracy(matrix, counts) == pytest.approx(0.4)
    assert math.isnan(am.average_accuracy(matrix))


@pytest.mark.parametrize("size", [0, 3])
def test_undefined_before_the_first_row(size):
    matrix, counts = torch.full((size, size), NAN), torch.zeros(size, dtype=torch.int64)
    values = ours(matrix, counts, torch.full((size,), NAN)).values()
    assert all(math.isnan(value) for value in values)
    assert am.final_row(matrix).numel() == 0


def test_undefined_with_one_experience():
    matrix, one = torch.tensor([[0.5]]), torch.ones(1)
    got = ours(matrix, one, one)
    for name in ("forgetting", "clipped_forgetting", "backward_transfer", "forward_transfer"):
        assert math.isnan(got[name])
    assert got["last_accuracy"] == got["average_accuracy"] == got["learning_accuracy"] == 0.5


def test_input_is_left_as_it_is():
    matrix = torch.rand(4, 4)
    before = matrix.clone()
    ours(matrix, torch.ones(4), torch.zeros(4))
    assert torch.equal(matrix, before)


@pytest.mark.parametrize(
    "matrix", [torch.zeros(2, 3), torch.zeros(4), torch.zeros(2, 2, dtype=torch.int64)]
)
@pytest.mark.parametrize("function", [*SCALARS, am.learning_accuracy, am.final_row])
def test_refuses_what_is_no_matrix(function, matrix):
    with pytest.raises(ValueError, match=r"square, \(T, T\), and floating"):
        function(matrix)


@pytest.mark.parametrize("counts", [torch.ones(3), torch.ones(2, 2), torch.tensor([3, -1])])
@pytest.mark.parametrize(
    "function", [am.accuracy_curve, am.last_accuracy, am.average_incremental_accuracy]
)
def test_refuses_wrong_counts(function, counts):
    with pytest.raises(ValueError, match="counts must be 2 numbers of test images"):
        function(torch.rand(2, 2), counts)


def test_refuses_wrong_baseline():
    with pytest.raises(ValueError, match="baseline must hold 2 accuracies"):
        am.forward_transfer(torch.rand(2, 2), torch.zeros(3))
