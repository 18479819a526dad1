"""Files that are written whole or not at all, and never through a link."""

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from avalanche_peftcl.errors import ConfigError

LOCK = ".lock"
# what replace_file leaves behind if the process is killed while it writes
_PART = re.compile(r"\.(.{1,40})\.[0-9a-f]{16}\.part", re.DOTALL)
# of the system that has them: follow no link, do not wait at a pipe
_PLAIN = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
_mine: set[tuple[int, int]] = set()  # files that this process holds


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
    part = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.part")
    number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN, 0o666)
    try:
        try:
            _write(number, content)
            if durable:
                os.fsync(number)
        finally:
            os.close(number)
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise
    if durable:
        with suppress(OSError):  # not every system opens folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def part_of(name: str) -> str | None:
    """Return what file :func:`replace_file` was writing (up to 40 characters) when it was killed.

    Example:
        >>> part_of(".a.txt.0123456789abcdef.part"), part_of("a.txt")
        ('a.txt', None)
    """
    found = _PART.fullmatch(name)
    return found and found[1]


def append_to_file(path: Path, content: bytes, *, at: int) -> None:
    """Write at the end of a file, and wait until it is on the disk.

    Args:
        path: The file, there already.
        content: What is added.
        at: Bytes of it that count; what lies behind them is cut off.

    Raises:
        OSError: If it cannot be written, is shorter, or is a link, one name of several, or no file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.txt"
        ...     path.write_bytes(b"one, tw")
        ...     append_to_file(path, b"two", at=5)
        ...     path.read_bytes()
        7
        b'one, two'
    """
    number = os.open(path, os.O_WRONLY | _PLAIN)
    try:
        there = os.fstat(number)
        if not stat.S_ISREG(there.st_mode) or there.st_nlink != 1 or there.st_size < at:
            raise OSError(errno.EINVAL, "it is not the file that was written")
        os.ftruncate(number, at)
        os.lseek(number, at, os.SEEK_SET)
        _write(number, content)
        os.fsync(number)
    finally:
        os.close(number)


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


def make_folder(folder: Path) -> None:
    """Make a folder in a run's folder; a link in its place is not followed.

    Raises:
        OSError: If it cannot be made or is a link.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if folder.is_symlink():
        raise NotADirectoryError(errno.ENOTDIR, "it is a link, which is not followed", str(folder))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Let nobody else write a run into ``folder``; however this process ends, it lets go.

    Does nothing where the system or the file system has no locks.

    Raises:
        ConfigError: If another process or thread holds it, or its lock cannot be opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = _open(folder / LOCK)
    try:
        with _locked(number, folder):
            yield
    finally:
        os.close(number)


@contextmanager
def held_log(path: Path, *, anew: bool = False) -> Iterator[BinaryIO]:
    """Open a log to write at its end; nobody else opens it so until this process lets go.

    Args:
        path: The log. What is in it stays, and its folder is made if it is not there.
        anew: Empty it first.

    Raises:
        ConfigError: If another process or thread holds it, or it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_not_mine(path)
    with suppress(OSError):
        if path.is_file() and not path.is_symlink() and path.lstat().st_nlink > 1:
            replace_file(path, path.read_bytes())  # under its other name it stays as it is
    number = _open(path)
    with os.fdopen(number, "ab") as log, _locked(number, path.parent):
        if anew:
            os.ftruncate(number, 0)
        log.seek(0, os.SEEK_END)
        yield log


def _open(path: Path) -> int:
    """Open a file of our own, made if it is not there; whatever else lies there is refused."""
    _check_not_mine(path)
    try:
        number = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _PLAIN, 0o666)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise OSError(errno.EINVAL, "it is no file")
    except OSError as error:
        why = "it is a link, which is not followed" if path.is_symlink() else error.strerror
        raise ConfigError(f"cannot write {path}: {why or error}") from error
    return number


@contextmanager
def _locked(number: int, folder: Path) -> Iterator[None]:
    """Hold an open file, so that nobody else can until this process lets go or ends."""
    if not _lock(number):
        raise _busy(folder)
    status = os.fstat(number)
    file = status.st_dev, status.st_ino
    _mine.add(file)
    try:
        yield
    finally:
        _mine.discard(file)


def _check_not_mine(path: Path) -> None:
    """Refuse a file that this process holds: locks do not, and closing it again would let go."""
    with suppress(OSError):
        status = path.lstat()
        if (status.st_dev, status.st_ino) in _mine:
            raise _busy(path.parent)


def _busy(folder: Path) -> ConfigError:
    return ConfigError(
        f"another process is running in {folder}; wait until it ends, or end it first"
    )


def _lock(number: int) -> bool:
    """Lock an open file; ``False`` if another process has, ``True`` also where there are none."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        return True
    try:
        # lockf, not flock: processes that load images must not inherit it and outlive a kill
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def _write(number: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(number, rest) :]
