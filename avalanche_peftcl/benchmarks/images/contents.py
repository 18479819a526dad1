"""The images of a data set as a list: split, domain, class, path, size and hash of each."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from avalanche_peftcl.benchmarks.images.datasets import LabelledImages, NamedImages
from avalanche_peftcl.benchmarks.images.names import normal
from avalanche_peftcl.models.backbones.images import to_rgb


class Entry(NamedTuple):
    """One image of a data set.

    Args:
        split: ``"train"`` or ``"test"``.
        domain: Name of its domain; empty if the data have none.
        class_name: Name of its class.
        path: Path relative to the data set's folder, or its number in an array.
        size: Bytes of the file, or of the pixels of an array; 0 if not known without decoding.
        sha256: Of those bytes; empty if not computed.
    """

    split: str
    domain: str
    class_name: str
    path: str
    size: int
    sha256: str = ""


@dataclass(frozen=True)
class Contents:
    """The images that a benchmark is made of, all of the data set, before any subset is drawn.

    Args:
        train: Training images.
        test: Test images.
        class_names: Name of each label.
        train_domains: Domain of each training image.
        test_domains: Domain of each test image.
        domain_names: Name of each domain.
    """

    train: LabelledImages
    test: LabelledImages
    class_names: Sequence[str]
    train_domains: Sequence[int] | None = None
    test_domains: Sequence[int] | None = None
    domain_names: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.train) + len(self.test)

    def entries(self, *, hashed: bool) -> Iterator[Entry]:
        """List the images.

        Args:
            hashed: Read every image and hash it, which takes time; otherwise sizes have to do.

        Yields:
            The training images, then the test images.

        Raises:
            DataError: If a file is missing or cannot be read.
        """
        parts = (
            ("train", self.train, self.train_domains),
            ("test", self.test, self.test_domains),
        )
        for split, images, domains in parts:
            named = images if isinstance(images, NamedImages) else _Numbered(images)
            for i, label in enumerate(np.asarray(images.targets).astype(int).tolist()):
                domain = "" if domains is None else self._domain(domains[i])
                class_name = normal(self.class_names[label])
                digest = hashlib.sha256(named.content(i)).hexdigest() if hashed else ""
                yield Entry(split, domain, class_name, named.name(i), named.size(i), digest)

    def _domain(self, number: int) -> str:
        return str(number) if self.domain_names is None else normal(self.domain_names[number])


class _Numbered:
    """Images of any other data set: known by their numbers and decoded pixels."""

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def name(self, index: int) -> str:
        return str(index)

    def size(self, index: int) -> int:
        return 0

    def content(self, index: int) -> bytes:
        return np.asarray(to_rgb(self.images[index][0])).tobytes()
