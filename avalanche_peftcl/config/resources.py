"""What a machine may have too little of: memory, open files, processes; said with the way out."""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from avalanche_peftcl.errors import ConfigError, PEFTCLError, ResourceError
from avalanche_peftcl.registry.wording import clip, say

try:
    import resource
except ImportError:  # no such limits on this system
    resource = None  # type: ignore[assignment] # what mypy knows of the module

_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|not enough memory|"
    r"CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)
_WORKER = re.compile(r"DataLoader worker \(pid.*(is killed|exited unexpectedly)", re.DOTALL)
_SHARED = re.compile(r"unable to (open|mmap|write to|allocate) .*(shared memory|/torch_)|Bus error")
_FILES = re.compile(r"Too many open files|received 0 items of ancdata")
_THREADS = re.compile(r"can't start new thread|Resource temporarily unavailable")
_NUMBERS = {
    errno.ENOMEM: "memory",
    errno.EMFILE: "open files",
    errno.ENFILE: "open files",
    errno.EAGAIN: "processes or threads",
}


def shortage(error: BaseException) -> str | None:
    """Return what there is too little of, or ``None`` if ``error`` tells of something else.

    Example:
        >>> shortage(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        'memory'
        >>> shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
        True
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "memory"
    if isinstance(error, OSError):
        return _NUMBERS.get(error.errno or 0)
    if not isinstance(error, RuntimeError):
        return None
    text = str(error)
    for words, what in (
        (_FILES, "open files"),
        (_SHARED, "shared memory"),
        (_WORKER, "loader"),
        (_MEMORY, "memory"),
        (_THREADS, "processes or threads"),
    ):
        if words.search(text):
            return what
    return None


@contextmanager
def plain_resource_errors(settings: Mapping[str, Any]) -> Iterator[None]:
    """Turn whatever tells of too little of something into a :class:`ResourceError`.

    Args:
        settings: The settings of the run, whose sizes the message names.

    Raises:
        ResourceError: What there is too little of, and what to change.
    """
    try:
        yield
    except (PEFTCLError, MemoryError, OSError, RuntimeError) as error:
        # a builder's error has become one of ours already
        what = shortage(error.__cause__ or error if isinstance(error, ConfigError) else error)
        if what is None or isinstance(error, ResourceError):
            raise
        said = clip(say(error).partition(" Original Traceback")[0], 300)
        head = (
            "a process that loads images was killed" if what == "loader" else f"too little {what}"
        )
        raise ResourceError(f"{head} ({said}); {ways_out(what, settings)}") from error


def ways_out(what: str, settings: Mapping[str, Any]) -> str:
    """Return which settings need less of what there is too little of.

    Example:
        >>> ways_out("memory", {"strategy": {"train_mb_size": 64}})
        'lower strategy.train_mb_size (64), or end other programs that hold memory'
    """
    workers = settings.get("num_workers") or 0
    if what in ("loader", "shared memory", "open files", "processes or threads"):
        ways = (
            [f"load images in the main process, num_workers=0 (now {workers})"] if workers else []
        )
        ways += {
            "loader": ["see that there is memory for each, /dev/shm included"],
            "shared memory": ["give /dev/shm more room (docker: --shm-size)"],
            "open files": ["allow more (ulimit -n 4096)"],
        }.get(what, ["allow more (ulimit -u)"])
        return ", or ".join(ways)
    lower, other = [], []
    for kind, option in (
        ("strategy", "train_mb_size"),
        ("strategy", "eval_mb_size"),
        ("backbone", "img_size"),
        ("plugins", "mem_size"),
    ):
        parts = settings.get(kind) or {}
        for index, part in enumerate(parts if isinstance(parts, list) else [parts]):
            if (value := part.get(option)) is not None:
                place = f"{kind}.{index}" if isinstance(parts, list) else kind
                lower.append(f"{place}.{option} ({value})")
    strategy = settings.get("strategy") or {}
    if strategy.get("accumulation_steps") is not None and lower:
        steps = strategy["accumulation_steps"]
        other.append(f"raise strategy.accumulation_steps ({steps}) to see as many images an update")
    on_gpu = not str(settings.get("device", "cpu")).startswith(("cpu", "auto"))
    if on_gpu and strategy.get("mixed_precision") not in (None, "bf16", "fp16"):
        other.append("choose strategy.mixed_precision=bf16")
    if workers:
        lower.append(f"num_workers ({workers})")
    other.append("end other programs that hold memory")
    return ", or ".join([f"lower {' or '.join(lower)}", *other] if lower else other)


def check_open_files(num_workers: int) -> None:
    """Refuse loader processes for which there are too few open files; torch would wait for ever.

    A loader has two pipes for each process and one for the results, and each tensor of the
    minibatches that wait is an open file: three tensors, two minibatches a process.

    Raises:
        ConfigError: With the limit and what is needed.
    """
    if num_workers == 0 or resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return
    needed = _open_files() + 16 + 9 * num_workers
    if needed > limit:
        raise ConfigError(
            f"num_workers={num_workers} needs about {needed} open files, and this process may open "
            f"{limit}; allow more (ulimit -n 4096) or set num_workers=0"
        )


def _open_files() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return 16


def check_processors(num_threads: int | None, num_workers: int) -> None:
    """Refuse more threads or processes than a machine like this starts.

    The results of a run depend on their number, so that some more than there are processors are
    allowed: a run of a larger machine can be repeated.

    Raises:
        ConfigError: With the number of processors.
    """
    processors = os.cpu_count() or 1
    most = max(64, 4 * processors)
    for name, number in (("num_threads", num_threads or 0), ("num_workers", num_workers)):
        if number > most:
            raise ConfigError(
                f"{name}={number} is more than {most}, four times the {processors} processors of "
                f"this machine or 64, whichever is more; choose fewer, such as {name}={processors}"
            )


def check_home() -> None:
    """Refuse a home folder in which Avalanche, which makes a file there when imported, cannot.

    Raises:
        ConfigError: With the environment variable to set, or the file that is damaged.
    """
    folder = os.path.expanduser("~/.avalanche")
    file = os.path.join(folder, "config.json")
    try:
        if os.path.exists(file):
            with open(file, encoding="utf-8") as opened:
                json.load(opened)["dataset_location"]
            return
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "no right to write there")
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"Avalanche's settings {file} are damaged ({say(error)}); delete that file, Avalanche "
            "makes it anew"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"Avalanche keeps its settings in {folder}, where it cannot ({error.strerror}); set "
            "the environment variable HOME to a folder that can be written, such as HOME=/tmp"
        ) from error
