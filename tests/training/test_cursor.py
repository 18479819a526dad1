import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils.data_loader import ReplayDataLoader
from torch.utils.data import DataLoader

from avalanche_peftcl.models.rng import random_state, set_random_state
from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.training.cursor import Cursor

CPU = torch.device("cpu")


def loaders():
    stream = toy_benchmark("class", augment="random_resized_crop").train_stream
    one, other = (experience.dataset for experience in stream[:2])
    memory = other.subset([0, 3, 7])  # shuffled anew again and again while the other lasts
    return {
        "plain": DataLoader(one, 2, shuffle=True),
        "two processes": DataLoader(one, 2, shuffle=True, num_workers=2),
        "replay": ReplayDataLoader(
            one, memory, oversample_small_tasks=True, batch_size=2, batch_size_mem=2, shuffle=True
        ),
    }


def epoch(cursor, loader, seen, *, stop=None):
    """Stand in for a training that draws from every generator."""
    for i, (images, targets, _) in cursor.minibatches(loader):
        noise = float(torch.rand(())), float(np.random.rand())
        seen.append((i, targets.tolist(), images.sum().item(), noise))
        cursor.advance(i + 1, stepped=i % 2 == 1)
        if i == stop:
            return


@pytest.mark.parametrize("kind", ["plain", "two processes", "replay"])
def test_minibatches_go_on_as_they_would_have(kind):
    loader, positions = loaders()[kind], []
    torch.manual_seed(3)
    whole: list = []
    epoch(Cursor(CPU), loader, whole)

    torch.manual_seed(3)
    np.random.seed(3)
    seen: list = []
    cursor = Cursor(CPU)
    cursor.every = 3
    cursor.save = lambda position: positions.append((position, random_state(CPU)))
    epoch(cursor, loader, seen, stop=4)
    assert [entry[:3] for entry in seen] == [entry[:3] for entry in whole[:5]]
    ((position, at),) = positions
    assert (position["epoch"], position["iteration"]) == (0, 4)  # the step after the third

    torch.manual_seed(99)
    rest: list = []
    new = Cursor(CPU)
    new.go_to(position, lambda: set_random_state(at, CPU))
    epoch(new, loader, rest)
    assert rest[0] == seen[4]
    assert [entry[:3] for entry in rest] == [entry[:3] for entry in whole[4:]]
    again: list = []
    epoch(new, loader, again)  # the goal is reached once
    assert [entry[0] for entry in again] == [entry[0] for entry in whole]


def test_epochs_before_the_goal_are_left_out():
    cursor, restored = Cursor(CPU), []
    cursor.go_to({"epoch": 2}, lambda: restored.append(True))
    assert list(cursor.epochs(4)) == [2, 3]
    assert restored == [True]
    assert list(Cursor(CPU).epochs(2)) == [0, 1]


def test_nothing_is_saved_while_it_pauses_or_in_the_midst_of_a_step():
    cursor, saved = Cursor(CPU), []
    cursor.every, cursor.save = 1, saved.append
    with cursor.pause():
        cursor.advance(1, stepped=True)
    cursor.advance(2, stepped=False)
    assert saved == []
    cursor.advance(3, stepped=True)
    assert [position["iteration"] for position in saved] == [3]


def test_noting_draws_from_no_generator():
    loader = loaders()["plain"]
    ends = []
    for every in (None, 1):
        cursor = Cursor(CPU)
        cursor.every, cursor.save = every, lambda position: None
        torch.manual_seed(0)
        epoch(cursor, loader, [])
        ends.append(torch.get_rng_state())
    assert torch.equal(*ends)
