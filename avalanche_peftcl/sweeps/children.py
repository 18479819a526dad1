"""Processes of runs that are stopped together, however each of them was begun."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, Protocol

from avalanche_peftcl.sweeps.fork_server import ForkServer, ServerEndedError

_PATIENCE = 5.0  # seconds that a process told to stop has for it
_OURS = "AVALANCHE_PEFTCL_"  # what begins so in the environment is read when it is needed
_CHILD = (
    "from avalanche_peftcl.runs.signals import end_with_parent; end_with_parent(); "
    "from avalanche_peftcl.cli import main; main()"
)


class Child(Protocol):
    """What is asked of the process of a run; ``Popen`` is one."""

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status, negative for a signal."""

    def terminate(self) -> None:
        """Ask it to end, if it has not ended."""

    def kill(self) -> None:
        """End it, if it has not ended."""


class ForkServers:
    """Fork servers, one for each environment that is read when a process begins.

    Args:
        folder: For what they say.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last: dict[frozenset[tuple[str, str]], ForkServer] = {}
        self._begun: list[ForkServer] = []

    def fork(self, words: Sequence[str], log: BinaryIO, env: Mapping[str, str]) -> Child:
        """Begin a run, see :meth:`Children.start`."""
        own = {key: value for key, value in env.items() if key.startswith(_OURS)}
        base = {key: value for key, value in env.items() if key not in own}
        key, child = frozenset(base.items()), None
        if key in self._last:
            child = self._last[key].fork(words, log, own)
        if child is None:  # the first, or the last one has ended
            self._last[key] = ForkServer(base, self._folder / f"{len(self._begun)}.log")
            self._begun.append(self._last[key])
            child = self._last[key].fork(words, log, own)
        return _begin(words, log, env) if child is None else child

    def stop(self) -> None:
        """End them all, and what still runs."""
        for server in self._begun:
            server.stop()


_shared: ContextVar[ForkServers | None] = ContextVar("fork_servers", default=None)


@contextmanager
def shared_servers() -> Iterator[None]:
    """Keep fork servers from one call of :func:`.run_processes` to the next."""
    if _shared.get() is not None:
        yield
        return
    with own_servers() as servers:
        token = _shared.set(servers)
        try:
            yield
        finally:
            _shared.reset(token)


@contextmanager
def own_servers() -> Iterator[ForkServers]:
    """Hand out the shared servers, or such as end here."""
    if (shared := _shared.get()) is not None:
        yield shared
        return
    with TemporaryDirectory(prefix="peftcl-") as folder:
        servers = ForkServers(Path(folder))
        try:
            yield servers
        finally:
            servers.stop()


class Children:
    """Processes that can be stopped all at once, and none started from then on.

    Args:
        servers: Who forks them; ``None``: each imports what it needs.
    """

    def __init__(self, servers: ForkServers | None = None) -> None:
        self._lock = threading.Lock()
        self._running: list[Child] = []
        self._servers, self._stopped = servers, False

    def start(self, words: Sequence[str], log: BinaryIO, env: Mapping[str, str]) -> Child | None:
        """Begin ``peftcl``.

        Args:
            words: Of the command line.
            log: Where it writes.
            env: Its environment.

        Returns:
            The process; ``None`` if they have been stopped.
        """
        begin = _begin if self._servers is None else self._servers.fork
        with self._lock:
            if self._stopped:
                return None
            child = begin(words, log, env)
            self._running.append(child)
        return child

    def stop(self) -> None:
        """End all; those that do not hear of it in seconds are killed."""
        with self._lock:
            self._stopped = True
        try:
            for child in self._running:
                child.terminate()
            for child in self._running:
                _await(child)
        finally:  # a second interrupt ends the patience and leaves nobody behind
            for child in self._running:
                child.kill()
            for child in self._running:
                _await(child)


def _await(child: Child) -> None:
    with suppress(subprocess.TimeoutExpired, ServerEndedError):
        child.wait(_PATIENCE)


def command(words: Sequence[str]) -> list[str]:
    """Return the command of a process that ends with this one."""
    return [sys.executable, "-P", "-c", _CHILD, *words]


def _begin(words: Sequence[str], log: BinaryIO, env: Mapping[str, str]) -> Child:
    return subprocess.Popen(
        command(words),
        stdin=subprocess.PIPE,  # its end tells the child of ours
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,  # an interrupt reaches us alone, and we stop the children
    )
