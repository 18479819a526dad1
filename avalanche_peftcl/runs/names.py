"""What the experiences of a run are called: by domain, by classes, or by number."""

from collections.abc import Sequence

from avalanche_peftcl.runs.schema import Stream

_LONGEST = 24  # letters of a name that stands alone


def full_names(stream: Stream) -> list[str]:
    """Return of each experience its domain, where each has one, or its classes."""
    if stream.domains is not None and len(stream.domains) == len(stream.experiences):
        return list(stream.domains)
    return [", ".join(experience.class_names) for experience in stream.experiences]


def domain_names(stream: Stream) -> list[str]:
    """Return of each experience its domain; none where experiences are no domains."""
    own = stream.domains is not None and len(stream.domains) == len(stream.experiences)
    return full_names(stream) if own else []


def experience_names(stream: Stream) -> list[str]:
    """Return a short name of each experience, no two the same; numbers where names are not so.

    Example:
        >>> from types import SimpleNamespace
        >>> experiences = [SimpleNamespace(class_names=["cat", "dog"]) for _ in range(4)]
        >>> experience_names(SimpleNamespace(domains=["photo", "art"], experiences=experiences[:2]))
        ['photo', 'art']
        >>> experience_names(SimpleNamespace(domains=None, experiences=experiences))
        ['1', '2', '3', '4']
    """
    names = full_names(stream)
    if len(set(names)) == len(names) and all(0 < len(name) <= _LONGEST for name in names):
        return names
    return [str(number) for number in range(1, len(names) + 1)]


def numbered(names: Sequence[str], *, longest: int = _LONGEST) -> list[str]:
    """Return number and name, cut where it is long; numbers alone where no name tells them apart.

    Example:
        >>> numbered(["photo", "art painting", "7", ""], longest=8)
        ['1 (photo)', '2 (art pai…)', '3 (7)', '4']
        >>> numbered(["cat", "cat"])
        ['1', '2']
    """
    plain = [str(number) for number in range(1, len(names) + 1)]
    if len(set(names)) < len(names) or list(names) == plain:
        return plain
    short = [name if len(name) <= longest else f"{name[: longest - 1]}…" for name in names]
    return [f"{n} ({name})" if name else n for n, name in zip(plain, short, strict=True)]
