"""Names of files, the same on every system."""

import unicodedata
from pathlib import Path

from avalanche_peftcl.errors import DataError


def normal(name: str) -> str:
    r"""Return ``name`` with composed characters: some systems write an accent as its own sign.

    Bytes that are no UTF-8, as archives of other systems leave them, become escapes.

    Example:
        >>> len("e\u0301"), len(normal("e\u0301"))
        (2, 1)
        >>> normal("caf\udce9")
        'caf\\udce9'
    """
    return unicodedata.normalize("NFC", name.encode(errors="backslashreplace").decode())


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error to raise for a file of a data set that cannot be read."""
    reason = error.strerror or type(error).__name__
    return DataError(f"{path} cannot be read ({reason}); the data set is not complete")
