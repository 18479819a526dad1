"""From labelled images to an Avalanche benchmark: class-, task-, domain-incremental or online."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.benchmarks import (
    CLScenario,
    EagerCLStream,
    FixedSizeExperienceSplitter,
    GenericCLScenario,
)
from avalanche.benchmarks.utils import DataAttribute, TaskAwareSupervisedClassificationDataset
from avalanche.benchmarks.utils.transform_groups import TransformGroups
from torch.utils.data import Dataset

from avalanche_peftcl.benchmarks.images.contents import Contents
from avalanche_peftcl.benchmarks.images.datasets import LabelledImages
from avalanche_peftcl.benchmarks.images.manifest import check_manifest
from avalanche_peftcl.benchmarks.stream.labels import (
    by_arrival,
    check_experience,
    check_tested,
    count_classes,
    domains_of,
    labels_of,
)
from avalanche_peftcl.benchmarks.stream.likeness import class_means, order_by_likeness
from avalanche_peftcl.benchmarks.stream.options import StreamOptions
from avalanche_peftcl.benchmarks.stream.splits import experience_sizes, hold_out, order_classes
from avalanche_peftcl.benchmarks.stream.transforms import eval_transform, train_transform
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.component import SCENARIOS
from avalanche_peftcl.registry.takes import takes
from avalanche_peftcl.registry.wording import join


@takes(StreamOptions)
def make_benchmark(
    train: LabelledImages,
    test: LabelledImages,
    *,
    options: StreamOptions,
    class_names: Sequence[str] | None = None,
    train_domains: Sequence[int] | None = None,
    test_domains: Sequence[int] | None = None,
    domain_names: Sequence[str] | None = None,
) -> CLScenario:
    """Make a benchmark from labelled images.

    Class ids are contiguous from zero in order of arrival. Minibatches are ``(x, y, t)`` with the
    task label ``t``: the number of the experience in scenario ``"task"``, zero in all others. No
    global random generator is touched.

    Args:
        train: Training images: map-style, items ``(image, label)``, all labels in ``.targets``.
        test: Test images, likewise.
        class_names: Name of each label; ``None`` takes the numbers.
        train_domains: Domain of each training image, from 0 in order of arrival; required by
            scenario ``"domain"``, not used by the others.
        test_domains: Domain of each test image. ``None`` in scenario ``"domain"``: the test images
            belong to no domain, and ``test_stream`` is one experience of them all.
        domain_names: Name of each domain; ``None`` takes the numbers.
        options: The others, see :class:`.StreamOptions`.

    Returns:
        An Avalanche benchmark with ``train_stream``, ``test_stream`` and the attributes
        ``class_order`` (the label of each contiguous id), ``class_names`` (in the same order),
        ``n_classes``, ``scenario``, ``domains`` (names, or ``None``), ``tested_on``
        (``"test images"`` or ``"held-out training images"``), ``contents`` (the images it is made
        of) and ``manifest_sha256`` (or ``None``).

    Raises:
        ConfigError: An option that is unknown, out of range, or makes no sense in the scenario.
        DataError: A split that does not divide, a class without training or test images, labels
            out of range, images that are not those of the manifest.

    Differs:
        From ``nc_benchmark``: uneven splits by a list, no reset of the global generators, test
        images with the test transform whoever reads them. From ``split_online_stream``: the last
        chunk of an experience is marked when its size divides, too; every experience is shuffled
        by a permutation of its own; chunks have classes and task labels.

    Example:
        >>> from avalanche_peftcl.benchmarks.images.datasets import ImageArray
        >>> from avalanche_peftcl.models import InputConfig
        >>> images = ImageArray(np.zeros((8, 6, 6), np.uint8), [0, 1, 2, 3] * 2)
        >>> benchmark = make_benchmark(
        ...     images, images, input_config=InputConfig(img_size=4), n_experiences=2, seed=1
        ... )
        >>> benchmark.class_order, benchmark.test_stream[1].classes_in_this_experience
        ([3, 2, 0, 1], [2, 3])
    """
    scenario, seed, held_out = options.scenario, options.seed, options.validation_per_class
    if scenario not in SCENARIOS:
        raise ConfigError(f"scenario={scenario!r} is not one of {join(map(repr, SCENARIOS))}")
    if options.experience_size < 1:
        raise ConfigError(f"experience_size={options.experience_size} is not a positive number")
    train_labels, test_labels = labels_of(train, "training"), labels_of(test, "test")
    n_classes = count_classes(train_labels, test_labels, class_names)
    names = [str(c) for c in range(n_classes)] if class_names is None else list(class_names)
    contents = Contents(train, test, names, train_domains, test_domains, domain_names)

    if scenario == "domain":
        if options.classes_per_experience is not None:
            raise ConfigError("scenario='domain' takes no classes_per_experience")
        train_at, test_at = domains_of(train, test, train_domains, test_domains)
        n = int(train_at.max()) + 1
        if options.n_experiences not in (None, n):
            raise ConfigError(
                f"n_experiences={options.n_experiences}, but there are {n} domains and each is an "
                "experience; leave n_experiences out"
            )
        if options.class_order is None:
            order = by_arrival(train_labels, train_at)
        else:
            order = _order(options, train, train_labels, [])
        domains = [str(d) for d in range(n)] if domain_names is None else list(domain_names)
        if len(domains) != n:
            raise ConfigError(f"domain_names={domains} does not name each of the {n} domains")
        check_tested(train_labels, test_labels, names)
    else:
        sizes = experience_sizes(
            n_classes,
            n_experiences=options.n_experiences,
            classes_per_experience=options.classes_per_experience,
        )
        n, domains = len(sizes), None
        order = _order(options, train, train_labels, sizes)
        experience_of = np.empty(n_classes, int)
        experience_of[order] = np.repeat(np.arange(n), sizes)
        train_at, test_at = experience_of[train_labels], experience_of[test_labels]

    cells, cell_names = train_labels, names
    if domains is not None:  # a class within a domain
        cells = train_labels + n_classes * train_at
        cell_names = [f"{name} in domain {domain}" for domain in domains for name in names]
    keep, held = hold_out(
        cells,
        cell_names,
        seed=seed,
        train_per_class=options.train_per_class,
        validation_per_class=held_out,
    )
    one_test = domains is not None and test_domains is None and not held_out
    if held_out:
        test, test_labels, test_at, tested = train, train_labels, train_at, held
    else:
        tested = _tested(test_labels, test_at, n_classes, options)

    new_id = np.empty(n_classes, int)
    new_id[order] = np.arange(n_classes)
    training = train_transform(
        options.input_config,
        augment=options.augment,
        crop_scale=options.crop_scale,
        mirror=options.mirror,
    )
    groups = {
        "train": (training, None),
        "eval": (eval_transform(options.input_config), None),
    }
    trains, tests = [], []
    earlier: set[int] | None = None if domains is None else set()
    for e in range(n):
        chosen = np.flatnonzero(keep & (train_at == e)), np.flatnonzero(tested & (test_at == e))
        t = e if scenario == "task" else 0
        trains.append(as_dataset(train, chosen[0], new_id[train_labels], t, groups, "train"))
        if one_test and e:
            continue  # the first test experience has all test images
        seen = train_labels[keep] if one_test else train_labels[chosen[0]]
        check_experience(e, seen, test_labels[chosen[1]], names, earlier=earlier)
        tests.append(as_dataset(test, chosen[1], new_id[test_labels], t, groups, "eval"))
        if earlier is not None:
            earlier |= set(seen.tolist())
    benchmark = GenericCLScenario(stream_definitions={"train": (trains,), "test": (tests,)})
    if scenario == "online":
        benchmark = _online(benchmark, options.experience_size, seed)
    benchmark.class_order = order
    benchmark.class_names = [names[c] for c in order]
    benchmark.n_classes = n_classes
    benchmark.scenario = scenario
    benchmark.domains = domains
    tell_contents(benchmark, contents, manifest=options.manifest, held_out=bool(held_out))
    return benchmark


def tell_contents(
    benchmark: Any, contents: Contents, *, manifest: Path | None, held_out: bool
) -> None:
    """Let a benchmark tell what it is made of and tested on, compared with a manifest if given.

    Raises:
        DataError: If the images are not those of the manifest.
    """
    benchmark.tested_on = "held-out training images" if held_out else "test images"
    benchmark.contents = contents
    benchmark.manifest_sha256 = None if manifest is None else check_manifest(manifest, contents)


def _tested(
    labels: np.ndarray, at: np.ndarray, n_classes: int, options: StreamOptions
) -> np.ndarray:
    """Return which test images are tested on."""
    if options.test_per_class is None:
        return np.ones(len(labels), bool)
    cells = labels + n_classes * at if options.scenario == "domain" else labels
    return hold_out(
        cells,
        [],
        seed=options.seed,
        train_per_class=options.test_per_class,
        validation_per_class=0,
    )[0]


def _order(
    options: StreamOptions, train: LabelledImages, labels: np.ndarray, sizes: Sequence[int]
) -> list[int]:
    """Return the classes in order of arrival; ``sizes`` are of the experiences, none of domains."""
    asked, n_classes = options.class_order, int(labels.max()) + 1
    if not isinstance(asked, str) or asked == "natural":
        return order_classes(n_classes, seed=options.seed, class_order=asked)
    if not sizes:
        raise ConfigError(
            f"class_order={asked!r} says which classes share an experience, and in "
            "scenario='domain' each has all of them; leave it out, or use scenario 'class', 'task' "
            "or 'online'"
        )
    if options.backbone is None:
        raise ConfigError(
            f"class_order={asked!r} needs a network that sees which classes look alike: hand one "
            "in (backbone=...), as a run does, or give the labels in the order that you want"
        )
    transform = eval_transform(options.input_config)
    means = class_means(options.backbone, train, labels, transform=transform)
    return order_by_likeness(means, sizes, difficulty=asked)


class _Part(Dataset[tuple[Any, int]]):
    """Some images of a dataset, with their new labels."""

    def __init__(self, source: LabelledImages, indices: np.ndarray, targets: np.ndarray) -> None:
        self.source = source
        self.indices: list[int] = indices.tolist()
        self.targets: list[int] = targets[indices].tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.source[self.indices[index]][0], self.targets[index]


def as_dataset(
    source: LabelledImages,
    indices: np.ndarray,
    targets: np.ndarray,
    task_label: int,
    groups: dict[str, Any],
    group: str,
) -> TaskAwareSupervisedClassificationDataset:
    """Return some images as the host's dataset of items ``(x, y, t)``.

    Args:
        source: All images.
        indices: Which of them.
        targets: New target of each image of ``source``.
        task_label: That of all chosen images.
        groups: Transforms by the host's groups.
        group: The one that holds.
    """
    part = _Part(source, indices, targets)
    dataset = TaskAwareSupervisedClassificationDataset(
        [part],
        data_attributes=[
            DataAttribute(part.targets, "targets"),
            DataAttribute([task_label] * len(part), "targets_task_labels", use_in_getitem=True),
        ],
        transform_groups=TransformGroups(groups),
    )
    return dataset.with_transforms(group)  # upstream's constructor always starts with "train"


def _online(benchmark: GenericCLScenario, experience_size: int, seed: int) -> CLScenario:
    chunks = []
    for experience in benchmark.train_stream:
        chunks += FixedSizeExperienceSplitter(
            experience,
            experience_size,
            access_task_boundaries=True,
            seed=seed + experience.current_experience,
        )
        chunks[-1].is_last_subexp = True  # upstream leaves it out where the size divides
    for chunk in chunks:
        chunk.classes_in_this_experience = sorted(set(chunk.dataset.targets))
        chunk.task_labels, chunk.task_label = [0], 0
    online = CLScenario([EagerCLStream("train", chunks), benchmark.test_stream])
    online.original_train_stream = benchmark.train_stream
    for chunk in chunks:
        chunk.benchmark = online
    online.train_stream.benchmark = online
    return online
