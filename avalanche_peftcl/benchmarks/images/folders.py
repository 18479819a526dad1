"""Folders of images: which there are, and a test split for those that come without one."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from avalanche_peftcl.benchmarks.images.homes import where_to_get
from avalanche_peftcl.benchmarks.images.names import normal
from avalanche_peftcl.errors import DataError

Item = TypeVar("Item")

LAYOUT = (
    "root/{train,test}/class or root/domain/{train,test}/class (root/class or root/domain/class "
    "with test_share)"
)


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in ``folder``, sorted by name; hidden ones are left out.

    Raises:
        DataError: If there is no such folder, where to get a known data set is said; if a link in
            it leads nowhere; if two names differ only in how they are encoded.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; expected {LAYOUT}{where_to_get(folder)}")
    found = sorted((p for p in _shown(folder) if p.is_dir()), key=_name)
    for one, other in pairwise(found):
        if _name(one) == _name(other):
            raise DataError(
                f"{folder} has two folders named {_name(one)!r}, with accents written in two ways; "
                "put them together"
            )
    return found


def class_folders(folder: Path) -> list[Path]:
    """Return the folders in ``folder``, as :func:`subfolders`, which hold all of its images.

    Raises:
        DataError: As :func:`subfolders`; also if an image lies beside the folders.
    """
    found = subfolders(folder)
    if loose := next((p for p in _shown(folder) if _is_image(p)), None):
        raise DataError(
            f"the image {loose} lies in no class folder; put it into one or take it out"
        )
    return found


def images_in(folder: Path) -> list[Path]:
    """Return the image files in ``folder``, known by their endings, sorted by name.

    Raises:
        DataError: If there are none, if there are some in a folder of it, or a link in it leads
            nowhere.
    """
    paths = sorted((p for p in _shown(folder) if _is_image(p)), key=_name)
    for deeper in (p for p in _shown(folder) if not _has_ending(p) and p.is_dir()):
        if inside := next((p for p in _shown(deeper) if _is_image(p)), None):
            raise DataError(
                f"the image {inside} does not lie in the class folder {folder} itself; put it "
                "there or take it out"
            )
    if not paths:
        raise DataError(f"the class folder {folder} has no images; add some or take it out")
    return paths


def draw_test(items: Sequence[Item], share: float, *, what: str) -> tuple[list[Item], list[Item]]:
    """Split one class into training and test images, always in the same way.

    Args:
        items: The images, in an order that is the same on every machine.
        share: Share of the test images; at least one image stays on either side.
        what: Name of the class, for the message.

    Returns:
        Training and test images, each in the given order. Which they are depends on the number of
        images only: the last of ``numpy.random.RandomState(0).permutation(n)`` are the test.

    Raises:
        DataError: If there are fewer than two images.

    Example:
        >>> draw_test(["a", "b", "c", "d", "e"], 0.2, what="letters")
        (['a', 'b', 'c', 'd'], ['e'])
    """
    n = len(items)
    if n < 2:
        raise DataError(f"{what} has {n} image; a test split needs at least 2")
    n_test = min(max(round(n * share), 1), n - 1)
    chosen = set(np.random.RandomState(0).permutation(n)[n - n_test :].tolist())
    return (
        [item for i, item in enumerate(items) if i not in chosen],
        [item for i, item in enumerate(items) if i in chosen],
    )


def _shown(folder: Path) -> Iterator[Path]:
    """Yield what is in ``folder`` and not hidden."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_symlink() and not path.exists():
            raise DataError(f"{path} is a link to what is not there; mend it or take it out")
        yield path


def _has_ending(path: Path) -> bool:
    return path.suffix.lower() in IMG_EXTENSIONS


def _is_image(path: Path) -> bool:
    return _has_ending(path) and path.is_file()


def _name(path: Path) -> str:
    return normal(path.name)
