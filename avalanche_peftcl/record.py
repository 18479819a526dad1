"""The run record: one folder that holds all that a run was and gave, rewritten as it goes."""

import csv
import dataclasses
import hashlib
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
from torch import nn

from avalanche_peftcl.config import dump_config
from avalanche_peftcl.discovery import Entry
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.report import curve_figure, markdown_report, matrix_figure

FORMAT = 1
FILES = (
    "config.yaml",
    "accuracy_matrix.csv",
    "metrics.json",
    "summary.md",
    "accuracy_matrix.png",
    "accuracy_curve.png",
)
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
            "config.yaml": dump_config(metrics["config"]).encode(),
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
                _replace(self.folder / name, content)
        except OSError as error:
            raise ConfigError(f"cannot write the run record to {self.folder}: {error}") from error


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output folder that holds a run already, or that can be none.

    Args:
        folder: The run's output folder.
        overwrite: Whether an earlier run may be replaced.

    Raises:
        ConfigError: With the ways out.
    """
    try:
        if any((folder / name).exists() for name in ("metrics.json", "config.yaml")):
            if not overwrite:
                raise ConfigError(
                    f"the output folder {folder} already holds a run; choose another "
                    "(output=...) or replace it (--overwrite; in Python, overwrite=True)"
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
    """Remove the files of an earlier run record, and nothing else."""
    with suppress(NotADirectoryError):
        for name in FILES:
            (folder / name).unlink(missing_ok=True)


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


def describe_protocol(benchmark: Any, input_config: Any) -> dict[str, Any]:
    """Return what an evaluation depends on besides the method.

    Args:
        benchmark: Any Avalanche benchmark; ``class_order``, ``class_names``, ``scenario`` and
            ``domains`` are recorded where it has them.
        input_config: What the backbone expects of an image.

    Returns:
        Scenario, class order, normalisation, and classes and numbers of images of each experience.
    """
    names = getattr(benchmark, "class_names", None)
    tests = list(benchmark.test_stream)
    experiences = []
    for index, experience in enumerate(training_experiences(benchmark)):
        classes = sorted({int(label) for label in experience.dataset.targets})
        experiences.append(
            {
                "classes": classes,
                "class_names": [str(names[c]) if names else str(c) for c in classes],
                "train_images": len(experience.dataset),
                "test_images": len(tests[index].dataset) if index < len(tests) else 0,
            }
        )
    order = getattr(benchmark, "class_order", None)
    return {
        "scenario": getattr(benchmark, "scenario", None),
        "domains": getattr(benchmark, "domains", None),
        "class_order": None if order is None else [int(label) for label in order],
        "normalisation": _plain(dataclasses.asdict(input_config)),
        "experiences": experiences,
    }


def training_experiences(benchmark: Any) -> list[Any]:
    """Return the training experiences; of an online stream those that it was cut from."""
    return list(getattr(benchmark, "original_train_stream", benchmark.train_stream))


def per_domain(protocol: Mapping[str, Any], per_task: Any) -> dict[str, float | None] | None:
    """Return the last accuracy on each domain by name; ``None`` of a stream without domains.

    Args:
        protocol: What :func:`describe_protocol` returns.
        per_task: Final row of the accuracy matrix, so far.

    Example:
        >>> per_domain({"scenario": "domain", "domains": ["photo", "sketch"]}, [0.9])
        {'photo': 0.9}
    """
    if protocol["scenario"] != "domain" or not protocol["domains"]:
        return None
    return dict(zip(protocol["domains"], per_task, strict=False))


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


def weights_sha256(module: nn.Module) -> str:
    """Return a hash of the names and bytes of all weights, sorted by name.

    Example:
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> _ = b.load_state_dict(a.state_dict())
        >>> weights_sha256(a) == weights_sha256(b) != weights_sha256(nn.Linear(2, 2))
        True
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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


def _replace(path: Path, content: bytes) -> None:
    """Write ``path`` in one step: whoever looks finds the old content or the new."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)
