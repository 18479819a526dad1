"""A matrix that is filled entry by entry gives the numbers of the whole one, at linear cost."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avalanche_peftcl.evaluation import AccuracyMatrix, running_matrix
from avalanche_peftcl.evaluation.running_matrix import RunningMatrix
from avalanche_peftcl.functional import accuracy_matrix as functional

SIZE = 5
# a row (None: before any training), a column, images and how many of them are right
ENTRY = st.tuples(
    st.none() | st.integers(0, SIZE - 1), st.integers(0, SIZE - 1), st.sampled_from([0, 4, 7])
).flatmap(lambda e: st.tuples(*map(st.just, e), st.integers(0, e[2]), st.booleans()))


def in_order(size):
    """The entries of a run that evaluates on what it has seen."""
    return [(t, i, 7, (3 * t + 5 * i) % 8, False) for t in range(size) for i in range(t + 1)]


def numbers(metric):
    """Return every number as the functions of the whole matrix give it."""
    matrix, counts = metric.matrix, metric.counts
    curve, row = functional.accuracy_curve(matrix, counts), functional.final_row(matrix)
    return {
        "average_accuracy": functional.average_accuracy(matrix),
        "average_incremental_accuracy": functional.average_incremental_accuracy(matrix, counts),
        "last_accuracy": functional.last_accuracy(matrix, counts),
        "forgetting": functional.forgetting(matrix),
        "clipped_forgetting": functional.clipped_forgetting(matrix),
        "backward_transfer": functional.backward_transfer(matrix),
        "forward_transfer": functional.forward_transfer(matrix, metric.baseline),
        "learning_accuracy": functional.learning_accuracy(matrix),
        "accuracy_curve": curve[: len(row)].tolist(),
        "per_task": row.tolist(),
        "forgetting_by_experience": functional.forgetting_by_experience(matrix).tolist(),
    }


def defined(value):
    if isinstance(value, list):
        return [defined(inner) for inner in value]
    return None if math.isnan(value) else value


@settings(max_examples=150)
@given(st.lists(ENTRY, max_size=40))
def test_entries_in_any_order_give_the_numbers_of_the_matrix(entries):
    metric = AccuracyMatrix()
    for row, column, total, correct, look in [*in_order(3), *entries]:
        metric.record(row, column, correct=correct, total=total)
        if look:  # what is kept from one look to the next must not get stale
            metric.summary()
    assert metric.summary() == {k: defined(v) for k, v in numbers(metric).items()}


@given(st.lists(ENTRY, max_size=20), st.integers(0, 4))
def test_a_state_gives_the_same_numbers_with_rows_kept_elsewhere_too(entries, kept):
    metric, other = AccuracyMatrix(), AccuracyMatrix()
    for row, column, total, correct, _ in [*in_order(4), *entries]:
        metric.record(row, column, correct=correct, total=total)
    rows = metric.matrix[:kept].clone()
    metric.keep_elsewhere(kept)
    state = metric.state_dict()
    assert len(state["rows"]) <= SIZE - kept
    other.keep_elsewhere(rows)
    other.load_state_dict(state)
    assert other.summary() == metric.summary()
    assert torch.equal(other.matrix.nan_to_num(9), metric.matrix.nan_to_num(9))
    assert other.state_dict().keys() == state.keys()


def test_a_stream_of_unknown_length_makes_room_seldom(monkeypatch):
    pads, pad = [], running_matrix.pad

    def counted(tensor, *args, **kwargs):
        if tensor.ndim == 2:
            pads.append(tensor.numel())
        return pad(tensor, *args, **kwargs)

    monkeypatch.setattr(running_matrix, "pad", counted)
    running = RunningMatrix()
    for t in range(200):
        running.record(t, t, correct=1, total=2)
    assert running.matrix.shape == (200, 200)
    assert sum(pads) <= 200**2  # what was copied in all


class Stream:
    """Test experiences of which none is looked at without being counted."""

    name = "test"

    def __init__(self, size):
        self.size, self.looks = size, 0

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        self.looks += 1
        return SimpleNamespace(dataset=range(4), origin_stream=self, current_experience=index)


def work_of_one_experience(size, monkeypatch):
    """Return what evaluating once more costs with ``size`` experiences: looks, and entries read."""
    read, fold, point = [], running_matrix.fold_row, running_matrix.seen_accuracy
    monkeypatch.setattr(
        running_matrix, "fold_row", lambda b, row, t: (read.append(t + 1), fold(b, row, t))
    )
    monkeypatch.setattr(
        running_matrix, "seen_accuracy", lambda row, n: (read.append(len(row)), point(row, n))[1]
    )
    stream, metric = Stream(size), AccuracyMatrix()
    output = torch.eye(2)[[0, 1, 0, 1]]
    strategy = SimpleNamespace(mb_output=output, mb_y=torch.tensor([0, 1, 1, 0]))
    work = 0
    for t in range(size - 2, size):
        strategy.experience = SimpleNamespace(current_experience=t, origin_stream=stream)
        metric.before_training_exp(strategy)
        metric.before_eval(strategy)
        read.clear()
        stream.looks = 0
        for i in range(t + 1):
            strategy.experience = SimpleNamespace(current_experience=i, origin_stream=stream)
            metric.before_eval_exp(strategy)
            metric.after_eval_iteration(strategy)
            metric.after_eval_exp(strategy)
        metric.summary()
        metric.summary()
        work = stream.looks + sum(read)
    assert metric.summary()["average_accuracy"] == 0.5
    return work


def test_the_work_of_an_experience_grows_linearly(monkeypatch):
    small, large = (work_of_one_experience(size, monkeypatch) for size in (50, 100))
    assert small > 0
    assert large <= 2.2 * small


@pytest.mark.parametrize("total", [0, 3])
def test_test_images_that_were_not_there_change_the_curve(total):
    metric = AccuracyMatrix()
    metric.record(0, 0, correct=1, total=2)
    metric.record(1, 0, correct=1, total=2)
    metric.record(1, 1, correct=0, total=2)
    assert metric.summary()["accuracy_curve"] == [0.5, 0.25]
    metric.record(1, 1, correct=0, total=total)
    assert metric.summary()["accuracy_curve"] == ([0.5, 0.5] if total == 0 else [0.5, 0.2])
