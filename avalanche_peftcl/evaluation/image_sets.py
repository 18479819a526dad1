"""Images beside the stream, for metrics: folders of classes, and images with captions."""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.models.backbones.images import eval_transform, read_image
from avalanche_peftcl.registry.wording import join, show

_MOST = 3  # names in a message


class ClassImages(NamedTuple):
    """Images of classes.

    Attributes:
        paths: Their files.
        labels: Number of the class of each.
        words: What the classes are called, each once.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    words: tuple[str, ...]


class CaptionedImages(NamedTuple):
    """Images with texts.

    Attributes:
        paths: Their files.
        captions: Of all images, one after the other.
        owners: Number of the image of each caption.
    """

    paths: tuple[Path, ...]
    captions: tuple[str, ...]
    owners: tuple[int, ...]


def class_images(
    root: Path, words: Mapping[str, str] | None, *, most: int | None, seed: int
) -> ClassImages:
    """Find images in ``root/test/class/``, or in ``root/class/`` where there is no test folder.

    Files count as images by their ending; hidden ones are left out, and folders too. Classes that
    are called alike are one.

    Args:
        root: The folder.
        words: What each class is called, by the name of its folder; ``None``: that name, with
            spaces for ``_``.
        most: At most so many images of each folder, a seeded choice; ``None``, all.
        seed: Of the choice; no global generator is touched.

    Raises:
        DataError: If a folder is missing or has no images, or there are fewer than two classes.
        ConfigError: If there is no word for a class.
    """
    inside = root / "test"
    place = inside if inside.is_dir() and any(p.is_dir() for p in inside.iterdir()) else root
    folders = {_normal(path.name): path for path in _shown(place) if path.is_dir()}
    if len(folders) < 2:
        raise DataError(
            f"{place} has {len(folders)} folders of classes, and two are needed at least; expected "
            "root/test/class or root/class"
        )
    if words is not None and (missing := [name for name in folders if name not in words]):
        raise ConfigError(
            f"class_words has no word for {join(missing, most=_MOST)} of {place}; give one for "
            "each class, or leave class_words out where the names of folders are words"
        )
    called = {name: name.replace("_", " ") if words is None else words[name] for name in folders}
    texts = tuple(dict.fromkeys(called.values()))
    paths, labels = [], []
    for name, folder in folders.items():
        found = [p for p in _shown(folder) if p.suffix.lower() in IMG_EXTENSIONS and p.is_file()]
        if not found:
            raise DataError(f"the class folder {folder} has no images; add some or take it out")
        chosen = choose_images(len(found), most, seed)
        paths += [found[i] for i in chosen]
        labels += [texts.index(called[name])] * len(chosen)
    return ClassImages(tuple(paths), tuple(labels), texts)


def captioned_images(root: Path, captions: Path, *, most: int | None, seed: int) -> CaptionedImages:
    """Find the images that a file of captions names; others in the folder are left out.

    Args:
        root: The folder.
        captions: A JSON file: by the file name of an image its caption, or a list of some.
        most: At most so many images, a seeded choice; ``None``, all.
        seed: Of the choice; no global generator is touched.

    Raises:
        DataError: If the folder or file is missing or of another form, an image is missing, or
            there are fewer than two.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}, where the images of {captions} should lie")
    told = read_json(captions)
    if not isinstance(told, dict) or not all(map(_texts, told.values())):
        raise DataError(
            f"{captions} must hold captions of images: {{file name: [caption, ...], ...}}"
        )
    if missing := [name for name in told if not (root / name).is_file()]:
        raise DataError(
            f"{root} has no image {join(missing, most=_MOST)}, of which {captions} has captions; "
            "add the images or take the captions out"
        )
    if len(told) < 2:
        raise DataError(f"{captions} has {len(told)} images, and two are needed at least")
    names = sorted(told)
    chosen = [names[i] for i in choose_images(len(names), most, seed)]
    pairs = [(text, i) for i, name in enumerate(chosen) for text in _texts(told[name])]
    return CaptionedImages(
        tuple(root / name for name in chosen),
        tuple(text for text, _ in pairs),
        tuple(owner for _, owner in pairs),
    )


def read_batches(paths: Sequence[Path], config: InputConfig, size: int) -> Iterator[Tensor]:
    """Yield images as a backbone expects them in evaluation, ``size`` at a time.

    Raises:
        DataError: If an image cannot be decoded.
    """
    transform = eval_transform(config)
    for first in range(0, len(paths), size):
        yield torch.stack([transform(read_image(path)) for path in paths[first : first + size]])


def read_words(words: Path | Mapping[str, str] | None, name: str) -> Mapping[str, str] | None:
    """Return what the classes of a set of images are called, by the names of their folders.

    Args:
        words: That, or a JSON file with it, or with such a map for each set.
        name: Of the set.

    Raises:
        DataError: If the file is missing or of another form.
        ConfigError: If a word is none.
    """
    if isinstance(words, Path):
        told = read_json(words)
        if isinstance(told, dict) and isinstance(told.get(name), dict):
            told = told[name]
        if not isinstance(told, dict) or not all(isinstance(v, str) for v in told.values()):
            raise DataError(
                f"{words} must hold a word for each class folder, {{folder: word, ...}}, or such a "
                f"map for each set of images, {name!r} among them"
            )
        words = told
    if words is None:
        return None
    if bad := [folder for folder, word in words.items() if not word.strip()]:
        raise ConfigError(f"class_words has an empty word for {join(bad, most=_MOST)}; give one")
    return {_normal(folder): word for folder, word in words.items()}


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path} cannot be read: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {show(str(error))}") from error


def choose_images(n: int, most: int | None, seed: int) -> list[int]:
    """Return the numbers of at most ``most`` of ``n`` images, a seeded choice, sorted."""
    if most is None or most >= n:
        return list(range(n))
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return sorted(drawn[:most].tolist())


def _shown(folder: Path) -> list[Path]:
    """Return what is in a folder and not hidden, sorted by name."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(found, key=lambda path: _normal(path.name))


def _normal(name: str) -> str:
    """Return a name with composed characters: some systems write an accent as its own sign."""
    return unicodedata.normalize("NFC", name)


def _texts(value: Any) -> list[str]:
    """Return captions; none where a value is something else."""
    texts = value if isinstance(value, list) else [value]
    return texts if all(isinstance(text, str) and text.strip() for text in texts) else []
