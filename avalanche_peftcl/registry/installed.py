"""What installed distributions say of themselves; any of their files may be damaged."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions
from pathlib import PurePath

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from avalanche_peftcl.registry.wording import clip, say, show

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.IGNORECASE)
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*\s*(:\s*[^\W\d]\w*(\.[^\W\d]\w*)*\s*)?(\[.*\])?")
_POINTS = "entry_points.txt"


@dataclass(frozen=True, slots=True)
class Point:
    """One line of an ``entry_points.txt``; ``cause`` says what is wrong with it."""

    name: str
    entry_point: EntryPoint | None
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class Package:
    """An installed distribution with entry points of a group.

    Args:
        name: Its name; that of its folder if it has none.
        version: Its version; ``"unknown"`` if it has none.
        points: Its entry points in that group, sorted by name.
        distribution: What Python knows of it.
        cause: What is wrong with the package as a whole.
    """

    name: str
    version: str
    points: tuple[Point, ...]
    distribution: Distribution
    cause: str | None = None


def packages(group: str) -> list[Package]:
    """Return the installed distributions with entry points of ``group``, sorted by name.

    The first of a name on ``sys.path`` wins, as it does for imports. Files that are damaged raise
    nothing: what is wrong stands in ``cause``, or is no matter of ours.
    """
    first: dict[str, Package] = {}
    for distribution in distributions():
        if points := list(_points(distribution, group)):
            package = _package(distribution, points)
            first.setdefault(canonicalize_name(package.name), package)
    return [package for _, package in sorted(first.items())]


def _package(distribution: Distribution, points: list[Point]) -> Package:
    causes: list[str] = []
    name = version = None
    try:
        metadata = distribution.metadata
        name, version = metadata["Name"], metadata["Version"]
    except Exception as error:  # no metadata, or not text
        causes.append(f"its METADATA cannot be read: {say(error)}")
    else:
        if not isinstance(name, str):
            causes.append("its METADATA is missing or has no Name")
        elif not _NAME.fullmatch(name):
            causes.append(f"its METADATA names it {show(name)}, which is no name of a package")
        if not isinstance(version, str):
            causes.append("its METADATA is missing or has no Version")
        elif not _is_version(version):
            causes.append(f"its METADATA gives the version {show(version)}, which is none")
    cause = f"{causes[0]}; install it again" if causes else None
    if cause is not None:
        folder = PurePath(str(getattr(distribution, "_path", ""))).name  # no public way to it
        named = isinstance(name, str) and _NAME.fullmatch(name)
        name = name if named else show(folder)[1:-1] or "unknown"
        version = version if isinstance(version, str) and _is_version(version) else "unknown"
    ordered = tuple(sorted(points, key=lambda point: point.name))
    return Package(str(name), str(version), ordered, distribution, cause)


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def _points(distribution: Distribution, group: str) -> Iterator[Point]:
    """Yield what a distribution says under ``[group]``, line by line."""
    try:
        text = distribution.read_text(_POINTS) or ""
    except UnicodeDecodeError as error:
        if f"[{group}]".encode() in bytes(error.object):  # else it has nothing for us
            yield Point("?", None, f"its {_POINTS} is not a text file in UTF-8")
        return
    except Exception:  # as Python's own reader does with files that it may not read
        return
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            inside = line[1:-1] == group
        elif inside and line and not line.startswith("#"):
            yield _point(line, number, group)


def _point(line: str, number: int, group: str) -> Point:
    name, sign, value = (part.strip() for part in line.partition("="))
    if not sign or not name:
        text = f"line {number} of its {_POINTS}, {show(line)}, is not of the form name = module"
        return Point(clip(name) or "?", None, text)
    if not _TARGET.fullmatch(value):
        text = f"line {number} of its {_POINTS} names {show(value)}, which is no module"
        return Point(clip(name), None, text)
    return Point(clip(name), EntryPoint(name, value, group))
