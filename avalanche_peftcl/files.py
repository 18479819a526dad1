"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from avalanche_peftcl.errors import ConfigError


def check_writable(path: Path) -> None:
    """Refuse early what :func:`replace_file` would refuse after the work.

    Raises:
        ConfigError: If ``path`` is a folder, or its own folder is not there or not writable.

    Example:
        >>> check_writable(Path("no") / "such" / "a.csv")
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: cannot write no/such/a.csv: there is no folder no/such
    """
    folder = path.parent
    if path.is_dir():
        raise ConfigError(f"cannot write {path}: it is a folder; name a file")
    if not folder.is_dir():
        raise ConfigError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"cannot write {path}: no right to write to {folder}")


def replace_file(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write ``path`` in one step: whoever looks finds the old content or the new.

    Args:
        path: The file.
        content: What it holds from then on.
        durable: Wait until it is on the disk, where a loss of power leaves it.

    Raises:
        OSError: If it cannot be written; the old content is still there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     replace_file(Path(folder) / "a.txt", b"new")
        ...     [path.name for path in Path(folder).iterdir()]
        ['a.txt']
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if durable:
        with suppress(OSError):  # not every system opens folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def write_file(path: Path, content: bytes, *, parents: bool = False) -> None:
    """Write what a user asked for, in one step.

    Args:
        path: The file.
        content: What it holds from then on.
        parents: Make its folder if it is not there.

    Raises:
        ConfigError: If it cannot be written; what was there stays.
    """
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Let no other process write a run into ``folder``; however this one ends, it lets go.

    Does nothing where the system or the file system has no locks.

    Raises:
        ConfigError: If another process holds it.
    """
    try:
        import fcntl  # not on Windows
    except ImportError:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            # lockf, not flock: processes that load images must not inherit it and outlive a kill
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise ConfigError(
                f"another process is running in {folder}; wait until it ends, or end it first"
            ) from error
        except OSError:
            pass
        yield
