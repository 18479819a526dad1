"""Processes of runs that are stopped together, however each of them was begun."""

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from avalanche_peftcl.sweeps.fork_server import ForkServer, ServerEndedError

_PATIENCE = 5.0  # seconds that a process told to stop has for it
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


class Children:
    """Processes that can be stopped all at once, and none started from then on.

    Args:
        forks: Folder for what fork servers say, if runs are to be forked; otherwise each imports
            what it needs.
    """

    def __init__(self, forks: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._running: list[Child] = []
        self._servers: dict[frozenset[tuple[str, str]], ForkServer] = {}
        self._begun: list[ForkServer] = []
        self._forks, self._stopped = forks, False

    def start(
        self, words: Sequence[str], log: BinaryIO, env: Mapping[str, str], own: Mapping[str, str]
    ) -> Child | None:
        """Begin ``peftcl``.

        Args:
            words: Of the command line.
            log: Where it writes.
            env: Its environment.
            own: What only this one has in it beyond that.

        Returns:
            The process; ``None`` if they have been stopped.
        """
        with self._lock:
            if self._stopped:
                return None
            child: Child
            if self._forks is None:
                child = _begin(words, log, {**env, **own})
            else:
                child = self._fork(words, log, env, own)
            self._running.append(child)
        return child

    def _fork(
        self, words: Sequence[str], log: BinaryIO, env: Mapping[str, str], own: Mapping[str, str]
    ) -> Child:
        key, child = frozenset(env.items()), None
        if key in self._servers:
            child = self._servers[key].fork(words, log, own)
        if child is None and self._forks is not None:  # the first, or the last one has ended
            server = ForkServer(env, self._forks / f"server{len(self._begun)}.log")
            self._begun.append(server)
            self._servers[key] = server
            child = server.fork(words, log, own)
        return _begin(words, log, {**env, **own}) if child is None else child

    def stop(self) -> None:
        """End all; those that do not hear of it in seconds are killed."""
        with self._lock:
            self._stopped = True
        try:
            for child in self._running:
                child.terminate()
            for child in self._running:
                with suppress(subprocess.TimeoutExpired, ServerEndedError):
                    child.wait(_PATIENCE)
        finally:  # a second interrupt ends the patience and leaves nobody behind
            for child in self._running:
                child.kill()
            for server in self._begun:
                server.stop()
            for child in self._running:
                with suppress(ServerEndedError):
                    child.wait()


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
