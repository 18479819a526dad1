"""Small generated images, and the place of the real ones."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avalanche_peftcl.benchmarks import ImageArray
from avalanche_peftcl.models.backbones.backbone import InputConfig

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the real images are not at {SHARED}")
    return SHARED


@pytest.fixture
def input_config() -> InputConfig:
    return InputConfig(img_size=8)


@pytest.fixture
def constant_images() -> Callable[..., ImageArray]:
    """Images whose grey value is 20 times the label, so that labels can be read off."""

    def make(labels: Iterable[int]) -> ImageArray:
        labels = list(labels)
        values = np.array(labels, np.uint8)[:, None, None] * 20
        return ImageArray(np.broadcast_to(values, (len(labels), 6, 6)), labels)

    return make


@pytest.fixture
def write_images() -> Callable[..., None]:
    """Write ``count`` images into a folder; mode and format as told."""

    def write(folder: Path, count: int, *, mode: str = "RGB", ending: str = "png") -> None:
        folder.mkdir(parents=True)
        rng = np.random.default_rng(len(str(folder)))
        for i in range(count):
            pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / f"{i}.{ending}")

    return write
