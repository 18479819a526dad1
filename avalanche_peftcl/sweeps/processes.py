"""The runs of a sweep on this machine: one process each, so that none can break another."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import BinaryIO

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.errors import PEFTCLError
from avalanche_peftcl.files import held_log
from avalanche_peftcl.runs.bar_file import BAR, Bar, read_bar
from avalanche_peftcl.runs.folder import LOG, listed_files
from avalanche_peftcl.sweeps.children import Child, Children, own_servers
from avalanche_peftcl.sweeps.fork_server import ServerEndedError
from avalanche_peftcl.sweeps.watch import Tail

_LOOK = 0.3  # seconds between two looks at what a run does
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Task:
    """One run that is to be done; what is in its folder may be replaced.

    Args:
        config: The run.
        name: What it is called where a person looks.
        anew: Whether it begins at the start though there is a checkpoint.
    """

    config: RunConfig
    name: str
    anew: bool = False

    @property
    def log(self) -> Path:
        """Where the run says what it does."""
        return self.config.output / LOG


@dataclass(frozen=True, slots=True)
class Event:
    """A run has started, got on or ended.

    Args:
        task: Whose.
        ended: Whether it has ended.
        error: Why it ended without success.
        line: What its log says of an experience that is finished.
        bar: How far it is.
    """

    task: Task
    ended: bool = False
    error: str | None = None
    line: str | None = None
    bar: Bar | None = None

    @property
    def started(self) -> bool:
        """Whether it says that a run has started."""
        return not self.ended and self.line is None and self.bar is None


def run_processes(
    tasks: Sequence[Task], *, jobs: int, bars: bool = False
) -> Generator[Event, None, None]:
    """Run each task in a process of its own; closing the iterator stops them.

    Several are forked, where that can be, from one that has imported what they need.

    Args:
        tasks: The runs, started in this order.
        jobs: How many run at a time. Where it is more than one and neither the configuration nor
            the environment says how many threads a run has, the cores are shared out.
        bars: Whether to ask how far runs are.

    Yields:
        What happens, in the order in which it happens.
    """
    if not tasks:
        return
    events: SimpleQueue[Event] = SimpleQueue()

    def work(task: Task, path: Path) -> None:
        try:
            path.write_text(dump_settings(task.config.model_dump(mode="json")), encoding="utf-8")
            with opened_log(task.config, anew=task.anew) as log:
                begun, bar = log.tell(), path.with_suffix(".bar") if bars else None
                env = environment(task.config, jobs) | ({BAR: str(bar)} if bar else {})
                child = children.start(_words(task, path), log, env)
                if child is None:
                    return
                events.put(Event(task))
                code = _watched(child, task, events, Tail(task.log, begun), bar)
            error = None if code == 0 else last_words(task.log, code, begun)
        except ServerEndedError as ended:
            error = (
                f"the process that forks the runs has ended: {last_words(ended.said, ended.code)}"
            )
        except PEFTCLError as failure:
            error = str(failure)
        except Exception as failure:  # whatever it is, somebody waits for the end
            error = f"{type(failure).__name__}: {failure}"
        events.put(Event(task, ended=True, error=error))

    with (
        TemporaryDirectory(prefix="peftcl-") as folder,
        own_servers() if forked(tasks) else nullcontext() as servers,
    ):
        children = Children(servers)
        pool = ThreadPoolExecutor(min(jobs, len(tasks)))
        try:
            for number, task in enumerate(tasks):
                pool.submit(work, task, Path(folder) / f"{number}.yaml")
            running = len(tasks)
            while running:
                event = events.get()
                running -= event.ended
                yield event
        finally:
            children.stop()
            pool.shutdown(cancel_futures=True)


def forked(tasks: Sequence[Task]) -> bool:
    """Return whether runs are forked: several, on a system where that is safe."""
    return sys.platform == "linux" and len(tasks) > 1


def _watched(
    child: Child, task: Task, events: "SimpleQueue[Event]", tail: Tail, file: Path | None
) -> int:
    """Wait for the end of a run, tell meanwhile what it does, and return its exit status."""
    shown, code = None, None
    while code is None:
        with suppress(subprocess.TimeoutExpired):
            code = child.wait(_LOOK)
        for line in tail.lines():
            events.put(Event(task, line=line))
        bar = None if file is None else read_bar(file)
        if bar is not None and bar != shown:
            shown = bar
            events.put(Event(task, bar=bar))
    return code


@contextmanager
def opened_log(config: RunConfig, *, anew: bool) -> Iterator[BinaryIO]:
    """Open the log of a run to write at its end; no other sweep writes there meanwhile.

    What earlier attempts said stays, unless the run replaces an earlier one.

    Args:
        config: The run.
        anew: Whether it begins at the start.

    Raises:
        ConfigError: If another process has it open so, or it cannot be written.
    """
    replaces = anew and bool(listed_files(config.output))
    with held_log(config.output / LOG, anew=replaces) as log:
        if log.tell():
            log.write(f"--- again, {datetime.now(UTC).isoformat(timespec='seconds')}\n".encode())
            log.flush()
        yield log


def environment(config: RunConfig, jobs: int) -> dict[str, str]:
    """Return the environment of a run that shares the machine with ``jobs - 1`` others."""
    settings = {"PYTHONUNBUFFERED": "1"}
    if jobs > 1 and config.num_threads is None and not any(map(os.environ.get, _THREADS)):
        settings |= dict.fromkeys(_THREADS, str(max(1, cores() // jobs)))
    return os.environ | settings


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def last_words(log: Path, code: int, begun: int = 0) -> str:
    """Say why a run ended.

    Args:
        log: What it said.
        code: Its exit status, negative for a signal.
        begun: Bytes of the log that are of earlier attempts.
    """
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        memory = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"killed by {name}{memory}"
    text = log.read_bytes()[begun:].decode(errors="replace").strip()
    _, mark, message = f"\n{text}".rpartition("\nerror: ")
    if mark:
        return message
    return f"exit status {code}" + (f": {text.splitlines()[-1]}" if text else "")


def _words(task: Task, path: Path) -> list[str]:
    how = ["--overwrite"] if task.anew else ["--overwrite", "--resume", str(task.config.output)]
    return ["run", str(path), *how]
