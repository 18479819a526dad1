"""The pickle in a checkpoint, looked through before it is read.

``torch.load(weights_only=True)`` executes nothing, but a forged pickle could still have it ask for
any amount of memory, or refer to one part from many places. Here a pickle passes only if it is made
of what ``torch.save`` writes for plain values and tensors.
"""

import pickletools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

_VALUES = {
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT"), "v"),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), "i"),
    "BINUNICODE": "s",
}
_BUILDING = {
    **dict.fromkeys(("APPEND", "APPENDS", "SETITEM", "SETITEMS"), "a"),
    **dict.fromkeys(("EMPTY_DICT", "TUPLE1", "TUPLE2", "TUPLE3"), "a"),
    "MARK": "(",
    "EMPTY_TUPLE": "e",
    "EMPTY_LIST": "l",
    "TUPLE": "t",
    "REDUCE": "r",
    "BINPERSID": "p",
    "STOP": ".",
}
_CALLED = {
    "torch._utils _rebuild_tensor_v2": "T",
    "torch._utils _rebuild_tensor_v3": "T",
    "collections OrderedDict": "O",
    "__builtin__ set": "S",
}
_MEMORY = {  # bytes an entry
    "torch.storage UntypedStorage": 1,
    **dict.fromkeys((f"torch {kind}Storage" for kind in ("Bool", "Byte", "Char")), 1),
    **dict.fromkeys((f"torch {kind}Storage" for kind in ("Short", "Half", "BFloat16")), 2),
    **dict.fromkeys((f"torch {kind}Storage" for kind in ("Int", "Float")), 4),
    **dict.fromkeys((f"torch {kind}Storage" for kind in ("Long", "Double", "ComplexFloat")), 8),
    "torch ComplexDoubleStorage": 16,
}
_DTYPES = {f"torch {name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
# memory stands in a reference to it alone; hooks are empty; a set is made of a list. So nothing is
# called with a number, which would ask for so much memory
_GRAMMAR = re.compile(r"(?:[visalter(d]|T\(|Oer|Sl|Mssitp)*+\.")
_STORE, _RECALL = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}


def check_pickle(pickled: bytes, sizes: Mapping[str, int]) -> None:
    r"""Refuse a pickle that asks for anything but plain values and tensors, each once.

    Args:
        pickled: The pickle; nothing in it is executed.
        sizes: Bytes of each tensor's memory in the archive, by its key.

    Raises:
        ValueError: If it is another pickle; the message says what it asks for.

    Example:
        >>> check_pickle(b"cos\nsystem\n(S'true'\ntR.", {})
        Traceback (most recent call last):
        ValueError: its pickle asks for os system, which is in no checkpoint
    """
    tokens = list(_tokens(pickled))
    text = "".join(letter for letter, _ in tokens)
    if not _GRAMMAR.fullmatch(text):
        raise ValueError("its pickle is none of plain values and tensors")
    left = dict(sizes)
    for found in re.finditer("M", text):
        (_, kind), (_, key), _, (_, count) = tokens[found.start() : found.start() + 4]
        if left.pop(key, None) != count * _MEMORY[kind]:
            raise ValueError(f"the memory {key!r:.20} of a tensor is not in its archive so")


def _tokens(pickled: bytes) -> Iterator[tuple[str, Any]]:
    """Return a letter and a value for each instruction; values that are recalled come again."""
    known: dict[int, tuple[str, Any]] = {}
    last: tuple[str, Any] = "", None
    name: str
    value: Any
    for code, value, _ in pickletools.genops(pickled):
        name = code.name
        if name in _STORE:
            known.pop(value, None)
            if last[0] in "sTOSMd":
                known[value] = last
            continue
        if name == "PROTO" and value == 2:  # the one that torch.save writes
            continue
        if name in _RECALL:
            if value not in known:
                raise ValueError("its pickle refers to one part from several places")
            last = known[value]
        elif name == "GLOBAL":
            last = _letter(value), value
        elif name in _VALUES:
            last = _VALUES[name], value
        elif name in _BUILDING:
            last = _BUILDING[name], None
        else:
            raise ValueError(f"its pickle has the instruction {name}, which is in no checkpoint")
        yield last


def _letter(name: str) -> str:
    if name in _CALLED:
        return _CALLED[name]
    if name in _MEMORY:
        return "M"
    if name in _DTYPES:
        return "d"
    raise ValueError(f"its pickle asks for {name:.80}, which is in no checkpoint")
