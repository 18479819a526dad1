"""Words of messages: short whatever was given, however long that is."""

import reprlib
from collections.abc import Iterable
from difflib import get_close_matches

from avalanche_peftcl.errors import PEFTCLError

_LONGEST = 80  # letters of a value
_LINE = 1000  # letters of an error
_MOST = 60  # names in a list


class _Repr(reprlib.Repr):
    """The library's short ``repr``, of a few items and a few levels, with keys in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict = 4, 6
        self.maxstring = self.maxlong = self.maxother = _LONGEST


_repr = _Repr()


def show(value: object) -> str:
    """Return ``repr(value)``, at most 80 letters of it, without looking through all of a value.

    Example:
        >>> show("x" * 100)[-6:], show([[[[[[1]]]]]])
        ("xxx...", '[[[[[...]]]]]')
    """
    try:
        text = _repr.repr(value)
    except Exception:  # a number too long to print, or an object with a repr of its own
        text = f"a {type(value).__name__}"
    return clip(text)


def clip(text: str, most: int = _LONGEST) -> str:
    """Return ``text``, cut after ``most`` letters.

    Example:
        >>> clip("a long story", 9)
        'a long...'
    """
    return text if len(text) <= most else text[: most - 3] + "..."


def join(words: Iterable[str], most: int = _MOST) -> str:
    """Return a list as one writes it in a sentence, and how many more there are.

    Example:
        >>> join("abcde", most=3)
        'a, b, c and 2 more'
    """
    words = list(words)
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(clip(word) for word in words[:most]) + more


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the nearest of ``known`` in brackets, or nothing if none is near.

    Example:
        >>> did_you_mean("sead", ["seed", "device"])
        " (did you mean 'seed'?)"
    """
    match = get_close_matches(name, list(known), n=1) if len(name) <= _LONGEST else []
    return f" (did you mean {match[0]!r}?)" if match else ""


def say(error: BaseException) -> str:
    """Return an error as one line.

    Example:
        >>> say(KeyError("a"))
        "KeyError: 'a'"
    """
    try:
        said = str(error)
    except Exception:  # an exception of someone else's may not even say what it is
        said = ""
    if not isinstance(error, PEFTCLError):
        said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return clip(" ".join(said.split()), _LINE)
