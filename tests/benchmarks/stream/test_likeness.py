"""Class orders by how classes look, against groups that are known and against all there are."""

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_distances
from torch import nn

from avalanche_peftcl.benchmarks import ImageArray, class_means, make_benchmark, order_by_likeness
from avalanche_peftcl.benchmarks.stream.likeness import DIFFICULTIES
from avalanche_peftcl.benchmarks.stream.transforms import eval_transform
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import InputConfig
from avalanche_peftcl.testing import toy_backbone, toy_images

CONFIG = InputConfig(img_size=16)


def experiences(order, sizes):
    ends = np.cumsum(sizes)
    return [sorted(order[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def kinds(sizes, *, seed=0):
    """Means of classes of some kinds, so many of each, shuffled; and the kind of each class."""
    rng = np.random.default_rng(seed)
    kind = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = np.linalg.qr(rng.normal(size=(16, len(sizes))))[0].T
    return centres[kind] + 0.02 * rng.normal(size=(len(kind), 16)), kind


@pytest.mark.parametrize("seed", range(5))
def test_the_hardest_order_has_a_kind_an_experience(seed):
    means, kind = kinds([3, 3, 3, 3], seed=seed)
    order = order_by_likeness(means, [3] * 4, difficulty="hardest")
    for group in experiences(order, [3] * 4):
        assert len(set(kind[group])) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_easiest_order_has_one_of_each_kind_in_every_experience(seed):
    means, kind = kinds([4, 4, 4], seed=seed)
    order = order_by_likeness(means, [3] * 4, difficulty="easiest")
    for group in experiences(order, [3] * 4):
        assert sorted(kind[group]) == [0, 1, 2]


def test_experiences_may_differ_in_size():
    means, kind = kinds([2, 5, 3])
    order = order_by_likeness(means, [5, 3, 2], difficulty="hardest")
    assert [set(kind[group]) for group in experiences(order, [5, 3, 2])] == [{1}, {2}, {0}]


def test_what_is_left_of_a_kind_goes_where_it_is_least_unlike():
    """Two kinds of three in experiences of four and two: the nearest stranger joins."""
    angles = np.array([0.0, 0.05, 0.1, 0.5, 0.9, 0.95])
    means = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    order = order_by_likeness(means, [4, 2], difficulty="hardest")
    assert order == [0, 1, 2, 3, 4, 5]


def spread(means, groups):
    """Mean distance of two classes in one experience."""
    distances = cosine_distances(means)
    return np.mean([distances[a, b] for g in groups for a in g for b in g if a < b])


@pytest.mark.parametrize("seed", range(3))
def test_orders_are_near_the_ends_of_all_there_are(seed):
    """Of all groupings of six classes in pairs the greedy ones are among the outer fifths."""
    means = np.random.default_rng(seed).normal(size=(6, 3))
    sizes = [2, 2, 2]
    every = {tuple(sorted(map(tuple, experiences(list(p), sizes)))) for p in permutations(range(6))}
    found = sorted(spread(means, groups) for groups in every)
    assert len(found) == 15
    hard, easy = (
        spread(means, experiences(order_by_likeness(means, sizes, difficulty=d), sizes))
        for d in DIFFICULTIES
    )
    assert hard <= found[2] + 1e-12
    assert easy >= found[-4] - 1e-12


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_an_order_is_a_permutation_and_depends_on_directions_alone(difficulty):
    rng = np.random.default_rng(1)
    means = rng.normal(size=(11, 5))
    sizes = [4, 1, 6]
    order = order_by_likeness(means, sizes, difficulty=difficulty)
    assert sorted(order) == list(range(11))
    assert all(g == sorted(g) for g in experiences(order, sizes))
    longer = means * rng.uniform(0.5, 2, (11, 1))
    assert order_by_likeness(longer, sizes, difficulty=difficulty) == order
    turned = means @ np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert order_by_likeness(turned, sizes, difficulty=difficulty) == order
    assert order_by_likeness(means[:1], [1], difficulty=difficulty) == [0]
    assert sorted(order_by_likeness(np.ones((4, 2)), [2, 2], difficulty=difficulty)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("means", "sizes", "difficulty", "said"),
    [
        (np.eye(2), [1, 1], "harder", "difficulty='harder' is not one of 'hardest', 'easiest'"),
        (np.eye(2), [1], "hardest", r"sizes=\[1\] are not numbers of classes that add up"),
        (np.eye(2), [2, 0], "hardest", "are not numbers of classes that add up"),
        (np.zeros((0, 2)), [], "hardest", "are not numbers of classes that add up"),
        (np.zeros((2, 2)), [1, 1], "hardest", r"means of the classes \[0, 1\] are zero"),
        (np.array([[1.0], [np.nan]]), [1, 1], "easiest", r"classes \[1\] are zero or no finite"),
    ],
)
def test_what_cannot_be_ordered_is_refused(means, sizes, difficulty, said):
    with pytest.raises(ConfigError, match=said):
        order_by_likeness(means, sizes, difficulty=difficulty)


# --- from images ---------------------------------------------------------------------------------


def test_means_are_those_of_the_features():
    backbone, images = toy_backbone(depth=1), toy_images(3, 4)
    transform = eval_transform(CONFIG)
    found = class_means(backbone, images, np.array(images.targets), transform=transform)
    with torch.no_grad():
        features = backbone(torch.stack([transform(images[i][0]) for i in range(12)]))
    wanted = features.double().view(3, 4, -1).mean(1)
    # minibatches of other sizes round otherwise: a float32 sum over some hundred numbers
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=1e-5)


def test_of_a_class_fifty_images_are_read_and_modes_stay():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.read = nn.Dropout(0.5), []

        def forward(self, images):
            self.read.append(len(images))
            return self.inner(images.flatten(1))

    labels = np.repeat([0, 1], [120, 7])
    images = ImageArray(np.ones((127, 16, 16), np.uint8), labels.tolist())
    network = Counts().train()
    network.inner.eval()
    class_means(network, images, labels, transform=eval_transform(CONFIG))
    assert network.read == [50, 7]
    assert (network.training, network.inner.training) == (True, False)


def build(order, backbone, *, sizes=(2, 2, 2), **options):
    return make_benchmark(
        toy_images(6, 6),
        toy_images(6, 3, seed=1),
        input_config=CONFIG,
        backbone=backbone,
        class_order=order,
        classes_per_experience=list(sizes),
        **options,
    )


def shown(benchmark):
    """All images of a benchmark with their original labels, in no order."""
    order = benchmark.class_order
    return {
        name: sorted(
            (order[int(y)], x.numpy().tobytes())
            for experience in stream
            for x, y, _ in (experience.dataset.eval()[i] for i in range(len(experience.dataset)))
        )
        for name, stream in (("train", benchmark.train_stream), ("test", benchmark.test_stream))
    }


@pytest.mark.parametrize("scenario", ["class", "task", "online"])
def test_a_benchmark_has_the_order_and_the_same_images(scenario):
    backbone = toy_backbone(depth=1)
    options = {"scenario": scenario, "augment": "none", "train_per_class": 3}
    drawn = build(None, backbone, **options, seed=4)
    train = toy_images(6, 6)
    means = class_means(backbone, train, np.array(train.targets), transform=eval_transform(CONFIG))
    random = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    for difficulty in DIFFICULTIES:
        made = build(difficulty, backbone, **options, seed=4)
        wanted = order_by_likeness(means, [2, 2, 2], difficulty=difficulty)
        assert made.class_order == wanted
        assert made.class_names == [str(c) for c in wanted]
        assert shown(made) == shown(drawn)
        assert build(difficulty, backbone, **options, seed=5).class_order == wanted
    assert torch.equal(torch.get_rng_state(), random[0])
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == random[1]


def test_an_order_does_not_depend_on_how_many_images_train():
    backbone = toy_backbone(depth=1)
    orders = [
        build("hardest", backbone, train_per_class=few, validation_per_class=held).class_order
        for few, held in ((None, 0), (2, 0), (1, 3))
    ]
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize("order", DIFFICULTIES)
def test_without_a_network_or_classes_to_order_it_is_refused(order):
    with pytest.raises(ConfigError, match=f"class_order='{order}' needs a network .*backbone="):
        build(order, None)
    train, test = toy_images(2, 6), toy_images(2, 4, seed=1)
    with pytest.raises(ConfigError, match=f"'{order}' says .* and in scenario='domain' each has"):
        make_benchmark(
            train,
            test,
            input_config=CONFIG,
            backbone=toy_backbone(depth=1),
            scenario="domain",
            class_order=order,
            train_domains=[i % 2 for i in range(12)],
            test_domains=[i % 2 for i in range(8)],
        )
