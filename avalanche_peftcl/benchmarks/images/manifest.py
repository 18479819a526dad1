"""Which images a benchmark is made of: a list that two groups can compare by one hash.

An image is one line of JSON, ``[split, domain, class, path, size]``, in a manifest with the sha256
of its bytes as sixth entry. The hash of a list is the sha256 of its sorted lines, in ASCII, each
ended by a newline. Paths are relative to the data set's folder, so neither hash depends on where
the images are, on the operating system, on the seed or on the order of classes.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from avalanche_peftcl.benchmarks.images.contents import Contents, Entry
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.files import write_file

FORMAT = 1
_SHOWN = 5  # images of a kind that a message names


def split_sha256(entries: Iterable[Entry]) -> str:
    """Return the hash of splits, domains, classes, paths and sizes; contents are not read.

    Args:
        entries: The images, in any order, hashed or not.

    Example:
        >>> entry = Entry("train", "", "cat", "train/cat/1.png", 99)
        >>> split_sha256([entry]) == split_sha256([entry._replace(sha256="0" * 64)])
        True
        >>> split_sha256([entry]) == split_sha256([entry._replace(split="test")])
        False
    """
    return _sha256(_line(entry[:5]) for entry in entries)


def manifest_sha256(entries: Iterable[Entry]) -> str:
    """Return the hash of a manifest: as :func:`split_sha256`, and of every image's content.

    Args:
        entries: The images, in any order, hashed.

    Raises:
        ConfigError: If an entry is not hashed.
    """
    return _sha256(_line(_hashed(entry)) for entry in entries)


def write_manifest(path: str | Path, entries: Iterable[Entry]) -> str:
    """Write a manifest, in one step: a stop leaves no half file.

    Args:
        path: The file. Its first line tells format, total hash, numbers of images, and the names of
            classes and domains; each further line is an image, sorted.
        entries: The images, in any order, hashed.

    Returns:
        The total hash, :func:`manifest_sha256`.

    Raises:
        ConfigError: If an entry is not hashed or the file cannot be written.
    """
    entries = list(entries)
    total = manifest_sha256(entries)
    head = {
        "format": FORMAT,
        "sha256": total,
        "train_images": sum(entry.split == "train" for entry in entries),
        "test_images": sum(entry.split == "test" for entry in entries),
        "classes": sorted({entry.class_name for entry in entries}),
        "domains": sorted({entry.domain for entry in entries} - {""}),
    }
    lines = [_line(head), *sorted(_line(entry) for entry in entries)]
    path = Path(path)
    write_file(path, ("\n".join(lines) + "\n").encode("ascii"), parents=True)
    return total


def read_manifest(path: str | Path) -> list[Entry]:
    """Read a manifest and check that it is whole.

    Args:
        path: The file.

    Returns:
        The images, sorted.

    Raises:
        DataError: If the file is missing, cannot be read, is of another format, or was changed.
    """
    path = Path(path)
    try:
        head, *lines = path.read_text(encoding="ascii").removesuffix("\n").split("\n")
    except FileNotFoundError as error:
        raise DataError(
            f"there is no manifest {path}; write one with: peftcl manifest CONFIG {path}"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"the manifest {path} cannot be read: {error}") from error
    try:
        told: Any = json.loads(head)
        version, total = told["format"], told["sha256"]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DataError(f"{path} is not a manifest: its first line does not say so") from error
    if version != FORMAT:
        raise DataError(f"{path} is a manifest of format {version}; only {FORMAT} can be read")
    entries = [_parse(path, number, line) for number, line in enumerate(lines, start=2)]
    found = manifest_sha256(entries)
    if found != total:
        raise DataError(
            f"the manifest {path} is damaged: its first line says sha256 {total}, "
            f"its {len(entries)} images have {found}"
        )
    return entries


def check_manifest(path: str | Path, contents: Contents) -> str:
    """Compare the images at hand with a manifest; contents only if all else agrees.

    Args:
        path: The manifest.
        contents: The images.

    Returns:
        The manifest's hash.

    Raises:
        DataError: If the manifest cannot be used, or the images differ; the message counts and
            names what is missing, extra or changed.
    """
    expected = read_manifest(path)
    for hashed in (False, True):
        found = list(contents.entries(hashed=hashed))
        known = expected if hashed else [entry._replace(sha256="") for entry in expected]
        if differences := compare(known, found):
            raise DataError(
                f"the images are not those of the manifest {path}:\n"
                + "\n".join(f"  {line}" for line in differences)
                + "\nuse the images that it was made of, or write a manifest of these with: "
                f"peftcl manifest CONFIG {path} --overwrite"
            )
    return manifest_sha256(expected)


def compare(expected: Iterable[Entry], found: Iterable[Entry]) -> list[str]:
    """Return what differs between two lists of images, a line each for missing, extra, changed.

    Args:
        expected: What should be there.
        found: What is there.

    Example:
        >>> cat = Entry("train", "", "cat", "cat/1.png", 99)
        >>> compare([cat], [cat._replace(size=98), cat._replace(path="cat/2.png")])
        ['1 extra: train cat/2.png', '1 changed: train cat/1.png (size)']
    """
    old, new = _keyed(expected), _keyed(found)
    kinds = {
        "missing": [f"{old[key].split} {old[key].path}" for key in sorted(old.keys() - new.keys())],
        "extra": [f"{new[key].split} {new[key].path}" for key in sorted(new.keys() - old.keys())],
        "changed": [
            f"{old[key].split} {old[key].path} ({_difference(old[key], new[key])})"
            for key in sorted(old.keys() & new.keys())
            if old[key] != new[key]
        ],
    }
    return [
        f"{len(told)} {kind}: {', '.join(told[:_SHOWN])}"
        + (f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else "")
        for kind, told in kinds.items()
        if told
    ]


def _keyed(entries: Iterable[Entry]) -> dict[tuple[str, str, int], Entry]:
    """Return the entries by split, path and, of images that are listed twice, their number."""
    keyed: dict[tuple[str, str, int], Entry] = {}
    for entry in sorted(entries):
        number = 0
        while (key := (entry.split, entry.path, number)) in keyed:
            number += 1
        keyed[key] = entry
    return keyed


def _difference(old: Entry, new: Entry) -> str:
    changed = [field for field in Entry._fields if getattr(old, field) != getattr(new, field)]
    if "size" in changed and "sha256" in changed:
        changed.remove("sha256")
    words = {"class_name": "class", "sha256": "content"}
    return ", ".join(words.get(field, field) for field in changed)


def _hashed(entry: Entry) -> Entry:
    if not entry.sha256:
        raise ConfigError(f"the image {entry.path} is not hashed; list with hashed=True")
    return entry


def _line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in sorted(lines)).encode()).hexdigest()


def _parse(path: Path, number: int, line: str) -> Entry:
    try:
        entry = Entry(*json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"the manifest {path} is damaged: line {number} is no image") from error
    kinds = [type(value) for value in entry]
    if kinds != [str, str, str, str, int, str] or not entry.sha256:
        raise DataError(f"the manifest {path} is damaged: line {number} is no image")
    return entry
