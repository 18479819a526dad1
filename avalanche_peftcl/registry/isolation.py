"""Run code of others: whatever it raises is an error of theirs, unless a signal raised it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ForeignError(Exception):
    """Foreign code raised something: ``error``, of any kind.

    Args:
        error: What was raised.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def isolated() -> Iterator[None]:
    """Raise a :class:`ForeignError` for whatever is raised inside, be it no ``Exception`` even.

    What the handler of a signal raised is not foreign: a Ctrl-C stops the program, also where the
    code inside catches it. That tells it apart from a ``raise KeyboardInterrupt``.

    Raises:
        ForeignError: With the error.

    Example:
        >>> try:
        ...     with isolated():
        ...         raise SystemExit(3)
        ... except ForeignError as caught:
        ...     print(repr(caught.error))
        SystemExit(3)
    """
    with _watched() as raised:
        try:
            yield
        except BaseException as error:
            if not raised:
                raise ForeignError(error) from error
        if raised:
            raise raised[0]


@contextmanager
def _watched() -> Iterator[list[BaseException]]:
    """Note what the handlers of signals raise; only the main thread runs any."""
    raised: list[BaseException] = []
    watched: dict[signal.Signals, tuple[Any, Any]] = {}

    def watch(handler: Any) -> Any:
        def noting(number: int, frame: Any) -> Any:
            try:
                return handler(number, frame)
            except BaseException as error:
                raised.append(error)
                raise

        return noting

    if threading.current_thread() is threading.main_thread():
        for number in signal.valid_signals():
            if callable(handler := signal.getsignal(number)):
                watched[number] = handler, watch(handler)
                signal.signal(number, watched[number][1])
    try:
        yield raised
    finally:
        for number, (handler, noting) in watched.items():
            if signal.getsignal(number) is noting:  # the code inside may have set its own
                signal.signal(number, handler)
