"""A benchmark: tell the direction of stripes; a domain is a width of the stripes."""

from typing import Annotated, Literal

import numpy as np
from avalanche.benchmarks import CLScenario
from pydantic import Field

from avalanche_peftcl.benchmarks import ImageArray, make_benchmark
from avalanche_peftcl.models import InputConfig


def stripes(
    *,
    input_config: InputConfig,
    scenario: Literal["class", "domain"] = "class",
    n_classes: Annotated[int, Field(ge=2, le=18)] = 6,
    n_experiences: Annotated[int, Field(ge=1, le=9)] = 3,
    images_per_class: Annotated[int, Field(ge=1)] = 20,
    seed: Annotated[int, Field(ge=0)] = 0,
) -> CLScenario:
    """Draw grey stripes under noise; class ``c`` is turned by ``180 c / n_classes`` degrees.

    Args:
        input_config: What the backbone expects of an image.
        scenario: Experiences of new classes, or of new widths of the stripes.
        n_classes: Number of classes.
        n_experiences: Number of experiences.
        images_per_class: Training images a class, and as many test images.
        seed: Seed of the noise.
    """
    shape = (n_experiences if scenario == "domain" else 1, n_classes, images_per_class)
    domain, label, _ = (axis.ravel() for axis in np.indices(shape))  # of each image: (n,)
    angle, period = (a[:, None, None] for a in (label * np.pi / n_classes, 3 + domain))
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 2 * np.pi, (2, len(label), 1, 1))  # training and test images
    y, x = np.mgrid[:32, :32]
    waves = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + phase)
    images = 127 + 80 * waves + rng.normal(0, 20, waves.shape)  # (2, n, 32, 32)
    return make_benchmark(
        *(ImageArray(split, label) for split in images.clip(0, 255).astype(np.uint8)),
        input_config=input_config,
        scenario=scenario,
        n_experiences=n_experiences,
        seed=seed,
        train_domains=domain,
        test_domains=domain,
        augment="none",
    )
