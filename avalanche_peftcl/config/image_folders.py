"""What lies in a folder of images: classes, domains, a test split; no torch."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from avalanche_peftcl.errors import DataError

PARTS = ("train", "test")
# as torchvision's, which the benchmark asks
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_LAYOUTS = (
    "root/{train,test}/class/, root/domain/{train,test}/class/, or without a test split "
    "root/class/ or root/domain/class/"
)


@dataclass(frozen=True)
class ImageFolder:
    """A folder as the benchmark ``image_folder`` takes it.

    Args:
        root: The folder.
        domains: Names of the domains, sorted; none where classes come first.
        classes: Names of the classes of all domains, sorted.
        images: How many there are.
        split: Whether it has folders ``train`` and ``test``.
    """

    root: Path
    domains: tuple[str, ...]
    classes: tuple[str, ...]
    images: int
    split: bool


def look_into(root: Path) -> ImageFolder:
    """Say how images are laid out in a folder, by names alone; no image is read.

    Raises:
        DataError: If it has no folders, or no images where they are looked for.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}")
    try:
        top = _folders(root)
        first = _folders(root / top[0]) if top else []
        split = bool(set(PARTS) & set(top))
        domains: tuple[str, ...] = ()
        if not split and set(PARTS) & set(first):
            split, domains = True, tuple(top)
        elif not split and first:
            domains = tuple(top)
        roots = [root / domain for domain in domains] or [root]
        places = [place / part for place in roots for part in PARTS] if split else roots
        classes, images = set[str](), 0
        for place in places:
            for name in _folders(place) if place.is_dir() else []:
                classes.add(name)
                images += sum(_is_image(each) for each in _shown(place / name))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
    if not images:
        raise DataError(f"there are no images in {root}; they are looked for in {_LAYOUTS}")
    return ImageFolder(root, domains, tuple(sorted(classes)), images, split)


def _shown(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _shown(folder) if entry.is_dir())


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(ENDINGS) and entry.is_file()
