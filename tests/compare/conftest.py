import json
from pathlib import Path
from typing import Any

import pytest

from avalanche_peftcl.compare.records import read_run
from avalanche_peftcl.runs.record import RunRecord

N = 3  # experiences, of two classes and ten test images each


def accuracy_of(matrix: list[list[float | None]]) -> dict[str, Any]:
    """Derive by hand what a run derives from its matrix; all experiences weigh the same."""
    curve = [sum(row[: t + 1]) / (t + 1) for t, row in enumerate(matrix)]
    best = [max(row[i] for row in matrix[i:-1]) for i in range(len(matrix) - 1)]
    drops = [b - matrix[-1][i] for i, b in enumerate(best)]
    return {
        "average_incremental_accuracy": sum(curve) / len(curve),
        "last_accuracy": curve[-1],
        "forgetting": sum(drops) / len(drops) if drops else None,
        "accuracy_curve": curve,
        "forgetting_by_experience": drops,
    }


def metrics_of(strategy: dict[str, Any], seed: int, start: float, drop: float) -> dict[str, Any]:
    """Return a plausible ``metrics.json``: experiences begin at ``start`` and lose ``drop``."""
    shift = 0.01 * (seed % 3) ** 2
    matrix = [
        [start - drop * (t - i) + shift if i <= t else None for i in range(N)] for t in range(N)
    ]
    order = [(7 * seed + i) % (2 * N) for i in range(2 * N)]
    return {
        "format": 1,  # with the matrix; test_records.py has what later ones are
        "started_at": "2026-01-01T00:00:00+00:00",
        "written_at": f"2026-01-01T00:0{seed % 10}:00+00:00",
        "seed": seed,
        "complete": True,
        "experiences": {"total": N, "finished": N},
        "config": {
            "output": f"runs/{seed}",
            "seed": seed,
            "device": "cpu",
            "num_threads": 1,
            "num_workers": 0,
            "evaluate": "seen",
            "backbone": {"name": "vit_glyph", "img_size": 32},
            "module": None,
            "benchmark": {"name": "digits", "seed": seed, "n_experiences": N, "class_order": None},
            "strategy": strategy,
            "plugins": [],
            "metrics": [],
        },
        "components": [
            {"kind": "backbone", "name": "vit_glyph"},
            {"kind": "benchmark", "name": "digits"},
            {"kind": "strategy", "name": strategy["name"]},
        ],
        "weights_sha256": "ab" * 32,
        "platform": {"device": "cpu", "device_name": None, "system": "Linux", "threads": 1},
        "versions": {"python": "3.11.7", "avalanche-peftcl": "0.1.0", "torch": "2.4.0"},
        "protocol": {
            "scenario": "class",
            "domains": None,
            "class_order": order,
            "normalisation": {"img_size": 32, "mean": [0.5, 0.5, 0.5], "crop_pct": 1.0},
            "experiences": [
                {
                    "classes": [2 * t, 2 * t + 1],
                    "class_names": [str(order[2 * t]), str(order[2 * t + 1])],
                    "train_images": 20,
                    "test_images": 10,
                }
                for t in range(N)
            ],
            "task_label_at_test": False,
        },
        "accuracy": accuracy_of(matrix),
        "cost": {"trainable_parameters": 1000, "training_seconds": [2.0 + seed] * N},
        "accuracy_matrix": matrix,
    }


def kernels_of(seed: int, overlap: float) -> dict[str, Any]:
    """Return what ``NTKMetric`` may tell, with numbers that are easy to find again."""
    pairs = [(s, k) for k in range(1, N) for s in range(k)]
    near = [[1.0 if i == j else overlap / abs(i - j) for j in range(N)] for i in range(N)]
    return {
        "probe_images": 8,
        "form": "pseudo",
        "kernel_map": near,
        "inter_task": [None, 0.25, 0.25],
        "drift_from_first": [0.0, 0.25 + 0.01 * seed, 0.5],
        "drift_across_switch": [None, 0.125, 0.375 + 0.01 * seed],
        "forgetting": [
            {"experience": s, "after": k, "predicted": 0.1 * k + 0.01 * seed, "measured": 0.2 * k}
            for s, k in pairs
        ],
        "correlation": None,
    }


def any_time_of(seed: int, lowest: float) -> dict[str, Any]:
    """Return what ``AnyTimeMetric`` may tell: points at 5, 10, 15, ..., ends at 10, 20 and 30."""
    return {
        "every": 5,
        "iterations": [5, 10, 15, 20, 25, 30],
        "experience": [0, 0, 1, 1, 2, 2],
        "accuracy": [0.7, 0.9, lowest + 0.01 * seed, 0.8, 0.55, 0.75],
        "per_experience": [[0.7, None, None]] * 6,
        "area": 0.625 + 0.01 * seed,
        "minimum": [lowest, 0.4375, None],
        "average_minimum": 0.4,
        "worst_case": 0.5,
    }


@pytest.fixture
def watched(write, tmp_path: Path) -> Path:
    """A folder with a method of two seeds and one of a single seed, both metrics in each."""
    same = {"protocol.class_order": list(range(2 * N)), "config.benchmark.seed": 0}
    for t in range(N):
        same[f"protocol.experiences.{t}.class_names"] = [f"c{2 * t}", f"c{2 * t + 1}"]
    for name, seed, overlap, lowest in (
        ("naive", 0, 0.5, 0.3),
        ("naive", 1, 0.7, 0.3),
        ("pegp", 0, 0.2, 0.5),
    ):
        told = {"NTKMetric": kernels_of(seed, overlap), "AnyTimeMetric": any_time_of(seed, lowest)}
        write(f"watched/{name}_{seed}", name, seed, changes=same | {"metric_summaries": told})
    return tmp_path / "watched"


@pytest.fixture
def alter():
    """Change the record in a folder."""

    def do(folder: Path, **changes: Any) -> None:
        path = folder / "metrics.json"
        metrics = json.loads(path.read_text())
        change(metrics, changes.get("changes", {}))
        path.write_text(json.dumps(metrics))

    return do


def change(metrics: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set ``{"protocol.scenario": "task"}`` in ``metrics``."""
    for path, value in changes.items():
        *above, key = path.split(".")
        here = metrics
        for name in above:
            here = here[int(name)] if isinstance(here, list) else here[name]
        here[int(key) if isinstance(here, list) else key] = value


@pytest.fixture
def write(tmp_path: Path):
    """Write the record of a run and return its folder."""

    def write_run(
        folder: str = "run",
        strategy: str | dict[str, Any] = "naive",
        seed: int = 0,
        start: float = 0.9,
        drop: float = 0.1,
        **changes: Any,
    ) -> Path:
        options = {"name": strategy} if isinstance(strategy, str) else strategy
        metrics = metrics_of(options, seed, start, drop)
        for part in metrics["components"]:
            part |= {"provider": "avalanche-peftcl", "version": "0.1.0", "source": "x"}
        change(metrics, changes.get("changes", {}))
        path = tmp_path / folder
        path.mkdir(parents=True)
        (path / "metrics.json").write_text(json.dumps(metrics))
        return path

    return write_run


@pytest.fixture
def run(write):
    """Write the record of a run and read it back."""

    def make(folder: str, *given: Any, **more: Any) -> RunRecord:
        found = read_run(write(folder, *given, **more))
        assert isinstance(found, RunRecord), found
        return found

    return make


@pytest.fixture
def study(write, tmp_path: Path) -> Path:
    """A folder with two methods of three seeds each and one of a single seed."""
    for seed in (0, 1, 2):
        write(f"study/naive_{seed}", {"name": "naive", "train_epochs": 3}, seed, 0.8, 0.2)
        ntk = {"name": "ntk_cl", "recipe": "released", "train_epochs": 3}
        write(f"study/ntk/released_{seed}", ntk, seed, 0.9, 0.05 + 0.01 * seed)
    ntk = {"name": "ntk_cl", "recipe": "corrected", "train_epochs": 3}
    write("study/ntk/corrected_0", ntk, 0, 0.95, 0.05)
    return tmp_path / "study"
