"""Most is tested with a stand-in for Ray, the rest where Ray itself is installed."""

import io
import json
import os
import socket
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.sweeps import ray as sweep_ray
from avalanche_peftcl.sweeps.processes import Event, Task
from avalanche_peftcl.sweeps.ray import check_address, run_on_ray, work_on
from avalanche_peftcl.sweeps.sweep import run_sweep

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
SETTINGS = {
    "num_threads": 1,
    "backbone": BACKBONE,
    "benchmark": {"name": "digits", "n_experiences": 2, "train_per_class": 2},
    "strategy": {"name": "nearest_class_mean"},
}
needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason='Ray is not installed: pip install -e ".[ray]"'
)

STAND_IN = """
import os, pathlib, sys, time
mode = os.environ["STAND_IN"]
print("a line of Ray's own")

class exceptions:
    class RayError(Exception):
        pass

def init(address, **options):
    pathlib.Path(os.environ["STAND_IN_PID"]).write_text(str(os.getpid()))
    if mode == "silent":
        time.sleep(1000)
    if mode == "refuses":
        raise ConnectionError("Version mismatch: 2.1 here, 1.9 there")

def shutdown():
    pass

def cluster_resources():
    return {"CPU": 2.0}

class Remote:
    def __init__(self, function):
        self.function = function
    def options(self, num_cpus, num_gpus):
        return self
    def remote(self, settings, folder, anew):
        assert not anew or mode == "anew"
        trial = pathlib.Path(settings["output"]).parent.name
        return (int(trial) if trial.isdecimal() else settings["seed"]) + 10 * anew

def remote(**options):
    assert options == {"max_retries": 0, "max_calls": 1}
    return Remote

def wait(references, timeout):
    if mode == "dies" and len(references) == 1:
        sys.exit("GCS may have been killed")
    if mode == "runs for ever" and len(references) == 1:
        time.sleep(1000)
    return references[-1:], references[:-1]

def get(reference):
    if reference >= 10:
        return "anew"
    if reference == 2:
        raise exceptions.RayError("The worker\\ndied")
    return "no images" if reference == 1 else None
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a module ``ray`` in front of the real one; return a function that says what it does."""
    package = tmp_path / "stand_in" / "ray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    path = os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setenv("STAND_IN_PID", str(tmp_path / "pid"))
    monkeypatch.setattr(sweep_ray, "find_spec", lambda name: object())
    return lambda mode: monkeypatch.setenv("STAND_IN", mode)


def tasks(output: Path, seeds, **changed) -> list[Task]:
    config = RunConfig.model_validate(SETTINGS | {"output": output, "seeds": seeds} | changed)
    return [Task(config.for_seed(seed), f"seed {seed}") for seed in seeds]


@pytest.fixture
def port():
    """A port at which somebody listens who is not Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


# --- addresses -----------------------------------------------------------------------------------


def test_without_ray_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(sweep_ray, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "avalanche-peftcl\[ray\]"'):
        check_address("local")


@pytest.mark.parametrize(
    "address", ["", "head", "head:", ":6379", "head:port", "http://head:1", "a b:1", "a:99999"]
)
def test_what_is_no_address(stand_in, address):
    with pytest.raises(ConfigError, match="is no address of Ray; give HOST:PORT"):
        check_address(address)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://localhost:{}"])
def test_nobody_at_the_address(stand_in, port, form):
    check_address(form.format(port))
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    with pytest.raises(ConfigError, match=r"Ray does not answer at .*: .*refused.*ray start"):
        check_address(form.format(closed))
    with pytest.raises(ConfigError, match="Ray does not answer at no-such-host"):
        check_address("no-such-host.invalid:6379")


def test_somebody_else_at_the_address_is_given_up_on(stand_in, tmp_path, port, monkeypatch):
    stand_in("silent")
    monkeypatch.setattr(sweep_ray, "_CONNECT", 0.5)
    address = f"127.0.0.1:{port}"
    with pytest.raises(ConfigError, match=f"Ray does not answer at {address}: no answer in 0 s"):
        list(run_on_ray(tasks(tmp_path, [0]), address=address))


@pytest.mark.slow
def test_a_ray_that_refuses_is_quoted(stand_in, tmp_path):
    stand_in("refuses")
    with pytest.raises(ConfigError, match=r"cannot be started on this machine: .*2\.1 here, 1\.9"):
        list(run_on_ray(tasks(tmp_path, [0]), address="local"))


@pytest.mark.slow
def test_devices(stand_in, tmp_path):
    stand_in("works")
    with pytest.raises(ConfigError, match="device='cuda:1' makes no sense on Ray"):
        list(run_on_ray(tasks(tmp_path, [0], device="cuda:1"), address="local"))
    with pytest.raises(ConfigError, match="a run asks for 1 GPU, there are 0"):
        list(run_on_ray(tasks(tmp_path, [0], device="cuda"), address="local"))
    with pytest.raises(ConfigError, match="a run asks for 3 CPU, there are 2"):
        list(run_on_ray(tasks(tmp_path, [0], num_threads=3), address="local"))


# --- events --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_each_run_starts_and_ends_whatever_becomes_of_the_others(stand_in, tmp_path):
    stand_in("works")
    same = [tasks(tmp_path / str(trial), [0])[0] for trial in range(3)]  # of one seed
    events = list(run_on_ray(same, address="local"))
    assert events == [
        Event(same[2]),
        Event(same[2], ended=True, error="RayError: The worker died"),
        Event(same[1]),
        Event(same[1], ended=True, error="no images"),
        Event(same[0]),
        Event(same[0], ended=True),
    ]
    assert list(run_on_ray([], address="local")) == []


@pytest.mark.slow
def test_a_run_is_told_to_begin_anew(stand_in, tmp_path):
    stand_in("anew")
    goes_on, other = tasks(tmp_path, [0, 1])
    anew = Task(other.config, other.name, anew=True)
    told = list(run_on_ray([goes_on, anew], address="local"))
    assert [event for event in told if event.ended] == [
        Event(anew, ended=True, error="anew"),
        Event(goes_on, ended=True),
    ]


@pytest.mark.slow
def test_runs_that_a_lost_cluster_leaves_have_failed(stand_in, tmp_path):
    stand_in("dies")
    both = tasks(tmp_path, [0, 1])
    events = list(run_on_ray(both, address="auto"))
    assert events[-1].task is both[0]
    assert events[-1].error == "Ray at auto ended: GCS may have been killed"


@pytest.mark.slow
def test_closing_ends_the_driver(stand_in, tmp_path):
    stand_in("runs for ever")
    both = tasks(tmp_path, [0, 1])
    events = run_on_ray(both, address="local")
    assert next(events) == Event(both[1])
    driver = int((tmp_path / "pid").read_text())
    os.kill(driver, 0)
    events.close()
    with pytest.raises(ProcessLookupError):
        os.kill(driver, 0)


@pytest.mark.slow
def test_an_earlier_log_does_not_count_as_a_start(stand_in, tmp_path):
    stand_in("works")
    (task,) = tasks(tmp_path, [0])
    task.log.parent.mkdir(parents=True)
    task.log.write_text("of an earlier attempt")
    assert sweep_ray._size(task.log) == len("of an earlier attempt")
    assert list(run_on_ray([task], address="local")) == [Event(task), Event(task, ended=True)]
    assert task.log.read_text() == "of an earlier attempt"  # the stand-in says nothing


# --- a run on a node -----------------------------------------------------------------------------


def test_a_run_on_a_node(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = RunConfig.model_validate(SETTINGS | {"output": "out"}).model_dump(mode="json")
    assert work_on(settings, str(tmp_path), False) is None
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["complete"]
    assert "experience 2/2" in (tmp_path / "out" / "run.log").read_text()
    assert work_on(settings, str(tmp_path), False) is None
    assert "there is nothing left to do" in (tmp_path / "out" / "run.log").read_text()
    assert work_on(settings, str(tmp_path), True) is None
    assert "experience 2/2" in (tmp_path / "out" / "run.log").read_text()


def test_a_run_on_a_node_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    benchmark = {"name": "image_folder", "root": "nowhere", "n_experiences": 1}
    config = RunConfig.model_validate(SETTINGS | {"output": "out", "benchmark": benchmark})
    error = work_on(config.model_dump(mode="json"), str(tmp_path), False)
    assert "nowhere" in error
    assert f"error: {error}" in (tmp_path / "out" / "run.log").read_text()
    error = work_on(config.model_dump(mode="json"), str(tmp_path / "not" / "shared"), False)
    assert error.startswith("the nodes of Ray must share the sweep's working directory")


# --- for real ------------------------------------------------------------------------------------


@needs_ray
@pytest.mark.slow
def test_a_sweep_on_ray(tmp_path):
    lines = io.StringIO()
    config = RunConfig.model_validate(SETTINGS | {"output": tmp_path, "seeds": [0, 1]})
    outcomes = run_sweep(config, ray="local", console=Console(file=lines, width=120))
    assert [o.error for o in outcomes] == [None, None], lines.getvalue()
    assert all(o.record.complete for o in outcomes)
    assert "seed 1: started" in lines.getvalue()
    assert "mean of 2" in lines.getvalue()


@needs_ray
@pytest.mark.slow
def test_an_address_that_does_not_answer_is_a_message_in_bounded_time(tmp_path, port, monkeypatch):
    monkeypatch.setattr(sweep_ray, "_CONNECT", 20.0)
    config = RunConfig.model_validate(SETTINGS | {"output": tmp_path, "seeds": [0, 1]})
    with pytest.raises(ConfigError, match=r"does not answer at 127\.0\.0\.1:.*no answer in 20 s"):
        run_sweep(config, ray=f"127.0.0.1:{port}")
    assert list(tmp_path.iterdir()) == []
