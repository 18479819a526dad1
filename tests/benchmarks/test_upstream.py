"""What Avalanche gets wrong and ``make_benchmark`` works around; a failure here is good news."""

from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import class_incremental_benchmark, nc_benchmark, split_online_stream
from avalanche.benchmarks.utils import (
    DataAttribute,
    TaskAwareSupervisedClassificationDataset,
    as_classification_dataset,
)
from avalanche.benchmarks.utils.transform_groups import TransformGroups

from avalanche_peftcl.benchmarks import ImageArray


def images() -> Any:
    return ImageArray(np.zeros((10, 4, 4), np.uint8), list(range(10)))


def test_upstream_still_drops_the_remainder_of_a_split() -> None:
    data = {name: as_classification_dataset(images()) for name in ("train", "test")}
    benchmark = class_incremental_benchmark(data, num_experiences=3, seed=0)
    assert sum(len(e.dataset) for e in benchmark.train_stream) == 9


def test_upstream_still_resets_the_global_generator() -> None:
    before = torch.get_rng_state()
    nc_benchmark(images(), images(), 2, task_labels=False, seed=1)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    assert not torch.equal(before, after)


def test_upstream_still_does_not_mark_the_last_chunk_of_an_even_split() -> None:
    benchmark = nc_benchmark(images(), images(), 1, task_labels=False, shuffle=False)
    chunks = list(split_online_stream(benchmark.train_stream, 5, access_task_boundaries=True))
    assert [c.is_last_subexp for c in chunks] == [False, False]
    assert not hasattr(chunks[0], "classes_in_this_experience")


def test_upstream_still_ignores_the_group_of_transforms_given_at_the_start() -> None:
    groups = TransformGroups({"train": (len, None), "eval": (len, None)}, current_group="eval")
    dataset = TaskAwareSupervisedClassificationDataset(
        [images()],
        data_attributes=[
            DataAttribute([0] * 10, name) for name in ("targets", "targets_task_labels")
        ],
        transform_groups=groups,
    )
    assert dataset._flat_data._transform_groups.current_group == "train"
