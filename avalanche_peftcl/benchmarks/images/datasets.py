"""Labelled images in memory or in files, as map-style datasets whose images have names."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from os.path import commonpath
from pathlib import Path, PurePath
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from avalanche_peftcl.benchmarks.images.names import normal, unreadable
from avalanche_peftcl.models.backbones.images import read_image as read_image


class LabelledImages(Protocol):
    """What a benchmark is made of: items ``(image, label)`` and all labels at hand."""

    @property
    def targets(self) -> Any:
        """The label of each image, ``0`` to ``C - 1``: a list, array or tensor."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


@runtime_checkable
class NamedImages(LabelledImages, Protocol):
    """Images that a manifest can name and hash without decoding them."""

    def name(self, index: int, /) -> str:
        """Return the image's name, the same on every machine."""

    def size(self, index: int, /) -> int:
        """Return the number of bytes of :meth:`content`, at little cost."""

    def content(self, index: int, /) -> bytes:
        """Return the bytes that make the image what it is."""


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

    def name(self, index: int) -> str:
        """Return the index."""
        return str(index)

    def size(self, index: int) -> int:
        """Return the number of bytes of the pixels."""
        return int(self.images[index].nbytes)

    def content(self, index: int) -> bytes:
        """Return the pixels, row by row."""
        return bytes(self.images[index].tobytes())


class ImageFiles(Dataset[tuple[Image.Image, int]]):
    """Images in files, one each.

    Args:
        paths: The files.
        targets: The label of each file.
        root: Folder that names are relative to; ``None``, the deepest that holds all files.
        in_memory: Decode every file now and keep the images, 3 bytes a pixel.

    Raises:
        DataError: If a file cannot be decoded: here with ``in_memory``, otherwise when the image
            is read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        targets: Sequence[int],
        *,
        root: PurePath | None = None,
        in_memory: bool = False,
    ) -> None:
        self.paths = list(paths)
        folders = [path.parent for path in paths] or [Path()]
        self.root = Path(commonpath(folders)) if root is None else root
        self.targets = [int(target) for target in targets]
        self._images = [read_image(path) for path in self.paths] if in_memory else None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        images = self._images
        image = read_image(self.paths[index]) if images is None else images[index]
        return image, self.targets[index]

    def name(self, index: int) -> str:
        """Return the path relative to the root, with forward slashes on every system."""
        return normal(self.paths[index].relative_to(self.root).as_posix())

    def size(self, index: int) -> int:
        """Return the size of the file.

        Raises:
            DataError: If there is no such file.
        """
        try:
            return self.paths[index].stat().st_size
        except OSError as error:
            raise unreadable(self.paths[index], error) from error

    def content(self, index: int) -> bytes:
        """Return the bytes of the file.

        Raises:
            DataError: If the file cannot be read.
        """
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise unreadable(self.paths[index], error) from error


class JoinedImages(Dataset[tuple[Any, int]]):
    """Several data sets as one; the labels of each follow those of the one before.

    Args:
        parts: The data sets by name, in order.
        n_classes: Number of classes of each.

    Example:
        >>> one = ImageArray(np.zeros((2, 8, 8), np.uint8), [0, 1])
        >>> both = JoinedImages({"a": one, "b": one}, n_classes=[2, 2])
        >>> both.targets, both.name(3)
        ([0, 1, 2, 3], 'b/1')
    """

    def __init__(self, parts: Mapping[str, NamedImages], *, n_classes: Sequence[int]) -> None:
        self.parts = dict(parts)
        starts = accumulate(n_classes, initial=0)
        self.targets = [
            start + int(target)
            for start, part in zip(starts, self.parts.values(), strict=False)
            for target in part.targets
        ]
        self._places = [(name, i) for name, part in self.parts.items() for i in range(len(part))]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        name, i = self._places[index]
        return self.parts[name][i][0], self.targets[index]

    def name(self, index: int) -> str:
        """Return the part's name and that of the image in it."""
        name, i = self._places[index]
        return f"{name}/{self.parts[name].name(i)}"

    def size(self, index: int) -> int:
        """Return the size of the image in its part."""
        name, i = self._places[index]
        return self.parts[name].size(i)

    def content(self, index: int) -> bytes:
        """Return the content of the image in its part."""
        name, i = self._places[index]
        return self.parts[name].content(i)
