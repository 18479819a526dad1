"""The record of a run, as it lies in ``metrics.json``; no torch."""

import json
from pathlib import Path
from typing import Any

RECORD = "metrics.json"


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Return the content of a record's ``metrics.json``; ``None`` if there is none to read."""
    path = folder / RECORD
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        metrics = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return metrics if isinstance(metrics, dict) else None


def is_record(metrics: Any) -> bool:
    """Whether the content of a ``metrics.json`` is that of a run of ours, of any version."""
    return (
        isinstance(metrics, dict)
        and "format" in metrics
        and isinstance(metrics.get("config"), dict)
        and isinstance(metrics.get("experiences"), dict)
    )
