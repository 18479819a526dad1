"""Pickled files of a data set, read as data: nothing in them is executed."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_peftcl.errors import DataError


def _latin1(text: str, encoding: str) -> bytes:
    """Return the bytes of an array, as Python 3 puts them into pickles that Python 2 can read."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the encoding {encoding!r} is none of an array's")
    return text.encode("latin1")


def _array(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """Return an array as NumPy puts it into pickles of protocol 5."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


_KNOWN: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("_codecs", "encode"): _latin1,
}
for _core in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_core}.multiarray", "_reconstruct"] = np.empty(0).__reduce__()[0]
    _KNOWN[f"{_core}.multiarray", "scalar"] = np.float64(0).__reduce__()[0]
    _KNOWN[f"{_core}.numeric", "_frombuffer"] = _array


class _PlainUnpickler(pickle.Unpickler):
    """Knows numbers, text, containers and NumPy's arrays; calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is no plain data"
            ) from None


def read_plain(path: Path) -> Any:
    """Read a pickle of plain data: numbers, text, lists, tuples, dicts, sets and NumPy arrays.

    Args:
        path: The file.

    Raises:
        DataError: If it is missing or damaged, or asks for anything else: a function, a class.
    """
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file).load()
    except Exception as error:  # a damaged pickle raises every kind
        raise DataError(
            f"{path} cannot be read as plain data: {error}; take the file that the data set was "
            "published with"
        ) from error
