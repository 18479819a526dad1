"""Images with captions, as a data set whose images have names."""

import json
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from avalanche_peftcl.benchmarks.images.datasets import NamedImages
from avalanche_peftcl.errors import DataError


class CaptionedImages(Dataset[tuple[Any, int]]):
    """Images of any data set, with the captions of each, which are part of what a manifest hashes.

    Args:
        images: The images; their labels are the experiences that they belong to.
        captions: Those of each image, one at least.

    Raises:
        DataError: If there are not as many lists of captions as images, an image has none, or one
            is empty.

    Example:
        >>> import numpy as np
        >>> from avalanche_peftcl.benchmarks.images.datasets import ImageArray
        >>> images = ImageArray(np.zeros((1, 2, 2), np.uint8), [0])
        >>> photos = CaptionedImages(images, [["a cat"]])
        >>> photos.captions, photos.size(0)
        ([('a cat',)], 13)
    """

    def __init__(self, images: NamedImages, captions: Sequence[Sequence[str]]) -> None:
        if len(images) != len(captions):
            raise DataError(f"{len(images)} images have captions for {len(captions)}")
        self.images = images
        self.captions = [tuple(each) for each in captions]
        self.targets: list[int] = [int(target) for target in images.targets]
        for i, own in enumerate(self.captions):
            if not own or not all(text.strip() for text in own):
                raise DataError(f"the image {self.name(i)} has no caption, or an empty one")

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.images[index][0], self.targets[index]

    def name(self, index: int) -> str:
        """Return the name of the image."""
        return self.images.name(index)

    def size(self, index: int) -> int:
        """Return the number of bytes of the image and of its captions."""
        return self.images.size(index) + len(self._told(index))

    def content(self, index: int) -> bytes:
        """Return the bytes of the image and, as JSON, its captions."""
        return self.images.content(index) + self._told(index)

    def _told(self, index: int) -> bytes:
        return json.dumps(self.captions[index]).encode()
