"""The run record: one folder that holds all that a run was and gave, rewritten as it goes."""

import csv
import io
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from avalanche_peftcl.discovery import Entry
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.files import replace_file
from avalanche_peftcl.models.weights import weights_sha256 as weights_sha256
from avalanche_peftcl.output import RECORD
from avalanche_peftcl.report import curve_figure, markdown_report, matrix_figure
from avalanche_peftcl.settings import dump_settings

FORMAT = 1
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

    def claim(self) -> None:
        """Write ``metrics.json`` alone: from then on the folder is this run's, as it lists it.

        Raises:
            ConfigError: If the folder cannot be written to.
        """
        self._replace({RECORD: self._json()})

    def write(self) -> None:
        """Write every file, the figures once an experience is finished.

        Each file is replaced in one step, so that a stop leaves no half file; ``metrics.json``
        comes last, so that what it says is there.

        Raises:
            ConfigError: If the folder cannot be written to.
        """
        metrics = self.metrics
        contents = {
            "config.yaml": dump_settings(metrics["config"]).encode(),
            "accuracy_matrix.csv": matrix_csv(metrics["accuracy_matrix"]).encode(),
            "summary.md": markdown_report(metrics).encode(),
        }
        if metrics["experiences"]["finished"]:
            contents["accuracy_matrix.png"] = _png(matrix_figure(metrics))
            contents["accuracy_curve.png"] = _png(curve_figure(metrics))
        self._replace(contents | {RECORD: self._json()})

    def _json(self) -> bytes:
        return json.dumps(_plain(self.metrics), indent=1, allow_nan=False).encode() + b"\n"

    def _replace(self, contents: Mapping[str, bytes]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                replace_file(self.folder / name, content)
        except OSError as error:
            raise ConfigError(f"cannot write the run record to {self.folder}: {error}") from error


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
