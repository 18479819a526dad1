"""Labelled images in memory or in files, as map-style datasets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from avalanche_peftcl.errors import DataError


class LabelledImages(Protocol):
    """What a benchmark is made of: items ``(image, label)`` and all labels at hand."""

    @property
    def targets(self) -> Any:
        """The label of each image, ``0`` to ``C - 1``: a list, array or tensor."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


class ImageArray(Dataset[tuple[np.ndarray, int]]):
    """Images in one array.

    Args:
        images: ``(n, H, W)`` grey or ``(n, H, W, 3)`` RGB, ``uint8``.
        targets: The label of each image.

    Example:
        >>> image, label = ImageArray(np.zeros((2, 8, 8), np.uint8), [0, 1])[1]
        >>> image.shape, label
        ((8, 8), 1)
    """

    def __init__(self, images: np.ndarray, targets: Sequence[int]) -> None:
        self.images = images
        self.targets = [int(target) for target in targets]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], self.targets[index]


class ImageFiles(Dataset[tuple[Image.Image, int]]):
    """Images in files, one each.

    Args:
        paths: The files.
        targets: The label of each file.
        in_memory: Decode every file now and keep the images, 3 bytes a pixel.

    Raises:
        DataError: If a file cannot be decoded: here with ``in_memory``, otherwise when the image
            is read.
    """

    def __init__(
        self, paths: Sequence[Path], targets: Sequence[int], *, in_memory: bool = False
    ) -> None:
        self.paths = list(paths)
        self.targets = [int(target) for target in targets]
        self._images = [read_image(path) for path in self.paths] if in_memory else None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        images = self._images
        image = read_image(self.paths[index]) if images is None else images[index]
        return image, self.targets[index]


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB of 8 bits a channel.

    Args:
        path: A file of any format that Pillow reads.

    Returns:
        The decoded image.

    Raises:
        DataError: If the file is missing, cannot be decoded, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{path} has more than 8 bits a channel (mode {image.mode!r}); "
                    "convert it to 8 bits"
                )
            return image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # every decoder of Pillow raises its own kinds
        raise DataError(
            f"{path} cannot be decoded as an image ({error}); replace it or take it out"
        ) from error
