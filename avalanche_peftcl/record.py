"""The run record: one folder that holds all that a run was and gave, rewritten as it goes."""

import csv
import io
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from avalanche_peftcl.checkpoint import clear_checkpoints
from avalanche_peftcl.discovery import Entry
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.files import replace_file
from avalanche_peftcl.models.weights import weights_sha256 as weights_sha256
from avalanche_peftcl.report import curve_figure, markdown_report, matrix_figure
from avalanche_peftcl.settings import dump_settings

FORMAT = 1
FILES = (
    "config.yaml",
    "accuracy_matrix.csv",
    "metrics.json",
    "model.safetensors",
    "summary.md",
    "accuracy_matrix.png",
    "accuracy_curve.png",
)
CHECKPOINTS = "checkpoint"  # the folder beside them
_PACKAGES = (
    "avalanche-peftcl",
    "avalanche-lib",
    "torch",
    "torchvision",
    "timm",
    "peft",
    "numpy",
)


@dataclass(frozen=True)
class RunRecord:
    """A run's folder and the content of its ``metrics.json``.

    Args:
        folder: Where the files are.
        metrics: Everything there is to know: ``accuracy_matrix`` (rows of fractions, ``None``
            where not evaluated), ``accuracy`` and ``cost`` (derived numbers), ``protocol``,
            ``components``, ``versions``, ``config``, ``complete`` and so on.
    """

    folder: Path
    metrics: dict[str, Any]

    def write(self) -> None:
        """Write every file, the figures once an experience is finished.

        Each file is replaced in one step, so that a stop leaves no half file.

        Raises:
            ConfigError: If the folder cannot be written to.
        """
        metrics = self.metrics
        contents = {
            "config.yaml": dump_settings(metrics["config"]).encode(),
            "accuracy_matrix.csv": matrix_csv(metrics["accuracy_matrix"]).encode(),
            "summary.md": markdown_report(metrics).encode(),
            "metrics.json": json.dumps(_plain(metrics), indent=1, allow_nan=False).encode() + b"\n",
        }
        if metrics["experiences"]["finished"]:
            contents["accuracy_matrix.png"] = _png(matrix_figure(metrics))
            contents["accuracy_curve.png"] = _png(curve_figure(metrics))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                replace_file(self.folder / name, content)
        except OSError as error:
            raise ConfigError(f"cannot write the run record to {self.folder}: {error}") from error


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that holds a run already, or that can be none.

    Args:
        folder: The run's output folder.
        overwrite: Whether an earlier run may be replaced.

    Raises:
        ConfigError: With the ways out; an unfinished run can be gone on with.
    """
    try:
        if any((folder / name).exists() for name in ("metrics.json", "config.yaml")):
            if not overwrite:
                further = (
                    ""
                    if _is_complete(folder)
                    else (
                        f". It is not finished; go on with it by peftcl run --resume {folder} "
                        "(in Python, resume=True)"
                    )
                )
                raise ConfigError(
                    f"the output folder {folder} already holds a run; choose another "
                    "(output=...) or replace it (--overwrite; in Python, overwrite=True)" + further
                )
            return
        there = folder
        while not there.exists() and there != there.parent:
            there = there.parent
    except OSError as error:
        raise ConfigError(f"the output folder {folder} cannot be used: {error}") from error
    if not there.is_dir():
        raise ConfigError(f"the output folder {folder} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK):
        raise ConfigError(
            f"the output folder {folder} cannot be made: no right to write to {there}"
        )


def clear_output(folder: Path) -> None:
    """Remove the files of an earlier run record and its checkpoints, and nothing else."""
    with suppress(NotADirectoryError):
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        clear_checkpoints(folder / CHECKPOINTS)


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Return the content of a record's ``metrics.json``; ``None`` if there is none to read."""
    try:
        metrics = json.loads((folder / "metrics.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return metrics if isinstance(metrics, dict) else None


def _is_complete(folder: Path) -> bool:
    """Whether the record in ``folder`` says that its run was finished."""
    metrics = read_metrics(folder)
    return metrics is not None and metrics.get("complete") is True


def describe_components(entries: Iterable[Entry]) -> list[dict[str, str]]:
    """Return kind, name, provider, version and source of each component."""
    return [
        {
            "kind": entry.kind,
            "name": entry.component.name,
            "provider": entry.provider.name,
            "version": entry.provider.version,
            "source": entry.component.source,
        }
        for entry in entries
    ]


def describe_plugins(strategy: Any) -> dict[str, Any]:
    """Return by class name what those plugins of ``strategy`` tell that have a ``summary()``."""
    return {
        type(plugin).__name__: plugin.summary()
        for plugin in strategy.plugins
        if callable(getattr(plugin, "summary", None))
    }


def plugin_headlines(strategy: Any) -> list[str]:
    """Return a line of each plugin of ``strategy`` that has a ``headline()`` and something to say.

    Example:
        >>> from types import SimpleNamespace
        >>> plugin = SimpleNamespace(headline=lambda: "projection: 3 of 5 directions")
        >>> plugin_headlines(SimpleNamespace(plugins=[plugin, object()]))
        ['projection: 3 of 5 directions']
    """
    lines = [plugin.headline() for plugin in strategy.plugins if hasattr(plugin, "headline")]
    return [line for line in lines if line]


def describe_platform(device: torch.device) -> dict[str, str | int | None]:
    """Return what the run computes on; no name of a machine or a person."""
    cuda = device.type == "cuda"
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if cuda else None,
        "system": platform.system(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def matrix_csv(matrix: Sequence[Sequence[float | None]]) -> str:
    """Return the matrix as CSV: fractions, empty where not evaluated, experiences from 1.

    Example:
        >>> print(matrix_csv([[0.5, None], [0.25, 1.0]]), end="")
        trained_up_to,tested_on_1,tested_on_2
        1,0.5,
        2,0.25,1.0
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trained_up_to", *(f"tested_on_{i + 1}" for i in range(len(matrix)))])
    for t, row in enumerate(matrix, start=1):
        writer.writerow([t, *row])
    return text.getvalue()


def now() -> str:
    """Return the time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def fractions(tensor: torch.Tensor) -> Any:
    """Return a tensor of accuracies as (nested) lists, ``None`` for nan."""
    return _plain(tensor.tolist())


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON holds it: lists, dicts with string keys, ``None`` for nan."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
