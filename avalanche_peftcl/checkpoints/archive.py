"""The bytes of a checkpoint: a line that says what they are, and what ``torch.save`` writes.

The line names the hash of all that follows. Nothing in the bytes is executed, whoever wrote them:
the archive is looked through before torch reads it, see :mod:`.pickled`, and no more memory is
asked for than the bytes themselves can fill.
"""

import hashlib
import io
import re
import zipfile
from typing import Any

import torch

from avalanche_peftcl.checkpoints.pickled import check_pickle
from avalanche_peftcl.checkpoints.plain import check_plain, plain_state
from avalanche_peftcl.errors import CheckpointError

FORMAT = 2
MAGIC = b"avalanche_peftcl checkpoint "
_LINE = re.compile(MAGIC + rb"(\d{1,9}) sha256 ([0-9a-f]{64})\n")
_RECORD = re.compile(r"archive/(?:data\.pkl|version|byteorder|data/(\d{1,18}))")  # of torch.save


def encode_state(state: Any) -> bytes:
    """Return the bytes that :func:`decode_state` reads.

    Args:
        state: What :func:`~avalanche_peftcl.checkpoints.plain.plain_state` takes.

    Raises:
        CheckpointError: If ``state`` holds what no checkpoint can.

    Example:
        >>> decode_state(encode_state({"epoch": 3, "w": torch.ones(2)}), "it")
        {'epoch': 3, 'w': tensor([1., 1.])}
    """
    buffer = io.BytesIO()
    buffer.write(_line(b"0" * 64))
    try:
        torch.save(plain_state(state), buffer)
    except RecursionError:
        raise CheckpointError("the state is nested too deeply") from None
    with buffer.getbuffer() as content:
        digest = hashlib.sha256(content[len(_line(b"0" * 64)) :]).hexdigest()
    buffer.seek(0)
    buffer.write(_line(digest.encode()))
    return buffer.getvalue()


def decode_state(content: bytes, name: str, *, device: str | torch.device = "cpu") -> Any:
    """Return the state that :func:`encode_state` was given.

    Args:
        content: Its bytes, or any others.
        name: What errors call them.
        device: Where tensors go that were not on the CPU.

    Raises:
        CheckpointError: If they are of something else, of another format or damaged.
    """
    line = _LINE.match(content)
    if line is None and (content.startswith(MAGIC) or MAGIC.startswith(content)):
        raise CheckpointError(
            f"the checkpoint {name} is damaged: it is cut off after {len(content)} bytes"
        )
    if line is None:
        raise CheckpointError(
            f"{name} is no checkpoint: its {len(content)} bytes do not begin as those that this "
            "version writes; one of an earlier version cannot be gone on with, start anew"
        )
    if (found := int(line[1])) != FORMAT:
        raise CheckpointError(
            f"the checkpoint {name} is of format {found}, this version reads format {FORMAT}; go "
            "on with the version that wrote it, or start anew"
        )
    if hashlib.sha256(memoryview(content)[line.end() :]).hexdigest().encode() != line[2]:
        raise CheckpointError(
            f"the checkpoint {name} is damaged: it is not what was written ({len(content)} bytes)"
        )
    try:
        return _load(content, torch.device(device))
    except Exception as error:  # of zipfile and torch, whatever they make of a forged archive
        raise CheckpointError(
            f"the checkpoint {name} is damaged: {str(error) or type(error).__name__}"
        ) from error


def _line(digest: bytes) -> bytes:
    return MAGIC + b"%d sha256 %b\n" % (FORMAT, digest)


def _load(content: bytes, device: torch.device) -> Any:
    """Read an archive by way of one of our own, in which there is nothing but what was checked."""
    clean, pickled = io.BytesIO(), b""
    sizes: dict[str, int] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as given, zipfile.ZipFile(clean, "w") as made:
        entries = given.infolist()
        unfolded = sum(entry.file_size for entry in entries)
        if unfolded > len(content) or any(e.compress_type != zipfile.ZIP_STORED for e in entries):
            raise ValueError("its archive would unfold to more than its size")
        if len(given.NameToInfo) < len(entries):
            raise ValueError("its archive holds two entries of one name")
        for entry in entries:
            record = _RECORD.fullmatch(entry.filename)
            if record is None:
                continue  # what torch writes beside, and does not need
            held = given.read(entry)
            if record[1]:
                sizes[record[1]] = len(held)
            elif entry.filename.endswith(".pkl"):
                pickled = held
            made.writestr(entry.filename, held)
    check_pickle(pickled, sizes)
    clean.seek(0)

    def place(memory: Any, was: str) -> Any:
        return memory if was == "cpu" else memory.to(device=device)

    state = torch.load(clean, map_location=place, weights_only=True)
    return check_plain(state, most=len(content))
