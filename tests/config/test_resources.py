"""Too little memory, open files or processes: one message that says what to lower, nothing lost."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from avalanche.core import SupervisedPlugin
from typer.testing import CliRunner

from avalanche_peftcl import Component
from avalanche_peftcl.cli import app
from avalanche_peftcl.config import RunConfig, resources
from avalanche_peftcl.config.resources import (
    check_home,
    check_open_files,
    check_processors,
    plain_resource_errors,
    shortage,
    ways_out,
)
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.errors import ConfigError, ResourceError
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.matrix_file import read_matrix
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.testing.toys import toy_backbone, toy_benchmark


def out_of_memory() -> BaseException:
    """Return what torch really raises on the CPU."""
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("this machine has an exbibyte")


SHORT = {
    "CPU": (out_of_memory(), "memory"),
    "CUDA": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "memory"),
    "cuBLAS": (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "memory"),
    "MPS": (RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"), "memory"),
    "Python": (MemoryError(), "memory"),
    "fork": (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory"),
    "killed": (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "loader"),
    "gone": (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "loader"),
    "shm": (
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space"),
        "shared memory",
    ),
    "bus": (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"),
        "shared memory",
    ),
    "files": (OSError(errno.EMFILE, "Too many open files"), "open files"),
    "files of torch": (
        RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Too many "
                     "open files (24)"), "open files",
    ),
    "threads": (RuntimeError("can't start new thread"), "processes or threads"),
}  # fmt: skip


@pytest.mark.parametrize("case", SHORT)
def test_what_there_is_too_little_of(case):
    error, what = SHORT[case]
    assert shortage(error) == what
    with pytest.raises(ResourceError) as caught, plain_resource_errors({"num_workers": 2}):
        raise error
    assert caught.value.__cause__ is error
    assert what in str(caught.value) or what == "loader"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOENT, "nothing there"),
        ConfigError("out of memory, it says"),
        KeyError("DataLoader worker (pid 7) is killed"),
    ],
)
def test_other_errors_stay_what_they_are(error):
    assert shortage(error) is None
    with pytest.raises(type(error)) as caught, plain_resource_errors({}):
        raise error
    assert caught.value is error


def test_a_builder_without_memory_is_told_with_the_way_out():
    with (
        pytest.raises(ResourceError, match=r"strategy 'x' cannot be built: Mem.*; lower strategy"),
        plain_resource_errors({"strategy": {"train_mb_size": 8}}),
    ):
        raise ConfigError("strategy 'x' cannot be built: MemoryError") from MemoryError()


def test_the_ways_out_name_the_settings_that_there_are():
    settings = {
        "device": "cuda",
        "num_workers": 2,
        "backbone": {"name": "v", "img_size": 224},
        "strategy": {"train_mb_size": 64, "eval_mb_size": 128, "accumulation_steps": 1}
        | {"mixed_precision": "no"},
        "plugins": [{"name": "ewc"}, {"name": "replay", "mem_size": 200}],
    }
    assert ways_out("memory", settings) == (
        "lower strategy.train_mb_size (64) or strategy.eval_mb_size (128) or backbone.img_size "
        "(224) or plugins.1.mem_size (200) or num_workers (2), or raise "
        "strategy.accumulation_steps (1) to see as many images an update, or choose "
        "strategy.mixed_precision=bf16, or end other programs that hold memory"
    )
    assert "mixed_precision" not in ways_out("memory", settings | {"device": "cpu"})
    assert ways_out("open files", settings) == (
        "load images in the main process, num_workers=0 (now 2), or allow more (ulimit -n 4096)"
    )
    assert ways_out("loader", {}) == "see that there is memory for each, /dev/shm included"


class Hungry(SupervisedPlugin):
    """Takes more memory than there is in the second experience, or ends a loader's process."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def before_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter == 1 and self.how == "memory":
            torch.empty(2**60, dtype=torch.uint8)

    def state_dict(self) -> dict[str, str]:
        return {}

    def load_state_dict(self, state: dict[str, str]) -> None:
        pass


class Deadly:
    """A data set's transform that kills the process that loads."""

    def __call__(self, image):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return image


def registry(how: str) -> Registry:
    offered = {
        "backbone": Component("toy", lambda: toy_backbone(depth=1), source="test"),
        "benchmark": Component(
            "toy", lambda: toy_benchmark(classes_per_experience=(2, 2)), source="test"
        ),
        "strategy_plugin": Component("hungry", lambda: Hungry(how), source="test"),
    }
    provider = Provider("here", "1")
    entries = [Entry(kind, component, provider) for kind, component in offered.items()]
    return Registry([*discover(only=["avalanche-peftcl"]).entries(), *entries])


def config(output: Path, **changed) -> RunConfig:
    settings = {
        "output": output,
        "backbone": "toy",
        "benchmark": "toy",
        "module": "adapter",
        "strategy": {"name": "naive", "train_epochs": 1, "train_mb_size": 6},
        "plugins": ["hungry"],
    }
    return RunConfig.model_validate(settings | changed)


def test_a_run_out_of_memory_keeps_what_is_finished_and_goes_on(tmp_path):
    settings = config(tmp_path / "run")
    with pytest.raises(ResourceError) as caught:
        run(settings, registry=registry("memory"))
    said = str(caught.value)
    assert said.startswith("too little memory (RuntimeError: [enforce fail")
    assert "lower strategy.train_mb_size (6) or strategy.eval_mb_size (64), or raise" in said
    assert "1 of 2 experiences are finished and on disk" in said
    assert f"peftcl run --resume {tmp_path / 'run'} goes on with it" in said
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["experiences"] == {"total": 2, "finished": 1}
    first = read_matrix(tmp_path / "run", 1)
    done = run(settings, registry=registry("nothing"), resume=True)
    assert done.metrics["complete"]
    assert done.metrics["accuracy_matrix"][:1] == first


def test_a_loader_that_is_killed_is_told(tmp_path, monkeypatch):
    from avalanche_peftcl.benchmarks.stream import make_benchmark as scenarios

    monkeypatch.setattr(scenarios, "train_transform", lambda *args, **more: Deadly())
    with pytest.raises(ResourceError) as caught:
        run(config(tmp_path / "run", num_workers=1), registry=registry("nothing"))
    said = str(caught.value)
    assert said.startswith("a process that loads images was killed (RuntimeError: DataLoader")
    assert "num_workers=0 (now 1)" in said
    assert "Traceback" not in said
    assert "0 of 2 experiences are finished" in said


@pytest.mark.slow
@pytest.mark.skipif(resources.resource is None, reason="this system has no such limits")
def test_too_few_open_files_are_refused_at_once(tmp_path):
    file = tmp_path / "run.yaml"
    settings = {
        "output": str(tmp_path / "run"),
        "num_workers": 2,
        "backbone": {"name": "vit_glyph", "img_size": 16, "pretrained": False},
        "benchmark": {"name": "digits", "train_per_class": 1, "n_experiences": 5},
        "strategy": "nearest_class_mean",
    }
    file.write_text(dump_settings(settings))
    code = (
        "import resource\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, hard))\n"
        "from avalanche_peftcl.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(file)],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "num_workers=2 needs about" in done.stderr
    assert "this process may open 20; allow more (ulimit -n 4096) or set" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(resources.resource is None, reason="this system has no such limits")
def test_a_run_asks_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(resources.resource, "getrlimit", lambda which: (20, 20))
    with pytest.raises(ConfigError, match="and this process may open 20"):
        run(config(tmp_path / "run", num_workers=2), registry=registry("nothing"))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(resources.resource is None, reason="this system has no such limits")
def test_open_files_without_workers_or_limit(monkeypatch):
    check_open_files(0)
    monkeypatch.setattr(resources, "_open_files", lambda: 10)
    monkeypatch.setattr(resources.resource, "getrlimit", lambda which: (64, 64))
    check_open_files(4)
    with pytest.raises(ConfigError, match="num_workers=5 needs about 71 open files"):
        check_open_files(5)
    infinite = resources.resource.RLIM_INFINITY
    monkeypatch.setattr(resources.resource, "getrlimit", lambda which: (infinite, infinite))
    check_open_files(50)


@pytest.mark.parametrize(("processors", "most"), [(2, 64), (16, 64), (64, 256)])
def test_threads_and_processes_are_bounded_by_the_processors(monkeypatch, processors, most):
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    check_processors(most, most)
    check_processors(None, 0)
    for threads, workers, name in ((most + 1, 0, "num_threads"), (1, most + 1, "num_workers")):
        with pytest.raises(ConfigError) as caught:
            check_processors(threads, workers)
        assert str(caught.value).startswith(f"{name}={most + 1} is more than {most}, ")
        assert f"the {processors} processors" in str(caught.value)


def test_a_run_with_too_many_threads_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(ConfigError, match="num_threads=1024 is more than 64"):
        run(config(tmp_path / "run", num_threads=1024), registry=registry("nothing"))
    assert not (tmp_path / "run").exists()


def test_a_home_in_which_nothing_can_be_written_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    for words in (["run", "a.yaml"], ["manifest", "a.yaml", "b"], ["export", "a", "b.safetensors"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert f"keeps its settings in {tmp_path}/file/.avalanche, where it cannot" in result.stderr
        assert "the environment variable HOME to a folder" in result.stderr


@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
def test_damaged_settings_of_avalanche_are_told(tmp_path, monkeypatch, content):
    monkeypatch.setenv("HOME", str(tmp_path))
    check_home()
    (tmp_path / ".avalanche" / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json are damaged .* delete that file"):
        check_home()
    (tmp_path / ".avalanche" / "config.json").write_text('{"dataset_location": "x"}')
    check_home()
