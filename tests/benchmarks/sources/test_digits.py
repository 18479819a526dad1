from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from avalanche_peftcl.benchmarks import digits
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig


def all_images(stream: Any) -> torch.Tensor:
    return torch.stack([x for e in stream for x, *_ in e.dataset])


def test_split_is_stratified_and_the_same_for_every_seed() -> None:
    config = InputConfig(img_size=8)
    first, other = (digits(input_config=config, seed=seed) for seed in (0, 1))
    assert first.class_order != other.class_order
    assert [len(all_images(s)) for s in (first.train_stream, first.test_stream)] == [1437, 360]
    assert {len(e.dataset) for e in first.test_stream} <= {69, 70, 71, 72, 73, 74, 75}
    tested = [
        {tuple(x[0].flatten().tolist()) for x in all_images(b.test_stream)} for b in (first, other)
    ]
    assert tested[0] == tested[1]


def test_images_are_those_of_scikit_learn() -> None:
    benchmark = digits(input_config=InputConfig(img_size=8), n_experiences=1)
    streams = benchmark.train_stream, benchmark.test_stream
    got = torch.cat([all_images(s)[:, 0] for s in streams])
    expected = torch.from_numpy(load_digits().images / 16).float()
    assert got.shape == expected.shape
    torch.testing.assert_close(got.sum(), expected.sum(), rtol=1e-3, atol=0)
    mean = {c: expected[load_digits().target == c].mean(0) for c in range(10)}
    labels = [y for s in streams for y in s[0].dataset.targets]
    zero = benchmark.class_order.index(0)
    is_zero = torch.tensor([y == zero for y in labels])
    torch.testing.assert_close(got[is_zero].mean(0), mean[0], rtol=0, atol=2e-3)


def test_domains_are_rotations() -> None:
    config = InputConfig(img_size=8)
    benchmark = digits(input_config=config, scenario="domain", n_experiences=7)
    assert benchmark.domains[:3] == ["0 degrees", "15 degrees", "30 degrees"]
    assert [len(e.dataset) for e in benchmark.test_stream] == [360] * 7
    upright, turned = benchmark.test_stream[0].dataset[0], benchmark.test_stream[6].dataset[0]
    assert upright[1:] == turned[1:]
    torch.testing.assert_close(turned[0], torch.rot90(upright[0], 1, (1, 2)))


@pytest.mark.parametrize(("scenario", "length"), [("class", 5), ("task", 5), ("online", 5)])
def test_default_is_five_experiences(scenario: Any, length: int) -> None:
    assert len(digits(input_config=InputConfig(8), scenario=scenario).test_stream) == length


def test_unequal_experiences() -> None:
    benchmark = digits(input_config=InputConfig(8), classes_per_experience=[7, 2, 1])
    sizes = [len(e.classes_in_this_experience) for e in benchmark.train_stream]
    assert sizes == [7, 2, 1]


def test_bad_options() -> None:
    with pytest.raises(DataError, match="10 classes do not divide into 4 experiences"):
        digits(input_config=InputConfig(8), n_experiences=4)
    with pytest.raises(ConfigError, match="at most 12 domains"):
        digits(input_config=InputConfig(8), scenario="domain", n_experiences=13)
    with pytest.raises(ConfigError, match="takes no classes_per_experience"):
        digits(input_config=InputConfig(8), scenario="domain", classes_per_experience=[5, 5])


def test_options_of_a_subset() -> None:
    benchmark = digits(
        input_config=InputConfig(8), n_experiences=2, train_per_class=3, validation_per_class=4
    )
    assert [len(e.dataset) for e in benchmark.train_stream] == [15, 15]
    assert [len(e.dataset) for e in benchmark.test_stream] == [20, 20]
    counts = np.bincount([y for e in benchmark.test_stream for y in e.dataset.targets])
    assert counts.tolist() == [4] * 10
