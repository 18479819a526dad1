"""Ends that come from outside: a request to terminate, and the end of whoever started us."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGTERM", "SIGHUP")  # the second is not on Windows
_PATIENCE = 5.0  # seconds for an orphan to end in order


class Terminated(KeyboardInterrupt):
    """A request to terminate, raised where an interrupt would be.

    Attributes:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def termination_raised() -> Iterator[None]:
    """Let a request to terminate raise :class:`Terminated`, as an interrupt raises its error.

    Does nothing in a thread that is not the main one. A signal that is ignored stays ignored:
    who started us so (``nohup``) wants it.
    """
    heard = []
    if threading.current_thread() is threading.main_thread():
        kinds = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
        heard = [kind for kind in kinds if signal.getsignal(kind) != signal.SIG_IGN]
    earlier = {kind: signal.signal(kind, _raise) for kind in heard}
    try:
        yield
    finally:
        for kind, handler in earlier.items():
            signal.signal(kind, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


def how_to_stop() -> str | None:
    """Say how this process is stopped where an interrupt does not; else return ``None``.

    A shell starts the background jobs of a script with interrupts ignored, so that Ctrl-C reaches
    the script alone; Python and every process started from here keep to that.
    """
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        return None
    return (
        "interrupts are ignored, as in every background job of a script; kill "
        f"{os.getpid()} stops this one"
    )


def end_with_parent() -> None:
    """End this process in order when standard input ends, a pipe whose other end the parent holds.

    However the parent ends, the system closes that end.
    """

    def watch() -> None:
        try:
            while os.read(0, 4096):
                pass
        except OSError:
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_PATIENCE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="end_with_parent").start()
