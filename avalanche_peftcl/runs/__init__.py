"""One run, from a configuration to its record; none of it is imported before it is asked for."""

from importlib import import_module
from typing import Any

__all__ = ["Record", "RunProgress", "RunResult", "load_run", "read_record", "run_from_file"]

_HOMES = {
    "Record": "schema",
    "RunProgress": "progress",
    "RunResult": "result",
    "load_run": "result",
    "read_record": "reading",
    "run_from_file": "command",
}


def __getattr__(name: str) -> Any:
    """Import what is heavy when it is first asked for; Avalanche takes seconds to import."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
