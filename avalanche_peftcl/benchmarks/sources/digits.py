"""Handwritten digits of 8 x 8 pixels that come with scikit-learn: nothing to download."""

from dataclasses import dataclass

import numpy as np
from avalanche.benchmarks import CLScenario
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from avalanche_peftcl.benchmarks.images.datasets import ImageArray
from avalanche_peftcl.benchmarks.stream.make_benchmark import make_benchmark
from avalanche_peftcl.benchmarks.stream.options import StreamOptions
from avalanche_peftcl.benchmarks.stream.transforms import Augment
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.takes import takes

_ANGLE = 15  # degrees between two domains
_MAX_DOMAINS = 12  # up to 165 degrees


@dataclass(frozen=True, kw_only=True)
class DigitsOptions(StreamOptions):
    """Digits must not be mirrored."""

    augment: Augment = "none"


@takes(DigitsOptions)
def digits(*, options: DigitsOptions) -> CLScenario:
    """Make a benchmark from scikit-learn's digits: 10 classes, 1,437 train and 360 test images.

    The split in training and test images is the same for every ``seed``: stratified, four fifths
    and one fifth. In scenario ``"domain"`` experience ``e`` has all images turned by ``15 e``
    degrees.

    Args:
        n_experiences: Number of experiences, in scenario ``"domain"`` at most 12. ``None``: 5, or
            as many as ``classes_per_experience`` has.
        options: The others, see :class:`.StreamOptions`.

    Returns:
        The benchmark, see :func:`.make_benchmark`.

    Raises:
        ConfigError: An option that is out of range or makes no sense in the scenario.
        DataError: A split that does not divide, images that are not those of the manifest.

    Example:
        >>> from avalanche_peftcl.models import InputConfig
        >>> benchmark = digits(input_config=InputConfig(img_size=16), n_experiences=2)
        >>> len(benchmark.train_stream), benchmark.n_classes
        (2, 10)
    """
    n_experiences = options.n_experiences
    if n_experiences is None and options.classes_per_experience is None:
        n_experiences = 5
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    train_x, test_x, train_y, test_y = train_test_split(
        images, data.target, test_size=0.2, stratify=data.target, random_state=0
    )
    train_domains = test_domains = domain_names = None
    if options.scenario == "domain" and n_experiences is not None:
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
        train_domains=train_domains,
        test_domains=test_domains,
        domain_names=domain_names,
        **vars(options) | {"n_experiences": n_experiences},
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
