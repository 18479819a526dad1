import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from avalanche_peftcl.benchmarks import ImageArray, make_benchmark
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig

LABELS = [0, 1, 2, 3, 4, 5] * 3
DOMAINS = [0] * 6 + [1] * 6 + [2] * 6


@pytest.fixture
def build(constant_images: Callable[..., ImageArray], input_config: InputConfig) -> Any:
    def build(**options: Any) -> Any:
        options = {"augment": "none"} | options
        if options.get("scenario") == "domain":
            options = {"train_domains": DOMAINS, "test_domains": DOMAINS} | options
        elif "classes_per_experience" not in options:
            options = {"n_experiences": 3} | options
        images = constant_images(LABELS)
        return make_benchmark(images, images, input_config=input_config, **options)

    return build


def original_labels(dataset: Any) -> list[int]:
    """Read the labels off the grey values."""
    return [round(float(x.mean()) * 255 / 20) for x, *_ in dataset]


@pytest.mark.parametrize("scenario", ["class", "task", "domain", "online"])
def test_streams_have_what_avalanche_needs(build: Any, scenario: str) -> None:
    benchmark = build(scenario=scenario, experience_size=4)
    assert benchmark.scenario == scenario
    assert benchmark.n_classes == 6
    assert len(benchmark.test_stream) == 3
    assert benchmark.streams.keys() == {"train", "test"}
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for i, experience in enumerate(stream):
            t = i if scenario == "task" else 0
            assert experience.current_experience == i
            assert experience.origin_stream.name == stream.name
            assert experience.task_label == t
            assert experience.task_labels == [t]
            assert type(experience.classes_in_this_experience) is list
            assert set(experience.classes_in_this_experience) == set(experience.dataset.targets)
            x, y, labels = next(iter(DataLoader(experience.dataset, batch_size=100)))
            assert x.shape == (len(y), 3, 8, 8)
            assert labels.tolist() == [t] * len(y)
    assert benchmark.train_stream[0].benchmark is benchmark


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_ids_are_contiguous_in_order_of_arrival(build: Any, scenario: str) -> None:
    benchmark = build(
        scenario=scenario, classes_per_experience=[3, 1, 2], class_names=list("abcdef"), seed=3
    )
    order = np.random.RandomState(3).permutation(6).tolist()
    assert benchmark.class_order == order
    assert benchmark.class_names == ["abcdef"[c] for c in order]
    assert benchmark.domains is None
    for stream in (benchmark.train_stream, benchmark.test_stream):
        assert [e.classes_in_this_experience for e in stream] == [[0, 1, 2], [3], [4, 5]]
        for experience in stream:
            targets = list(experience.dataset.targets)
            assert [order[y] for y in targets] == original_labels(experience.dataset)


def test_given_class_order(build: Any) -> None:
    assert build(class_order=[5, 4, 3, 2, 1, 0]).class_order == [5, 4, 3, 2, 1, 0]


def test_domains_come_one_by_one_with_all_classes(build: Any) -> None:
    benchmark = build(scenario="domain", domain_names=["x", "y", "z"], seed=5)
    assert benchmark.domains == ["x", "y", "z"]
    assert benchmark.class_order == list(range(6))
    assert [e.classes_in_this_experience for e in benchmark.test_stream] == [list(range(6))] * 3
    assert [len(e.dataset) for e in benchmark.train_stream] == [6, 6, 6]


def test_a_domain_may_lack_a_class(
    constant_images: Callable[..., ImageArray], input_config: InputConfig
) -> None:
    images = constant_images([1, 2, 0, 1, 2])
    benchmark = make_benchmark(
        images,
        images,
        input_config=input_config,
        scenario="domain",
        train_domains=[0, 0, 1, 1, 1],
        test_domains=[0, 0, 1, 1, 1],
    )
    assert benchmark.class_order == [1, 2, 0]
    assert [e.classes_in_this_experience for e in benchmark.train_stream] == [[0, 1], [0, 1, 2]]


def test_test_images_without_domains_are_one_experience(build: Any) -> None:
    benchmark = build(scenario="domain", test_domains=None)
    assert [len(e.dataset) for e in benchmark.train_stream] == [6, 6, 6]
    assert [len(e.dataset) for e in benchmark.test_stream] == [18]
    assert original_labels(benchmark.test_stream[0].dataset) == LABELS
    assert benchmark.domains == ["0", "1", "2"]


def test_held_out_images_have_domains(
    constant_images: Callable[..., ImageArray], input_config: InputConfig
) -> None:
    benchmark = make_benchmark(
        constant_images([0, 1] * 4),
        constant_images([0, 1]),
        input_config=input_config,
        scenario="domain",
        train_domains=[0] * 4 + [1] * 4,
        validation_per_class=1,
    )
    assert [len(e.dataset) for e in benchmark.train_stream] == [2, 2]
    assert [len(e.dataset) for e in benchmark.test_stream] == [2, 2]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])  # six images an experience
def test_online_chunks_cover_their_experience(build: Any, size: int) -> None:
    benchmark = build(scenario="online", experience_size=size)
    chunks = list(benchmark.train_stream)
    for origin, experience in enumerate(benchmark.original_train_stream):
        own = [c for c in chunks if c.origin_experience.current_experience == origin]
        assert [c.is_first_subexp for c in own] == [True] + [False] * (len(own) - 1)
        assert [c.is_last_subexp for c in own] == [False] * (len(own) - 1) + [True]
        assert all(len(c.dataset) <= size and c.access_task_boundaries for c in own)
        drawn = [y for c in own for y in c.dataset.targets]
        assert sorted(drawn) == sorted(experience.dataset.targets)
        tested = benchmark.test_stream[origin].classes_in_this_experience
        assert sorted(set(drawn)) == sorted(tested)


@pytest.mark.parametrize("mirror", [True, False, None])
def test_only_training_images_are_mirrored_and_only_if_told(
    input_config: InputConfig, mirror: bool | None
) -> None:
    rising = np.tile(np.arange(0, 240, 30, dtype=np.uint8), (40, 8, 1))
    images = ImageArray(rising, [0, 1] * 20)
    options = {} if mirror is None else {"augment": "none", "mirror": mirror}
    benchmark = make_benchmark(
        images, images, input_config=input_config, n_experiences=1, **options
    )
    torch.manual_seed(0)
    for stream, found in (("train", {mirror is not False, False}), ("test", {False})):
        (experience,) = benchmark.streams[stream]
        assert {bool(x[0, 4, 0] > x[0, 4, -1]) for x, *_ in experience.dataset} == found


@pytest.mark.parametrize("scenario", ["class", "task", "domain", "online"])
def test_no_global_generator_is_touched_and_the_seed_decides(build: Any, scenario: str) -> None:
    def draw(seed: int) -> list[list[int]]:
        options = {"seed": seed, "train_per_class": 1, "validation_per_class": 0}
        benchmark = build(scenario=scenario, experience_size=2, **options)
        return [original_labels(e.dataset) for e in benchmark.train_stream]

    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first, again, other = draw(0), draw(0), draw(1)
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    assert first == again
    if scenario != "domain":
        assert first != other


def test_validation_images_replace_the_test_images(input_config: InputConfig) -> None:
    pixels = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((6, 6), np.uint8)
    train = ImageArray(pixels, np.arange(40) % 4)
    test = ImageArray(pixels[:8] + 200, np.arange(8) % 4)

    def split(**options: Any) -> tuple[set[int], set[int]]:
        benchmark = make_benchmark(
            train, test, input_config=input_config, n_experiences=2, augment="none", **options
        )
        streams = benchmark.train_stream, benchmark.test_stream
        got = [{round(float(x[0, 0, 0]) * 255) for e in s for x, *_ in e.dataset} for s in streams]
        return got[0], got[1]

    assert split() == (set(range(40)), set(range(200, 208)))
    trained, held = split(validation_per_class=3)
    assert (len(trained), len(held)) == (28, 12)
    assert trained | held == set(range(40))
    few, same = split(validation_per_class=3, train_per_class=2)
    assert same == held
    assert len(few) == 8
    assert few < trained


def test_some_test_images_of_each_class_and_domain(input_config: InputConfig) -> None:
    pixels = np.arange(80, dtype=np.uint8)[:, None, None] * np.ones((6, 6), np.uint8)
    images = ImageArray(pixels, np.arange(80) % 4)
    domains = np.arange(80) // 40

    def tested(**options: Any) -> list[list[int]]:
        benchmark = make_benchmark(
            images,
            images,
            input_config=input_config,
            scenario="domain",
            train_domains=domains,
            test_domains=domains,
            **options,
        )
        return [
            sorted(round(float(x[0, 0, 0]) * 255) for x, *_ in e.dataset)
            for e in benchmark.test_stream
        ]

    few, more = tested(test_per_class=2), tested(test_per_class=3)
    for domain, (two, three) in enumerate(zip(few, more, strict=True)):
        assert sorted(np.array(two) % 4) == [0, 0, 1, 1, 2, 2, 3, 3]
        assert set(two) < set(three)
        assert {image // 40 for image in three} == {domain}
    assert few == tested(test_per_class=2) != tested(test_per_class=2, seed=1)
    assert tested(test_per_class=99) == tested()
    held = tested(test_per_class=1, validation_per_class=3)
    assert held == tested(validation_per_class=3)


def test_training_images_are_augmented_and_test_images_are_not(
    constant_images: Callable[..., ImageArray],
) -> None:
    rng = np.random.default_rng(0)
    images = ImageArray(rng.integers(0, 256, (4, 30, 30), dtype=np.uint8), [0, 0, 1, 1])
    benchmark = make_benchmark(images, images, input_config=InputConfig(8), n_experiences=1)
    train, test = benchmark.train_stream[0].dataset, benchmark.test_stream[0].dataset
    assert not torch.equal(train[0][0], train[0][0])
    assert torch.equal(test[0][0], test[0][0])
    assert torch.equal(train.eval()[0][0], train.eval()[0][0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "instance"}, "scenario='instance' is not one of 'class', 'task'"),
        ({"experience_size": 0}, "experience_size=0"),
        ({"n_experiences": None}, "neither of n_experiences and classes_per_experience"),
        ({"scenario": "domain", "train_domains": None}, "use scenario 'class', 'task' or 'online'"),
        ({"scenario": "domain", "n_experiences": 2}, "n_experiences=2, but there are 3 domains"),
        ({"scenario": "domain", "classes_per_experience": [6]}, "takes no classes_per_experience"),
        ({"scenario": "domain", "domain_names": ["x"]}, "does not name each of the 3 domains"),
        ({"class_order": [0, 1]}, "class_order has 2 entries"),
    ],
)
def test_wrong_options_are_refused(build: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_experiences": 4}, "6 classes do not divide into 4 experiences"),
        ({"class_names": list("abcdefg")}, r"classes without training images: \['g'\]"),
        ({"class_names": list("abc")}, "labels go from 0 to 5; number the 3 classes"),
        ({"validation_per_class": 3}, "nothing to train on: 0 has 3 training images"),
        (
            {"scenario": "domain", "validation_per_class": 1},
            "nothing to train on: 0 in domain 0 has 1 training images",
        ),
        ({"scenario": "domain", "test_domains": DOMAINS[1:]}, "one entry for each image"),
        ({"scenario": "domain", "test_domains": [0] * 17 + [3]}, r"test images of .* \[0, 3\]"),
    ],
)
def test_unusable_data_are_refused(build: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 1], [0], r"experience \d: classes without test images: \['1'\]"),
        ([0, 1], [0, 2], "labels go from 0 to 2"),
        ([0, 2], [0, 2], r"classes without training images: \[1\]"),
        ([0, 1], [], "there are no test images"),
    ],
)
def test_labels_must_agree(
    constant_images: Callable[..., ImageArray],
    input_config: InputConfig,
    train: list[int],
    test: list[int],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        make_benchmark(
            constant_images(train),
            constant_images(test),
            input_config=input_config,
            n_experiences=1,
        )


def test_labels_must_be_as_many_as_images(
    constant_images: Callable[..., ImageArray], input_config: InputConfig
) -> None:
    class Longer(ImageArray):
        def __len__(self) -> int:
            return 9

    images = constant_images([0, 1])
    wrong = Longer(images.images, images.targets)
    with pytest.raises(DataError, match="9 training images have 2 labels"):
        make_benchmark(wrong, images, input_config=input_config, n_experiences=1)
