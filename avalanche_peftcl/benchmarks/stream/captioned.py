"""From captioned images to an Avalanche benchmark: a stream of images and texts, not of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from avalanche.benchmarks import CLScenario, GenericCLScenario

from avalanche_peftcl.benchmarks.images.captioned import CaptionedImages
from avalanche_peftcl.benchmarks.images.contents import Contents
from avalanche_peftcl.benchmarks.stream.make_benchmark import as_dataset, tell_contents
from avalanche_peftcl.benchmarks.stream.transforms import Augment, eval_transform, train_transform
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.registry.ranges import Count, CountOrNone, CropScale, Seed
from avalanche_peftcl.registry.takes import takes


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """How captioned images become a stream of experiences.

    Args:
        input_config: What the backbone expects of an image.
        seed: Seed of the subsets and of drawn parts; no global generator is touched.
        augment: Which part of a training image is seen: ``"random_resized_crop"`` cuts at random,
            ``"none"`` as in tests, see :func:`.transforms.train_transform`.
        crop_scale: Share of the area that a random crop keeps, smallest and largest.
        mirror: Whether every other training image is mirrored, left to right; ``None``: if
            ``augment`` crops. Captions that speak of left and right are wrong of a mirrored image.
        train_per_experience: Train on a seeded choice of at most that many images of an experience;
            ``None``, on all.
        test_per_experience: Test on at most that many, likewise.
        validation_per_experience: If positive, that many training images of an experience are held
            out and *replace* the test images.
        manifest: File that lists the images, see :mod:`.manifest`; each is compared with it, its
            captions too, which reads them all.
    """

    input_config: InputConfig
    seed: Seed = 0
    augment: Augment = "random_resized_crop"
    crop_scale: CropScale = (0.3, 1.0)
    mirror: bool | None = None
    train_per_experience: Count | None = None
    test_per_experience: Count | None = None
    validation_per_experience: CountOrNone = 0
    manifest: Path | None = None


@takes(CaptionOptions)
def make_captioned(
    train: CaptionedImages,
    test: CaptionedImages,
    *,
    names: Sequence[str],
    left_out: Mapping[str, int] | None = None,
    options: CaptionOptions,
) -> CLScenario:
    """Make a benchmark from captioned images, whose labels are the experiences they belong to.

    Minibatches are ``(x, y, t)``: ``y`` is the number of the image in the benchmark's table of
    captions, which has the training images in order of arrival, then the test images; ``t`` is the
    number of the experience. There are no classes, so that strategies that classify refuse it.

    Args:
        train: Training images.
        test: Test images.
        names: Name of each experience, in order of arrival.
        left_out: Images that are in no experience, by split, for the record; ``None``: none are.
        options: The others, see :class:`.CaptionOptions`.

    Returns:
        An Avalanche benchmark with ``train_stream``, ``test_stream`` and the attributes
        ``captions`` (a tuple of texts for each ``y``), ``domains`` (the names), ``scenario``
        (``"task"``), ``left_out``, ``tested_on``, ``contents`` and ``manifest_sha256``, as of
        :func:`.make_benchmark`. ``class_names`` and ``class_order`` it does not have.

    Raises:
        ConfigError: If ``names`` are not distinct.
        DataError: If an experience has no training or test images, or the images are not those of
            the manifest.

    Example:
        >>> from avalanche_peftcl.benchmarks import ImageArray
        >>> images = ImageArray(np.zeros((2, 6, 6), np.uint8), [0, 1])
        >>> photos = CaptionedImages(images, [["a cat"], ["a dog"]])
        >>> benchmark = make_captioned(
        ...     photos, photos, names=["cats", "dogs"], input_config=InputConfig(img_size=4)
        ... )
        >>> benchmark.test_stream[1].dataset[0][1:], benchmark.captions[3]
        ([3, 1], ('a dog',))
    """
    names = list(names)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"experiences need names, each its own; got {names}")
    contents = Contents(train, test, names)
    labels = {"train": np.asarray(train.targets, int), "test": np.asarray(test.targets, int)}
    for part, own in labels.items():
        lacking = [name for e, name in enumerate(names) if not (own == e).any()]
        if lacking:
            raise DataError(
                f"experiences without {part} images: {lacking[:10]} ({len(lacking)} in all); add "
                "images or leave them out"
            )
    chosen = [_choose(labels, e, name, options) for e, name in enumerate(names)]
    held_out = options.validation_per_experience > 0
    tested = train if held_out else test
    new_ids = {"train": np.full(len(train), -1), "test": np.full(len(tested), -1)}
    captions: list[tuple[str, ...]] = []
    for which, source in enumerate((train, tested)):
        for each in chosen:
            start = len(captions)
            captions += [source.captions[i] for i in each[which]]
            ids = np.arange(start, len(captions))
            new_ids["test" if which else "train"][each[which]] = ids

    training = train_transform(
        options.input_config,
        augment=options.augment,
        crop_scale=options.crop_scale,
        mirror=options.mirror,
    )
    evaluation = eval_transform(options.input_config)
    groups = {"train": (training, None), "eval": (evaluation, None)}
    trains = [
        as_dataset(train, own, new_ids["train"], e, groups, "train")
        for e, (own, _) in enumerate(chosen)
    ]
    tests = [
        as_dataset(tested, own, new_ids["test"], e, groups, "eval")
        for e, (_, own) in enumerate(chosen)
    ]
    benchmark = GenericCLScenario(stream_definitions={"train": (trains,), "test": (tests,)})
    benchmark.captions = captions
    benchmark.domains = names
    benchmark.scenario = "task"
    benchmark.left_out = None if left_out is None else dict(left_out)
    tell_contents(benchmark, contents, manifest=options.manifest, held_out=bool(held_out))
    return benchmark


def _choose(
    labels: Mapping[str, np.ndarray], experience: int, name: str, options: CaptionOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Return which training images of an experience train, and which images test, in order.

    What is held out depends on the seed and the experience only.
    """
    own = np.flatnonzero(labels["train"] == experience)
    others = np.flatnonzero(labels["test"] == experience)
    held = options.validation_per_experience
    if len(own) <= held:
        raise DataError(
            f"validation_per_experience={held} leaves nothing to train on: experience {name!r} has "
            f"{len(own)} training images in all"
        )
    drawn = np.random.default_rng((options.seed, experience)).permutation(own)
    tests = np.random.default_rng((options.seed, experience, 1)).permutation(others)
    training = drawn[held:][: options.train_per_experience]
    testing = drawn[:held] if held else tests
    return np.sort(training), np.sort(testing[: options.test_per_experience])
