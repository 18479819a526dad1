"""Checkpoints on disk: safetensors and JSON, written in one step, read without executing anything.

The folder of a run holds ``000007.safetensors`` and ``000007.json``. The second names the hash of
the first and is written after it, so a checkpoint is there once its JSON is. The one before is kept
until the next one is complete. A script keeps one file: the same tensors, and among them the same
JSON as bytes; its metadata names the hash of everything else.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from avalanche_peftcl.checkpoints.packing import pack, unpack
from avalanche_peftcl.errors import CheckpointError, CheckpointWarning, ConfigError
from avalanche_peftcl.files import check_writable, make_folder, part_of, replace_file

FORMAT = 1
_FILE = re.compile(r"([0-9]{6,15})\.(json|safetensors)")
_MARK = {"avalanche_peftcl": "checkpoint"}  # in the head of the tensors
_HEAD = b', "sha256": {"tensors": "'  # in the head of the JSON
_HEAD_BYTES = 65_536
_KEY = "avalanche_peftcl.checkpoints.folder"  # in the metadata of a single file: format and hash
_TREE = "tree"  # its tensor that holds the JSON; pack begins all names with a number
_STAMP = re.compile(f'"{re.escape(_KEY)}":"(\\d+) ([0-9a-f]{{64}})"'.encode())
_BLANK = b"0" * 64  # where the hash will stand, while it is computed


def write_checkpoint(folder: Path, state: Any, *, number: int, before: int | None = None) -> None:
    """Write ``state`` as checkpoint ``number`` and remove all but it and the one before.

    Args:
        folder: Where to; it is made if it is not there.
        state: What :func:`~avalanche_peftcl.checkpoints.packing.pack` can take apart.
        number: A free one, see :func:`next_number`.
        before: The one to fall back to; ``None`` takes the last one before ``number``.

    Raises:
        CheckpointError: If ``state`` holds what no checkpoint can.
        OSError: If it cannot be written; earlier checkpoints are as they were.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checkpoint(Path(folder), {"epoch": 3, "w": torch.ones(2)}, number=1)
        ...     read_checkpoint(Path(folder))
        (1, {'epoch': 3, 'w': tensor([1., 1.])})
    """
    tensors, tree = pack(state)
    content, body = _saved(tensors, _MARK), json.dumps(tree, allow_nan=False)
    hashes = json.dumps({"tensors": _sha256(content), "state": _sha256(body.encode())})
    document = f'{{"format": {FORMAT}, "sha256": {hashes}, "state": {body}}}\n'
    make_folder(folder)
    path = folder / f"{number:06d}.json"
    tensors_path = path.with_suffix(".safetensors")
    try:
        replace_file(tensors_path, content, durable=True)
        replace_file(path, document.encode(), durable=True)
    except BaseException:
        if not path.exists():  # without it the tensors count nothing, and take room
            with suppress(OSError):
                os.unlink(tensors_path)
        raise
    if before is None:
        before = max((n for n in _numbers(folder) if n < number), default=number)
    _remove(folder, {before, number})


def next_number(folder: Path) -> int:
    """Return the first number of a checkpoint that follows whatever is in ``folder``."""
    with suppress(FileNotFoundError):
        found = (_FILE.fullmatch(name) for name in os.listdir(folder))
        return 1 + max((int(m[1]) for m in found if m), default=0)
    return 1


def read_checkpoint(folder: Path, *, device: str | torch.device = "cpu") -> tuple[int, Any] | None:
    """Read the newest checkpoint; if it is damaged, the one before, with a warning.

    Args:
        folder: Where :func:`write_checkpoint` wrote to.
        device: Where tensors go that were not on the CPU.

    Returns:
        Number and state; ``None`` if there is no checkpoint.

    Raises:
        CheckpointError: If there are checkpoints and none can be read; the message names the files.
    """
    problems: list[str] = []
    for number in sorted(_numbers(folder), reverse=True):
        try:
            state = _read(folder, number, device)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(
                f"{'; '.join(problems)}; going on from the checkpoint before it, {number:06d}",
                CheckpointWarning,
                stacklevel=2,
            )
        return number, state
    if problems:
        raise CheckpointError("; ".join(problems))
    return None


def write_state(path: Path, state: Any) -> None:
    """Write ``state`` to a file of its own, in one step.

    Args:
        path: The file; an earlier one is replaced.
        state: What :func:`~avalanche_peftcl.checkpoints.packing.pack` can take apart.

    Raises:
        CheckpointError: If ``state`` holds what no checkpoint can.
        ConfigError: If the file cannot be written; an earlier one is as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_state(Path(folder) / "a.safetensors", {"epoch": 3, "w": torch.ones(2)})
        ...     read_state(Path(folder) / "a.safetensors")
        {'epoch': 3, 'w': tensor([1., 1.])}
    """
    check_writable(path)
    tensors, tree = pack(state)
    body = json.dumps(tree, allow_nan=False).encode()
    tensors[_TREE] = torch.frombuffer(bytearray(body), dtype=torch.uint8)
    content = _saved(tensors, {_KEY: f"{FORMAT} {_BLANK.decode()}"})
    content = content.replace(_BLANK, _sha256(content).encode(), 1)  # the header comes first
    try:
        replace_file(path, content, durable=True)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


def read_state(path: Path, *, device: str | torch.device = "cpu") -> Any:
    """Read what :func:`write_state` wrote.

    Args:
        path: The file.
        device: Where tensors go that were not on the CPU.

    Raises:
        CheckpointError: If it cannot be read, is another file, of another format or damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    end = 8 + int.from_bytes(content[:8], "little")  # of the header of safetensors
    stamp = _STAMP.search(content, 0, min(end, len(content)))
    if stamp is None:
        raise CheckpointError(
            f"{path} is no checkpoint, or cut off: its {len(content)} bytes do not begin as those "
            "that save_checkpoint writes"
        )
    if (found := int(stamp[1])) != FORMAT:
        raise CheckpointError(
            f"the checkpoint {path} is of format {found}, this version reads format {FORMAT}"
        )
    try:
        first, last = stamp.span(2)
        if _sha256(content[:first] + _BLANK + content[last:]) != stamp[2].decode():
            raise ValueError(f"it is not what was written ({len(content)} bytes)")
        tensors = load(content)
        tree = json.loads(tensors.pop(_TREE).numpy().tobytes())
        return unpack(tensors, tree, device=device)
    except (ValueError, LookupError, RecursionError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error}") from error


def clear_checkpoints(folder: Path) -> None:
    """Remove the checkpoints in ``folder``, and the folder if nothing else is in it."""
    _remove(folder, [])
    with suppress(OSError):
        folder.rmdir()


def _read(folder: Path, number: int, device: str | torch.device) -> Any:
    path = folder / f"{number:06d}.json"
    try:
        document = json.loads(path.read_bytes())
        found, hashes, tree = document["format"], document["sha256"], document["state"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error}") from error
    if found != FORMAT:
        raise CheckpointError(
            f"the checkpoint {path} is of format {found}, this version reads format {FORMAT}"
        )
    content_path = path.with_suffix(".safetensors")
    try:
        content = content_path.read_bytes()
        parts = {path: json.dumps(tree).encode(), content_path: content}
        for part, wanted in zip(parts, (hashes["state"], hashes["tensors"]), strict=True):
            if _sha256(parts[part]) != wanted:
                raise ValueError(f"{part.name} is not what was written ({len(parts[part])} bytes)")
        return unpack(load(content), tree, device=device)
    except (OSError, ValueError, LookupError, TypeError, SafetensorError, CheckpointError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: {error}") from error


def _saved(tensors: dict[str, torch.Tensor], told: dict[str, str]) -> bytes:
    try:
        return save(tensors, told)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"safetensors refuses the state: {error}") from error


def strangers(folder: Path, *, damaged_too: bool = True) -> list[str]:
    """Return the names of what is in ``folder`` and no checkpoint of ours.

    Args:
        folder: Where checkpoints are, or none.
        damaged_too: Name every file whose head :func:`write_checkpoint` did not write. Otherwise
            only links and folders that are named as a checkpoint's file.
    """
    with suppress(FileNotFoundError):
        names = sorted(os.listdir(folder))
        if damaged_too:
            return [name for name in names if not _is_ours(folder / name)]
        return [name for name in names if _FILE.fullmatch(name) and not _is_plain(folder / name)]
    return []


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_ours(path: Path) -> bool:
    """Whether :func:`write_checkpoint` wrote a file, or was killed while it did."""
    found = _FILE.fullmatch(part_of(path.name) or path.name)
    if found is None or not _is_plain(path):
        return False
    if part_of(path.name) is not None:
        return True
    with suppress(OSError), path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not head:  # damaged; nothing is lost by it
            return True
        if found[2] == "json":
            return head.startswith(b'{"format": ') and _HEAD in head[:64]
        mark = json.dumps(_MARK, separators=(",", ":")).encode()
        return mark in head or _is_ours(path.with_suffix(".json"))
    return False


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of the checkpoints whose second file is there."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = ((_FILE.fullmatch(path.name), path) for path in folder.iterdir())
        return [int(m[1]) for m, path in found if m and m[2] == "json" and _is_plain(path)]
    return []


def _remove(folder: Path, kept: Iterable[int]) -> None:
    """Remove all our files but the checkpoints ``kept``; what cannot be removed stays."""
    names = {f"{number:06d}{end}" for number in kept for end in (".json", ".safetensors")}
    with suppress(FileNotFoundError, NotADirectoryError):
        ours = [path for path in sorted(folder.iterdir()) if _is_ours(path)]
        for path in ours:  # the JSON first: without it the rest counts nothing
            if path.name not in names:
                with suppress(OSError):
                    os.unlink(path)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
