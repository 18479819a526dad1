"""Five data sets in turn: ten classes each, CIFAR-10, clothes, house numbers, digits, letters."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.datasets import default_dataset_location

from avalanche_peftcl.benchmarks.images.datasets import ImageFiles, JoinedImages, NamedImages
from avalanche_peftcl.benchmarks.images.folders import draw_test, images_in, subfolders
from avalanche_peftcl.benchmarks.images.homes import HOMES
from avalanche_peftcl.benchmarks.sources.classic import (
    CIFAR10_FILES,
    FASHION_MNIST_FILES,
    MNIST_FILES,
    SVHN_FILES,
)
from avalanche_peftcl.benchmarks.stream.make_benchmark import make_benchmark
from avalanche_peftcl.benchmarks.stream.options import StreamOptions
from avalanche_peftcl.benchmarks.stream.transforms import Augment
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.registry.takes import takes

Name = Literal["cifar10", "mnist", "fashion_mnist", "svhn", "notmnist"]
NAMES: tuple[Name, ...] = get_args(Name)
_LETTERS = list("ABCDEFGHIJ")
_NOTMNIST = "notMNIST_small"
_NOTMNIST_TEST = 0.2
_NOTMNIST_BROKEN = {  # the archive's two files that are no images
    "RGVtb2NyYXRpY2FCb2xkT2xkc3R5bGUgQm9sZC50dGY=.png",
    "Q3Jvc3NvdmVyIEJvbGRPYmxpcXVlLnR0Zg==.png",
}
_DOWNLOADS = {f.name: f for f in (CIFAR10_FILES, MNIST_FILES, FASHION_MNIST_FILES, SVHN_FILES)}


@dataclass(frozen=True, kw_only=True)
class FiveOptions(StreamOptions):
    """Each data set is an experience, its classes in their own order; digits are not mirrored."""

    scenario: Literal["class", "task", "online"] = "class"
    n_experiences: None = field(default=None, init=False)
    classes_per_experience: list[int] = field(default_factory=lambda: [10] * 5, init=False)
    class_order: Literal["natural"] = field(default="natural", init=False)
    augment: Augment = "none"


@takes(FiveOptions)
def five_datasets(
    *,
    root: Path | None = None,
    download: bool = True,
    order: list[Name] | None = None,
    options: FiveOptions,
) -> CLScenario:
    """Make a benchmark from CIFAR-10, MNIST, Fashion-MNIST, SVHN and notMNIST: 5 times 10 classes.

    Each data set is an experience; its classes come in their own order, and a class is named
    ``data set/class``. notMNIST is not downloaded: its small edition has to lie in
    ``notMNIST_small/{A,...,J}/``. A fifth of each letter, drawn by :func:`.folders.draw_test`, is
    the test; the two files of the archive (an A and an F) that are no images are left out.

    Args:
        root: Folder with ``notMNIST_small`` and a folder for each of the others (``cifar10``,
            ``mnist``, ``fashionmnist``, ``svhn``); ``None`` takes Avalanche's data folder.
        download: Fetch what is missing of the other four.
        order: The five names in order of arrival; ``None``: ``cifar10``, ``mnist``,
            ``fashion_mnist``, ``svhn``, ``notmnist``.
        options: The others, see :class:`.StreamOptions`.

    Returns:
        The benchmark, see :func:`.make_benchmark`.

    Raises:
        ConfigError: An option that is out of range, or an order that does not name each of the five
            once.
        DataError: Files are missing (the message says where to get them) or could not be
            downloaded; images are not those of the manifest.

    Source:
        Ebrahimi et al., "Adversarial Continual Learning", ECCV 2020.
        Differs: small notMNIST and its split, the order of the data sets.
    """
    names = list(NAMES) if order is None else order
    if sorted(names) != sorted(NAMES):
        raise ConfigError(f"order={names} does not name each of the five once: {list(NAMES)}")
    trains: dict[str, NamedImages] = {}
    tests: dict[str, NamedImages] = {}
    class_names: list[str] = []
    for name in names:
        if name == "notmnist":
            trains[name], tests[name], own = _notmnist(root)
        else:
            files = _DOWNLOADS[name]
            place = None if root is None else Path(root) / files.folder
            trains[name], tests[name], own = files.get(place, download)
        class_names += [f"{name}/{each}" for each in own]
    sizes = options.classes_per_experience
    return make_benchmark(
        JoinedImages(trains, n_classes=sizes),
        JoinedImages(tests, n_classes=sizes),
        class_names=class_names,
        **vars(options),
    )


def _notmnist(root: Path | None) -> tuple[NamedImages, NamedImages, list[str]]:
    place = Path(default_dataset_location("notmnist") if root is None else root)
    folder = place / _NOTMNIST
    found = [p.name for p in subfolders(folder)] if folder.is_dir() else []
    if found != _LETTERS:
        home = HOMES["notmnist"]
        what = f"the folders {found}" if found else "no folders"
        raise DataError(
            f"{folder} has {what}, not A to J: {home.title} is not downloaded; it is at "
            f"{home.url} ({home.layout})"
        )
    rows: list[tuple[list[Path], list[int]]] = [([], []), ([], [])]
    for label, letter in enumerate(_LETTERS):
        own = [p for p in images_in(folder / letter) if p.name not in _NOTMNIST_BROKEN]
        for (paths, labels), part in zip(
            rows, draw_test(own, _NOTMNIST_TEST, what=f"the letter {letter}"), strict=True
        ):
            paths += part
            labels += [label] * len(part)
    train, test = (ImageFiles(paths, labels, root=folder) for paths, labels in rows)
    return train, test, list(_LETTERS)
