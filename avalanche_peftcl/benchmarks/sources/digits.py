"""Handwritten digits of 8 x 8 pixels that come with scikit-learn: nothing to download."""

from pathlib import Path

import numpy as np
from avalanche.benchmarks import CLScenario
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from avalanche_peftcl.benchmarks.images.datasets import ImageArray
from avalanche_peftcl.benchmarks.stream.make_benchmark import Scenario, make_benchmark
from avalanche_peftcl.benchmarks.stream.splits import ClassOrder
from avalanche_peftcl.benchmarks.stream.transforms import Augment
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.registry.ranges import Count, CountOrNone, CropScale, Seed

_ANGLE = 15  # degrees between two domains
_MAX_DOMAINS = 12  # up to 165 degrees


def digits(
    *,
    input_config: InputConfig,
    scenario: Scenario = "class",
    n_experiences: Count | None = None,
    classes_per_experience: list[Count] | None = None,
    seed: Seed = 0,
    class_order: ClassOrder | None = None,
    experience_size: Count = 10,
    augment: Augment = "none",
    crop_scale: CropScale = (0.05, 1.0),
    train_per_class: Count | None = None,
    validation_per_class: CountOrNone = 0,
    manifest: Path | None = None,
) -> CLScenario:
    """Make a benchmark from scikit-learn's digits: 10 classes, 1,437 train and 360 test images.

    The split in training and test images is the same for every ``seed``: stratified, four fifths
    and one fifth. In scenario ``"domain"`` experience ``e`` has all images turned by ``15 e``
    degrees.

    Args:
        input_config: What the backbone expects of an image.
        scenario: ``"class"``, ``"task"``, ``"domain"`` or ``"online"``, see
            :func:`.scenarios.make_benchmark`, also for the options below.
        n_experiences: Number of experiences, in scenario ``"domain"`` at most 12. ``None``: 5, or
            as many as ``classes_per_experience`` has.
        classes_per_experience: Number of classes in each experience, instead.
        seed: Seed of the class order, of the subsets and of the chunks.
        class_order: The digits in order of arrival, or ``"natural"``, instead of drawing it.
        experience_size: Images in a chunk of scenario ``"online"``.
        augment: Augmentation in training; none by default, digits must not be mirrored.
        crop_scale: Share of the area that a random crop keeps, smallest and largest.
        train_per_class: Train on at most that many images of a class; ``None``, on all.
        validation_per_class: If positive, that many training images of a class replace the test
            images.
        manifest: File that lists the images; each is compared with it.

    Returns:
        The benchmark, see :func:`.scenarios.make_benchmark`.

    Raises:
        ConfigError: An option that is out of range or makes no sense in the scenario.
        DataError: A split that does not divide, images that are not those of the manifest.

    Example:
        >>> benchmark = digits(input_config=InputConfig(img_size=16), n_experiences=2)
        >>> len(benchmark.train_stream), benchmark.n_classes
        (2, 10)
    """
    if n_experiences is None and classes_per_experience is None:
        n_experiences = 5
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, data.target, test_size=0.2, stratify=data.target, random_state=0
    )
    train_domains = test_domains = domain_names = None
    if scenario == "domain" and n_experiences is not None:
        if n_experiences > _MAX_DOMAINS:
            raise ConfigError(
                f"n_experiences={n_experiences}: digits has at most {_MAX_DOMAINS} domains, "
                f"{_ANGLE} degrees apart"
            )
        angles = [_ANGLE * e for e in range(n_experiences)]
        domain_names = [f"{angle} degrees" for angle in angles]
        train_domains = np.repeat(np.arange(n_experiences), len(train_x)).tolist()
        test_domains = np.repeat(np.arange(n_experiences), len(test_x)).tolist()
        train_x, test_x = _turn(train_x, angles), _turn(test_x, angles)
        train_y, test_y = np.tile(train_y, n_experiences), np.tile(test_y, n_experiences)
    return make_benchmark(
        ImageArray(train_x, train_y),
        ImageArray(test_x, test_y),
        input_config=input_config,
        scenario=scenario,
        n_experiences=n_experiences,
        classes_per_experience=classes_per_experience,
        seed=seed,
        class_order=class_order,
        train_domains=train_domains,
        test_domains=test_domains,
        domain_names=domain_names,
        experience_size=experience_size,
        augment=augment,
        crop_scale=crop_scale,
        train_per_class=train_per_class,
        validation_per_class=validation_per_class,
        manifest=manifest,
    )


def _turn(images: np.ndarray, angles: list[int]) -> np.ndarray:
    """Return all images turned by the first angle, then all by the second, and so on."""
    return np.stack(
        [
            np.asarray(Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR))
            for angle in angles
            for image in images
        ]
    )
