"""Captioned images in two folders, with their captions in JSON."""

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from avalanche.benchmarks import CLScenario
from torchvision.datasets.folder import IMG_EXTENSIONS

from avalanche_peftcl.benchmarks.images.captioned import CaptionedImages
from avalanche_peftcl.benchmarks.images.datasets import ImageFiles
from avalanche_peftcl.benchmarks.stream.captioned import CaptionOptions, make_captioned
from avalanche_peftcl.errors import ConfigError, ConfigWarning, DataError
from avalanche_peftcl.registry.ranges import Count
from avalanche_peftcl.registry.takes import takes
from avalanche_peftcl.registry.wording import join, show

PARTS = ("train", "test")
_MOST = 3  # names in a message
_EXPECTED = '{"file name": ["caption", ...], ...}'


class _Photo(NamedTuple):
    path: Path
    captions: Sequence[str]


@takes(CaptionOptions)
def image_text(
    *,
    root: Path,
    topics: dict[str, list[str]] | None = None,
    experiences: dict[str, str] | None = None,
    n_experiences: Count | None = None,
    in_memory: bool = False,
    options: CaptionOptions,
) -> CLScenario:
    """Make a stream of captioned images from ``root/{train,test}/`` and ``root/{train,test}.json``.

    A file of captions is ``{"file name": ["caption", ...], ...}``, the names relative to the folder
    of the images. One of ``topics``, ``experiences`` and ``n_experiences`` says how they become
    experiences. Each is a task of its own: texts and images are looked for among those of the
    experience, so the strategy has to be told at test which that is. Strategy ``contrastive``
    trains on it; there are no classes.

    Args:
        root: The folder.
        topics: Words by name of an experience, in order of arrival. An image belongs to the first
            topic of which a word occurs in one of its captions, as a whole word and whatever its
            case; so give plurals too. What belongs to none is left out, which is told, in the
            record too.
        experiences: Files of captions by name of an experience, in order of arrival, relative to
            ``root``, in the place of ``train.json`` and ``test.json``. Each image lies in ``train``
            or in ``test``, which says what it is for, and is in one experience only.
        n_experiences: Number of drawn parts of equal size.
        in_memory: Decode every image at the start and keep it, 3 bytes a pixel.
        options: The others, see :class:`.CaptionOptions`.

    Returns:
        The benchmark, see :func:`.make_captioned`.

    Raises:
        ConfigError: Not one of the three is given, or an option makes no sense.
        DataError: A folder or file is missing or no such file; an image has no captions, captions
            have no image; an experience has no images; a split does not divide; images are not
            those of the manifest.
    """
    root = Path(root)
    asked = {"topics": topics, "experiences": experiences, "n_experiences": n_experiences}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(
            f"{' and '.join(given) or 'nothing'} given; give one of {', '.join(asked)}: it says "
            "which images come together"
        )
    if experiences is not None:
        names, photos, labels = _by_file(root, experiences)
    else:
        photos = {part: _read_part(root, part) for part in PARTS}
        if topics is not None:
            names = list(topics)
            find = _finder(topics)
            labels = {part: [find(p.captions) for p in own] for part, own in photos.items()}
        else:
            names, labels = _drawn(photos, int(n_experiences or 0), options.seed)
    left_out = {part: own.count(-1) for part, own in labels.items()}
    if any(left_out.values()):
        warnings.warn(
            f"of the images of {root}, {left_out['train']} of {len(labels['train'])} for training "
            f"and {left_out['test']} of {len(labels['test'])} for test have no word of a topic in "
            "their captions and are left out",
            ConfigWarning,
            stacklevel=3,
        )
    parts = {}
    for part, own in labels.items():
        kept = [i for i, label in enumerate(own) if label >= 0]
        images = ImageFiles(
            [photos[part][i].path for i in kept],
            [own[i] for i in kept],
            root=root,
            in_memory=in_memory,
        )
        parts[part] = CaptionedImages(images, [photos[part][i].captions for i in kept])
    return make_captioned(
        parts["train"],
        parts["test"],
        names=names,
        left_out=None if topics is None else left_out,
        **vars(options),
    )


# --- which image is of which experience --------------------------------------------------------


def _finder(topics: Mapping[str, Sequence[str]]) -> Any:
    """Return what finds the number of an image's topic by its captions, -1 for none."""
    if not topics:
        raise ConfigError("topics={} names no topic; give words by name of an experience")
    for name, words in topics.items():
        if not words or not all(word.strip() for word in words):
            raise ConfigError(f"topic {name!r} needs words, got {show(words)}")
    patterns = [
        re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(w.strip()) for w in words)})(?!\w)", re.I)
        for words in topics.values()
    ]

    def find(captions: Iterable[str]) -> int:
        text = "\n".join(captions)
        return next((t for t, pattern in enumerate(patterns) if pattern.search(text)), -1)

    return find


def _drawn(
    photos: Mapping[str, Sequence[_Photo]], n: int, seed: int
) -> tuple[list[str], dict[str, list[int]]]:
    """Return names of parts and the part of each image, drawn."""
    labels = {}
    sizes = [len(own) for own in photos.values()]
    if any(size % n for size in sizes):
        common = int(np.gcd.reduce(sizes))
        fits = [d for d in range(1, common + 1) if common % d == 0]
        raise DataError(
            f"{sizes[0]} training and {sizes[1]} test images do not divide into {n} experiences; "
            f"give n_experiences one of {fits[:20]}, or topics or experiences"
        )
    for number, (part, own) in enumerate(photos.items()):
        order = np.random.default_rng((seed, number)).permutation(len(own))
        parts = np.empty(len(own), int)
        parts[order] = np.repeat(np.arange(n), len(own) // n)
        labels[part] = parts.tolist()
    return [f"part {e + 1}" for e in range(n)], labels


def _by_file(
    root: Path, experiences: Mapping[str, str]
) -> tuple[list[str], dict[str, list[_Photo]], dict[str, list[int]]]:
    """Return names, images and the experience of each, as files of captions say."""
    if not experiences:
        raise ConfigError("experiences={} names no file; give one by name of an experience")
    photos: dict[str, list[_Photo]] = {part: [] for part in PARTS}
    labels: dict[str, list[int]] = {part: [] for part in PARTS}
    before: dict[Path, Path] = {}
    for e, place in enumerate(experiences.values()):
        file = root / place
        for name, captions in _read(file).items():
            found = [part for part in PARTS if (root / part / name).is_file()]
            if len(found) != 1:
                where = "both" if found else "neither"
                raise DataError(
                    f"{file} has captions of {name!r}, which is in {where} of {root / 'train'} and "
                    f"{root / 'test'}; it must be in one"
                )
            path = root / found[0] / name
            if path in before:
                raise DataError(
                    f"the image {path} is in {before[path]} and in {file}; it may be in one "
                    "experience only"
                )
            before[path] = file
            photos[found[0]].append(_Photo(path, captions))
            labels[found[0]].append(e)
    return list(experiences), photos, labels


# --- files -------------------------------------------------------------------------------------


def _read_part(root: Path, part: str) -> list[_Photo]:
    """Return the images of a folder with captions, sorted by name."""
    folder, file = root / part, root / f"{part}.json"
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; expected root/{{train,test}} with images")
    told = _read(file)
    there = {p.name for p in folder.iterdir() if p.suffix.lower() in IMG_EXTENSIONS}
    if missing := [name for name in told if not (folder / name).is_file()]:
        raise DataError(
            f"{file} has captions of {join(map(repr, missing), most=_MOST)}, which {folder} does "
            "not have; add images or take captions out"
        )
    if silent := sorted(name for name in there - told.keys() if not name.startswith(".")):
        raise DataError(
            f"{file} has no captions of {join(map(repr, silent), most=_MOST)}, which {folder} has; "
            "add captions or take images out"
        )
    return [_Photo(folder / name, captions) for name, captions in told.items()]


def _read(file: Path) -> dict[str, list[str]]:
    """Return captions by file name, sorted."""
    try:
        told = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"no file of captions {file}; expected {_EXPECTED}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"the captions {file} cannot be read: {error}") from error
    if not isinstance(told, dict) or not told:
        raise DataError(f"{file} holds no captions; expected {_EXPECTED}")
    for name, captions in told.items():
        path = PurePosixPath(name)
        if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
            raise DataError(f"{file}: {name!r} is no file name relative to the folder of images")
        texts = isinstance(captions, list) and all(isinstance(text, str) for text in captions)
        if not texts or not captions or not all(text.strip() for text in captions):
            raise DataError(
                f"{file}: {name!r} needs a list of captions, one at least and none of them empty"
            )
    return dict(sorted(told.items()))
