"""Runs forked from one process that has imported what they need, on Linux.

Importing torch and Avalanche takes a processor as long as a small run; a fork has them at once.
:class:`ForkServer` is our side. The other is :func:`serve`, in a process of its own: it holds no
images, has begun no threads that compute and has not touched a GPU, so that it can be forked, which
cannot be said of the process that asks for a sweep (a notebook, say).

The two talk through a pair of sockets, a packet of JSON each time. An order ``{run, words, env}``
comes with the open log of the run; ``{run, signal}`` is passed on. The answers are ``{ready}`` and
``{run, code}``. However our process ends, the system closes its socket, and the server ends its
runs; however the server ends, the system closes a pipe that is every run's standard input.
"""

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy

_NEEDED = (  # by a run; a component's own come when it is built
    "avalanche_peftcl.cli",
    "avalanche_peftcl.registry.builtin",
    "avalanche_peftcl.runs.command",
    "avalanche_peftcl.sweeps.command",
)
_PACKET = 1 << 16  # bytes; words and environment are a few hundred
_PATIENCE = 5.0  # seconds that a run told to stop has for it
_SERVER = (
    "from avalanche_peftcl.sweeps.fork_server import serve; serve(); "
    "from avalanche_peftcl.cli import main; main()"
)


class ServerEndedError(Exception):
    """The server has ended before the run did.

    Attributes:
        code: Exit status of the server, negative for a signal.
        said: File with what it said.
    """

    def __init__(self, code: int, said: Path) -> None:
        super().__init__(f"the fork server ended with {code}")
        self.code, self.said = code, said


class Forked:
    """A run that a server forks, with what a sweep asks of a :class:`subprocess.Popen`.

    Args:
        server: The server.
        number: Which of its runs.
    """

    def __init__(self, server: "ForkServer", number: int) -> None:
        self._server, self._number = server, number
        self._over = threading.Event()
        self._code: int | None = None

    def end(self, code: int | None) -> None:
        """Learn that it has ended; ``None`` if the server has, and nobody knows more."""
        self._code = code
        self._over.set()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, negative for a signal, once there is one.

        Raises:
            TimeoutExpired: If there is none yet.
            ServerEndedError: If there will be none.
        """
        if not self._over.wait(timeout):
            raise subprocess.TimeoutExpired("a forked run", timeout or 0.0)
        if self._code is None:
            raise self._server.ended
        return self._code

    def terminate(self) -> None:
        """Ask it to end, if it has not ended."""
        self._server.signal(self._number, signal.SIGTERM)

    def kill(self) -> None:
        """End it, if it has not ended."""
        self._server.signal(self._number, signal.SIGKILL)


class ForkServer:
    """A process that imports what runs need, and then forks them.

    Args:
        env: Its environment, of which threads of OpenMP and of BLAS are read when it begins.
        said: File for what it says itself, which nobody reads unless it fails.
    """

    def __init__(self, env: Mapping[str, str], said: Path) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._said, self._lock, self._ready = said, threading.Lock(), False
        self._open: dict[int, Forked] = {}
        self._count = 0
        with theirs, said.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _SERVER, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # an interrupt reaches us alone
            )
        threading.Thread(target=self._listen, daemon=True, name="fork_server").start()

    @property
    def ended(self) -> ServerEndedError:
        """How the server ended, once it has."""
        return ServerEndedError(self._process.wait(), self._said)

    def fork(self, words: Sequence[str], log: BinaryIO, env: Mapping[str, str]) -> Forked | None:
        """Begin a run, as soon as everything is imported.

        Args:
            words: Of the command line.
            log: Where it writes.
            env: What its environment has beyond the server's.

        Returns:
            The run; ``None`` if the server has ended.
        """
        with self._lock:
            order = {"run": self._count, "words": list(words), "env": dict(env)}
            run = self._open[self._count] = Forked(self, self._count)
            self._count += 1
        try:
            socket.send_fds(self._channel, [json.dumps(order).encode()], [log.fileno()])
        except OSError:
            return None
        return run

    def signal(self, number: int, what: int) -> None:
        """Send a signal to a run, if it has not ended."""
        if number not in self._open:
            return
        if not self._ready:  # nobody is forked yet, and nobody listens
            self._process.kill()
        with suppress(OSError):
            self._channel.send(json.dumps({"run": number, "signal": what}).encode())

    def stop(self) -> None:
        """End the server, and whatever still runs."""
        if not self._ready:
            self._process.kill()
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(2 * _PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()  # does nothing to one that has ended
            self._process.wait()

    def _listen(self) -> None:
        for told in _packets(self._channel):
            if "ready" in told:
                self._ready = True
            else:
                self._open.pop(told["run"]).end(told["code"])
        self._process.wait()
        self._channel.close()
        with self._lock:
            for run in self._open.values():
                run.end(None)


def _packets(channel: socket.socket) -> Iterator[dict[str, Any]]:
    """Yield what the other side says until it ends."""
    with suppress(OSError):
        while packet := channel.recv(_PACKET):
            yield json.loads(packet)


# --- the server ----------------------------------------------------------------------------------


def serve() -> None:
    """Fork what the socket whose number is ``sys.argv[1]`` orders, until that ends.

    Returns in the forks alone, which have a command line then; each ends as any program does.
    """
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        words = _Server(channel).work()
    if words is None:
        os._exit(0)  # there is nothing to put in order
    sys.argv[1:] = words
    from avalanche_peftcl.runs.signals import end_with_parent

    end_with_parent()


class _Server:
    """The runs of this process.

    Args:
        channel: Whoever orders them.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._runs: dict[int, int] = {}  # by process
        self._life = os.pipe()  # closed by the system when this process ends, however it does
        self._bell, self._clapper = socket.socketpair()  # rung when a run ends
        self._bell.setblocking(False)
        self._clapper.setblocking(False)

    def work(self) -> list[str] | None:
        """Return ``None`` when nobody orders any more; in a run, the words of its command line."""
        for name in _NEEDED:
            with suppress(Exception):  # a run finds the same, and tells it in its log
                importlib.import_module(name)
        gc.collect()
        gc.freeze()  # what is there stays where it is, in memory that the runs share
        before = signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._clapper.fileno())
        self._tell(ready=True)
        while True:
            ready, _, _ = select.select([self._channel, self._bell], [], [])
            self._bury()
            if self._channel not in ready:
                continue
            packet, logs, _, _ = socket.recv_fds(self._channel, _PACKET, 1)
            if not packet:
                break
            order = json.loads(packet)
            if "signal" in order:
                self._send(order["signal"], only=order["run"])
                continue
            try:
                process = os.fork()
            except OSError as error:  # the others go on
                os.write(logs[0], f"error: no process can be had for the run: {error}\n".encode())
                os.close(logs[0])
                self._tell(run=order["run"], code=1)
                continue
            if process == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, before)
                self._become(logs[0], order["env"])
                return list(order["words"])
            self._runs[process] = order["run"]
            os.close(logs[0])
        self._end()
        return None

    def _become(self, log: int, env: Mapping[str, str]) -> None:
        """Give a fork what a process of its own would have."""
        os.setsid()
        for number, standard in (self._life[0], 0), (log, 1), (log, 2):
            os.dup2(number, standard)
        for number in (*self._life, log):
            os.close(number)
        for end in self._bell, self._clapper:
            end.close()
        atexit.register(gc.unfreeze)  # what is frozen is not taken down at the end
        os.environ.update(env)
        numpy.random.seed()  # not those of its siblings; Python's do so themselves

    def _end(self) -> None:
        """End every run: in order, if it has the time."""
        last = time.monotonic() + _PATIENCE
        self._send(signal.SIGTERM)
        while self._runs and (left := last - time.monotonic()) > 0:
            select.select([self._bell], [], [], left)
            self._bury()
        self._send(signal.SIGKILL)

    def _send(self, what: int, only: int | None = None) -> None:
        for process, run in self._runs.items():  # none of them is buried: the number is its own
            if only in (None, run):
                os.kill(process, what)

    def _bury(self) -> None:
        """Tell which runs have ended."""
        with suppress(BlockingIOError):
            while self._bell.recv(4096):
                pass
        for process in list(self._runs):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                run = self._runs.pop(process)
                self._tell(run=run, code=os.waitstatus_to_exitcode(status))

    def _tell(self, **answer: Any) -> None:
        with suppress(OSError):  # nobody may be there any more; that is read next
            self._channel.send(json.dumps(answer).encode())
