"""How often a trained network is right about images in folders that are called like classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from avalanche_peftcl.errors import DataError
from avalanche_peftcl.export.load import ExportedModel
from avalanche_peftcl.export.predict import Prediction, find_images, predict
from avalanche_peftcl.registry.offers import ModelOffers
from avalanche_peftcl.registry.wording import did_you_mean, join

_PARTS = ("train", "test")  # folders of a split between those of domains and of classes


@dataclass(frozen=True, slots=True)
class DomainAccuracy:
    """How often a network is right in one domain.

    Args:
        name: Its folder's; empty for images that lie in no domain.
        images: How many were predicted.
        right: How many of them as they are labelled.
    """

    name: str
    images: int
    right: int

    @property
    def accuracy(self) -> float:
        """Share of its images that are right."""
        return self.right / self.images


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a network makes of labelled images.

    Args:
        class_names: Of the classes that images were labelled with or taken for, ``C``.
        confusion: Images by label (row) and prediction (column), ``(C, C)``.
        unreadable: Why an image was left out, one text each.
        untrained: Labels that the network was never trained on; their images count as wrong.
        domains: By name, where folders of classes lie in such of domains; else none.

    Example:
        >>> told = Evaluation(("cat", "dog"), np.array([[3, 1], [0, 1]]))
        >>> told.accuracy, told.class_accuracy
        (0.8, [0.75, 1.0])
    """

    class_names: tuple[str, ...]
    confusion: NDArray[np.int64]
    unreadable: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()
    domains: tuple[DomainAccuracy, ...] = ()

    @property
    def images(self) -> int:
        """How many images were predicted."""
        return int(self.confusion.sum())

    @property
    def right(self) -> int:
        """How many of them as they are labelled."""
        return int(self.confusion.trace())

    @property
    def accuracy(self) -> float | None:
        """Share of images that are right; ``None`` of none."""
        return self.right / self.images if self.images else None

    @property
    def class_accuracy(self) -> list[float | None]:
        """Share of the images of each class that is right; ``None`` of none."""
        totals, hits = self.confusion.sum(axis=1).tolist(), self.confusion.diagonal().tolist()
        return [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]

    def mistakes(self, label: int, most: int = 3) -> list[tuple[str, int]]:
        """Return what images of a class were taken for most often, and how often."""
        row = self.confusion[label]
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        wrong = [c for c in order if c != label and row[c]]
        return [(self.class_names[c], int(row[c])) for c in wrong[:most]]

    def to_json(self) -> str:
        """Return all of it as JSON."""
        told: dict[str, Any] = {
            "images": self.images,
            "accuracy": self.accuracy,
            "class_accuracy": self.class_accuracy,
            "class_names": list(self.class_names),
            "confusion": self.confusion.tolist(),
            "unreadable": list(self.unreadable),
            "untrained": list(self.untrained),
            "domains": [asdict(each) | {"accuracy": each.accuracy} for each in self.domains],
        }
        return json.dumps(told, indent=2)


def evaluate(model: ExportedModel, folder: str | Path, *, task: int | None = None) -> Evaluation:
    """Compare predictions with the folders that images lie in.

    The folder of an image is its label: its path below ``folder`` as the network names the class,
    or the last part of both. Folders above those of classes are domains, each told by itself too;
    ``train`` and ``test`` between them are none.

    Args:
        model: What :func:`.load` returned, on any device.
        folder: Images in folders that are called like classes.
        task: Task label of all images, where the network needs one.

    Raises:
        DataError: If there is no image, one lies in no folder of a class, or the name of its folder
            is that of several classes.
        ConfigError: As :func:`.predict`.
    """
    paths = find_images([Path(folder)])
    classes = ModelOffers.of(model.model).classes
    keys = [] if classes is None else classes.keys.tolist()
    names = {c: normalize("NFC", name) for c, name in enumerate(model.class_names)}
    if task is not None and keys:
        names = {c: names[c] for t, c in keys if t == task and c in names}
    places = [_place(path, Path(folder)) for path in paths]
    labels = _labels(names, places)
    known = {c for _, c in keys} if keys else set(labels)
    pairs: dict[tuple[int, int], int] = {}
    unreadable: list[str] = []
    domains: dict[str, list[bool]] = {}
    predictions = predict(model, paths, task=task)
    for place, label, told in zip(places, labels, predictions, strict=True):
        if told.ids:
            pairs[label, told.ids[0]] = pairs.get((label, told.ids[0]), 0) + 1
            domains.setdefault(_domain(place), []).append(told.ids[0] == label)
        else:
            unreadable.append(_reason(told))
    numbers = sorted(set(labels) | {predicted for _, predicted in pairs})
    at = {number: i for i, number in enumerate(numbers)}
    confusion = np.zeros((len(numbers), len(numbers)), dtype=np.int64)
    for (label, predicted), count in pairs.items():
        confusion[at[label], at[predicted]] = count
    return Evaluation(
        class_names=tuple(map(model.class_name, numbers)),
        confusion=confusion,
        unreadable=tuple(unreadable),
        untrained=tuple(model.class_name(c) for c in sorted(set(labels) - known)),
        domains=tuple(
            DomainAccuracy(name, len(right), sum(right))
            for name, right in sorted(domains.items() if any(domains) else ())
        ),
    )


def _reason(told: Prediction) -> str:
    return told.error or f"{told.path}: no class of this network may be predicted"


def _place(path: Path, folder: Path) -> str:
    """Return the folder of an image below ``folder``."""
    place = path.parent.relative_to(folder) if folder.is_dir() else Path()
    if place == Path():
        raise DataError(
            f"{path} lies in no folder that could be its label; give the folder of "
            "folders that are called like classes, as FOLDER/cat/1.png"
        )
    return normalize("NFC", place.as_posix())


def _domain(place: str) -> str:
    """Return the domain of a folder of images; empty without one.

    Example:
        >>> [_domain(place) for place in ("photo/cat", "photo/test/cat", "test/cat", "cat")]
        ['photo', 'photo', '', '']
    """
    *above, _ = place.split("/")
    if above and above[-1] in _PARTS:
        above.pop()
    return "/".join(above)


def _labels(names: Mapping[int, str], places: Sequence[str]) -> list[int]:
    """Return the class of each place of an image."""
    whole: dict[str, list[int]] = {}
    last: dict[str, list[int]] = {}
    for number, name in names.items():
        whole.setdefault(name, []).append(number)
        last.setdefault(_last(name), []).append(number)
    found = {}
    for place in set(places):
        fits = whole.get(place) or last.get(_last(place), [])
        if not fits:
            raise DataError(
                f"the folder {place!r} is no class of this network"
                f"{did_you_mean(_last(place), last)}; its classes are {join(whole, most=20)}"
            )
        if len(fits) > 1:
            raise DataError(
                f"the folder {place!r} may be each of the classes "
                f"{join(repr(names[c]) for c in fits)}; call folders like the whole name of a class"
            )
        found[place] = fits[0]
    return [found[place] for place in places]


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]
