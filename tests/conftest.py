import doctest
import inspect
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import guides
import pytest
import torch
from hypothesis import HealthCheck, settings
from said_twice import said_twice

from avalanche_peftcl.models import Backbone
from avalanche_peftcl.runs import Record
from avalanche_peftcl.runs.schema import FORMAT
from avalanche_peftcl.testing import toy_backbone

# a loaded machine is no error: properties are checked, not times
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# of toys a second thread takes longer than it saves, many times so on a busy machine
if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    torch.set_num_threads(1)

os.environ.pop("COLUMNS", None)  # pytest-xdist's: pipes are wide unless a test says otherwise

_is_of = doctest.DocTestFinder._from_module


def _is_of_unwrapped(finder, module, found):
    return _is_of(finder, module, inspect.unwrap(found) if inspect.isroutine(found) else found)


# else the examples of decorated functions are left out in silence
doctest.DocTestFinder._from_module = _is_of_unwrapped

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items) -> None:
    """Mark tests that say what others say, and give long ones a longer time limit."""
    for item in items:
        if said_twice(item.nodeid):
            item.add_marker(pytest.mark.slow)
        long = any(map(item.get_closest_marker, ("slow", "gpu", "download", "reproduces")))
        if long and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(autouse=True, scope="session")  # fixtures of a module run before a test's own
def float32_by_default():
    """Let ``mixed_precision: auto`` be float32, so that a test is the same on every processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avalanche_peftcl.models.precision.native_bfloat16", lambda device: False)
        yield


@pytest.fixture
def backbone() -> Backbone:
    """A frozen ViT of 3 blocks, 32 dimensions and 17 tokens with random weights."""
    torch.manual_seed(0)
    return toy_backbone()


@pytest.fixture
def make_backbone():
    """Build such a ViT with other sizes."""
    return toy_backbone


@pytest.fixture
def record_of():
    """Make the record of a run of one class an experience, ``finished`` of ``size`` of them."""

    def make(size: int = 1, finished: int = 0, **changed: Any) -> Record:
        rows = [
            [1 - 0.01 * (t - i) if i <= t < finished else None for i in range(size)]
            for t in range(size)
        ]
        part = {"class_names": ["a|b", "c"], "train_images": 8, "test_images": 4}
        stream = [part | {"classes": [2 * t, 2 * t + 1]} for t in range(size)]
        part_of_config = ("backbone", "benchmark", "strategy")
        names = dict(zip(part_of_config, ("vit_glyph", "digits", "ntk_cl"), strict=True))
        components = [
            {"kind": kind, "name": name, "provider": "x", "version": "1", "source": "y"}
            for kind, name in names.items()
        ]
        metrics = {
            "format": FORMAT,
            "seed": 7,
            "config": {"output": "runs/a"} | {k: {"name": v} for k, v in names.items()},
            "components": components,
            "weights_sha256": "abc",
            "platform": {"device": "cpu", "device_name": None},
            "versions": {"python": "3.11"},
            "written_at": "2026-01-01T00:00:00+00:00",
            "complete": finished == size,
            "experiences": {"total": size, "finished": finished},
            "protocol": {
                "scenario": "class",
                "class_order": [1, 0],
                "task_label_at_test": False,
                "normalisation": {"img_size": 16, "mean": [0.5, 0.5, 0.5]},
                "experiences": stream,
            },
            "accuracy": {
                "average_incremental_accuracy": 0.9312,
                "last_accuracy": 0.5,
                "forgetting": None,
                "accuracy_curve": [1 - 0.005 * t for t in range(finished)],
            },
            "cost": {"trainable_parameters": 10, "training_seconds": [1.0] * finished},
            "accuracy_matrix": rows,
        }
        return Record.model_validate(metrics | changed)

    return make


@pytest.fixture
def shared_data() -> Path:
    """The folder of real images and weights beside the repository; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder of real images and weights is not beside the repository")
    return SHARED_DATA


@pytest.fixture
def plugin_packages(tmp_path, monkeypatch) -> None:
    """Let the packages under plugins/ be found, installed or not."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    for path in [folder, *guides.write_plugins(folder)]:
        monkeypatch.syspath_prepend(str(path))


@pytest.fixture
def gone():
    """Say whether a process has ended, or does so within a minute."""

    def ended(pid: int) -> bool:
        for _ in range(6000):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return True
            time.sleep(0.01)
        return False

    return ended


@pytest.fixture
def descendants():
    """Return the processes that a process has begun, and what they have."""

    def below(pid: int) -> list[int]:
        told = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True)
        pairs = [map(int, line.split()) for line in told.stdout.splitlines()]
        parents = dict(pairs)
        return [each for each, parent in parents.items() if pid in _line_of(parent, parents)]

    return below


def _line_of(pid: int, parents: dict[int, int]) -> list[int]:
    line = [pid]
    while line[-1] in parents:
        line.append(parents[line[-1]])
    return line


@pytest.fixture
def no_network(monkeypatch):
    """Refuse every connection, and fail if one was tried, whoever caught the refusal."""
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("there is no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert tried == []
