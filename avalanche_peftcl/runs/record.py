"""The run record: one folder that holds all that a run was and gave, rewritten as it goes."""

import io
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.files import replace_file
from avalanche_peftcl.models.backbones.weights import weights_sha256 as weights_sha256
from avalanche_peftcl.registry.packages import Entry
from avalanche_peftcl.runs.matrix_file import MatrixFile
from avalanche_peftcl.runs.report import curve_figure, markdown_report, matrix_figure
from avalanche_peftcl.runs.schema import RECORD

FORMAT = 2  # 1 had the accuracy matrix in metrics.json
_DRAWINGS = 50  # a long run draws its figures so many times only
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
            where not evaluated; on disk in a file of its own, see :class:`.MatrixFile`),
            ``accuracy`` and ``cost`` (derived numbers), ``protocol``,
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

    def write(self, matrix_file: MatrixFile | None = None) -> None:
        """Write every file, the figures once an experience is finished.

        Each file is replaced in one step, so that a stop leaves no half file, and to the accuracy
        matrix the rows that it lacks are added; ``metrics.json`` comes last, so that what it says
        is there. A run of more than 50 experiences draws its figures
        50 times, the last time in the end.

        Args:
            matrix_file: What this run has written of the matrix; ``None`` writes all of it.

        Raises:
            ConfigError: If the folder cannot be written to.
        """
        metrics = self.metrics
        contents = {
            "config.yaml": dump_settings(metrics["config"]).encode(),
            "summary.md": markdown_report(metrics).encode(),
        }
        finished, total = metrics["experiences"]["finished"], metrics["experiences"]["total"]
        if finished and (finished == total or finished % (1 + (total - 1) // _DRAWINGS) == 0):
            contents["accuracy_matrix.png"] = _png(matrix_figure(metrics))
            contents["accuracy_curve.png"] = _png(curve_figure(metrics))
        matrix = metrics["accuracy_matrix"]
        matrix_file = matrix_file or MatrixFile(self.folder, len(matrix))
        with self._writing():
            matrix_file.write(matrix, finished)
        self._replace(contents | {RECORD: self._json()})

    def _json(self) -> bytes:
        return metrics_json(self.metrics).encode()

    def _replace(self, contents: Mapping[str, bytes]) -> None:
        with self._writing():
            for name, content in contents.items():
                replace_file(self.folder / name, content)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
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


def metrics_json(metrics: Mapping[str, Any]) -> str:
    """Return the content of ``metrics.json``: a line a key, without the accuracy matrix.

    Example:
        >>> print(metrics_json({"seed": 3, "accuracy_matrix": [[0.5]], "curve": [0.5]}), end="")
        {
        "seed": 3,
        "curve": [0.5]
        }
    """
    kept = _plain({key: value for key, value in metrics.items() if key != "accuracy_matrix"})
    lines = [f"{json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in kept.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


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
