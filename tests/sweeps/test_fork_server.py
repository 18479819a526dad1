"""Most is tested with a stand-in for the command, the rest with runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.runs.matrix_file import read_matrix
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.runs.schema import Record
from avalanche_peftcl.sweeps import children, fork_server, processes
from avalanche_peftcl.sweeps.children import Children, ForkServers, shared_servers
from avalanche_peftcl.sweeps.fork_server import ForkServer, ServerEndedError
from avalanche_peftcl.sweeps.processes import Task, run_processes
from avalanche_peftcl.sweeps.sweep import run_sweep

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux alone")

# what is imported once, in the place of torch and Avalanche, and the command that every fork calls
STAND_IN = """
import atexit, json, os, pathlib, random, signal, sys, time
import numpy
stage = pathlib.Path(os.environ["STAGE"])
with open(stage / "imports", "a") as imports:
    imports.write(f"{os.getpid()}\\n")
if (stage / "slow").exists():
    time.sleep(300)
forks, fork = [], os.fork

def fork_once():
    if (stage / "one").exists() and forks:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    forks.append(True)
    return fork()

os.fork = fork_once

def main():
    word = sys.argv[1]
    atexit.register(print, "the end of", word)
    if word == "tell":
        told = {"argv": sys.argv, "pid": os.getpid(), "parent": os.getppid(), "own": OWN()}
        told |= {"session": os.getsid(0), "files": sorted(map(int, os.listdir("/proc/self/fd")))}
        told |= {"random": [random.random(), numpy.random.random()]}
        told |= {"child": repr(signal.getsignal(signal.SIGCHLD)), "fd": signal.set_wakeup_fd(-1)}
        print(json.dumps(told))
    elif word == "raise":
        raise RuntimeError("oh")
    elif word == "exit":
        sys.exit(int(sys.argv[2]))
    elif word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word in ("wait", "deaf"):
        if word == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (stage / f"pid{sys.argv[2]}").write_text(str(os.getpid()))
        time.sleep(300)

def OWN():
    return os.environ.get("OWN")
"""
SERVER = """
import sys
sys.path.insert(0, {stage!r})
import avalanche_peftcl
from avalanche_peftcl.sweeps import fork_server
fork_server._NEEDED = ("nobody.has_this", "stand_in")
fork_server._PATIENCE = 0.3
sys.modules["avalanche_peftcl.cli"] = __import__("types").ModuleType("cli")
sys.modules["avalanche_peftcl.cli"].main = lambda: __import__("stand_in").main()
fork_server.serve()
from avalanche_peftcl.cli import main
main()
"""
PARENT = """
import os, pathlib, sys, time
from avalanche_peftcl.sweeps import fork_server
fork_server._SERVER = sys.argv[2]
stage = pathlib.Path(sys.argv[1])
server = fork_server.ForkServer(os.environ, stage / "said")
with open(stage / "log", "ab") as log:
    runs = [server.fork([word, word], log, {}) for word in ("wait", "deaf")]
time.sleep(300)
"""


@pytest.fixture
def stage(tmp_path, monkeypatch) -> Path:
    """Put the stand-in in the place of what runs need, and return its folder."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setenv("STAGE", str(tmp_path))
    monkeypatch.setattr(fork_server, "_SERVER", SERVER.format(stage=str(tmp_path)))
    return tmp_path


@pytest.fixture
def server(stage):
    """A server, which is stopped when the test ends."""
    server = ForkServer(os.environ, stage / "said")
    yield server
    server.stop()


def fork(server, stage, *words, log="log", **env):
    with (stage / log).open("ab") as file:
        return server.fork(words, file, env)


def pid_of(stage: Path, name: str) -> int:
    while not ((stage / f"pid{name}").exists() and (stage / f"pid{name}").read_text()):
        time.sleep(0.01)
    return int((stage / f"pid{name}").read_text())


def test_runs_are_forked_and_what_they_need_is_imported_once(server, stage):
    runs = [
        fork(server, stage, "tell", "a", log="a", OWN="1"),
        fork(server, stage, "tell", log="b"),
        fork(server, stage, "raise", log="c"),
        fork(server, stage, "exit", "3", log="d"),
        fork(server, stage, "kill", log="e"),
    ]
    assert [each.wait(60) for each in runs] == [0, 0, 1, 3, -signal.SIGKILL]
    assert len((stage / "imports").read_text().split()) == 1
    first, second = (json.loads((stage / each).read_text().splitlines()[0]) for each in "ab")
    assert (first["argv"], second["argv"]) == (["-c", "tell", "a"], ["-c", "tell"])
    assert (first["own"], second["own"]) == ("1", None)
    assert first["files"] == second["files"]
    assert len(first["files"]) == 4  # the standard ones, and the folder that is read
    assert first["parent"] == second["parent"] == int((stage / "imports").read_text())
    for each in first, second:
        assert each["session"] == each["pid"]
        assert (each["child"], each["fd"]) == (repr(signal.SIG_DFL), -1)
    assert all(a != b for a, b in zip(first["random"], second["random"], strict=True))
    assert (stage / "a").read_text().endswith("\nthe end of tell\n")
    assert "Traceback" in (stage / "c").read_text()
    assert "RuntimeError: oh\n" in (stage / "c").read_text()
    assert (stage / "d").read_text() == "the end of exit\n"
    assert (stage / "e").read_text() == ""
    assert (stage / "said").read_text() == ""


def test_runs_are_told_to_end_and_killed(server, stage):
    hears, deaf = fork(server, stage, "wait", "1"), fork(server, stage, "deaf", "2")
    pid_of(stage, "1"), pid_of(stage, "2")
    with pytest.raises(subprocess.TimeoutExpired):
        hears.wait(0.01)
    hears.terminate()
    deaf.terminate()
    assert hears.wait(60) == -signal.SIGTERM
    hears.kill()  # does nothing
    deaf.kill()
    assert deaf.wait(60) == -signal.SIGKILL


def test_the_end_of_a_server_is_that_of_its_runs(server, stage, gone):
    run = fork(server, stage, "wait", "1")
    pid = pid_of(stage, "1")
    os.kill(int((stage / "imports").read_text()), signal.SIGKILL)
    with pytest.raises(ServerEndedError) as caught:
        run.wait(60)
    assert (caught.value.code, caught.value.said) == (-signal.SIGKILL, stage / "said")
    assert gone(pid)
    assert fork(server, stage, "tell") is None


def test_the_end_of_ours_is_that_of_all(stage, gone):
    words = [sys.executable, "-c", PARENT, str(stage), fork_server._SERVER]
    with subprocess.Popen(words) as parent:
        pids = [pid_of(stage, "wait"), pid_of(stage, "deaf")]
        parent.kill()
    assert all(gone(pid) for pid in [*pids, int((stage / "imports").read_text())])


def test_a_server_that_is_stopped_leaves_nobody(server, stage, gone):
    runs = [fork(server, stage, "wait", "1"), fork(server, stage, "deaf", "2")]
    pids = [pid_of(stage, "1"), pid_of(stage, "2"), int((stage / "imports").read_text())]
    server.stop()
    assert all(gone(pid) for pid in pids)
    assert runs[0].wait(60) == -signal.SIGTERM


def test_nobody_waits_for_imports_when_all_is_stopped(stage):
    (stage / "slow").touch()
    servers = ForkServers(stage)
    both, begun = Children(servers), time.monotonic()
    with (stage / "log").open("ab") as log:
        run = both.start(["tell"], log, os.environ)
    both.stop()
    servers.stop()
    assert time.monotonic() - begun < children._PATIENCE
    with pytest.raises(ServerEndedError):
        run.wait(60)
    with (stage / "log").open("ab") as log:
        assert both.start(["tell"], log, os.environ) is None


def test_an_environment_has_a_server_of_its_own_and_one_that_ended_is_replaced(stage):
    servers, env = ForkServers(stage), dict(os.environ)
    with (stage / "log").open("ab") as log:

        def start(*words, **env):
            return servers.fork(words, log, dict(os.environ) | env)

        for further in {}, {"AVALANCHE_PEFTCL_BAR": "a"}, {"OMP_NUM_THREADS": "7"}:
            assert start("tell", **further).wait(60) == 0
        pids = [int(word) for word in (stage / "imports").read_text().split()]
        assert len(pids) == 2
        lost = start("wait", "1")
        pid_of(stage, "1")
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(ServerEndedError):
            lost.wait(60)
        assert start("exit", "4").wait(60) == 4
    servers.stop()
    assert len((stage / "imports").read_text().split()) == 3
    assert dict(os.environ) == env


# --- in a sweep ----------------------------------------------------------------------------------


@pytest.fixture
def tasks(stage, monkeypatch):
    """Return a function that makes tasks of one seed which do what their words say."""
    benchmark = {"name": "image_folder", "root": "nowhere", "n_experiences": 1}
    settings = {"backbone": "vit_glyph", "benchmark": benchmark, "strategy": "naive"}
    words = {}
    monkeypatch.setattr(processes, "_words", lambda task, path: words[task.name].split())

    def make(**told: str) -> list[Task]:
        words.update(told)
        configs = {n: RunConfig.model_validate(settings | {"output": stage / n}) for n in told}
        return [Task(config, name) for name, config in configs.items()]

    return make


def test_events_are_those_of_processes(tasks, stage):
    events = list(run_processes(tasks(a="exit 0", b="kill", c="exit 2"), jobs=1))
    assert [event.task.name for event in events if event.started] == ["a", "b", "c"]
    assert {event.task.name: event.error for event in events if event.ended} == {
        "a": None,
        "b": "killed by SIGKILL, perhaps for want of memory",
        "c": "exit status 2: the end of exit",
    }
    assert len((stage / "imports").read_text().split()) == 1


def test_runs_that_a_killed_server_leaves_have_failed_and_the_next_goes_on(tasks, stage, gone):
    errors, pids = {}, []
    for event in run_processes(tasks(a="wait a", b="exit 0"), jobs=1):
        if event.started and event.task.name == "a":
            pids.append(pid_of(stage, "a"))
            os.kill(int((stage / "imports").read_text()), signal.SIGKILL)
        if event.ended:
            errors[event.task.name] = event.error
    assert errors == {
        "a": "the process that forks the runs has ended: killed by SIGKILL, perhaps for want of "
        "memory",
        "b": None,
    }
    assert gone(pids[0])


def test_servers_can_be_kept_from_one_call_to_the_next(tasks, stage, gone):
    with shared_servers():
        for _ in range(2):
            with shared_servers():
                events = list(run_processes(tasks(a="exit 0", b="tell"), jobs=2))
            assert {event.error for event in events} == {None}
        (server,) = map(int, (stage / "imports").read_text().split())
        os.kill(server, 0)
    assert gone(server)


def test_a_run_for_which_there_is_no_process_fails_alone(tasks, stage):
    (stage / "one").touch()
    events = list(run_processes(tasks(a="exit 0", b="exit 0"), jobs=1))
    assert [event.error for event in events if event.ended] == [
        None,
        "no process can be had for the run: [Errno 11] Resource temporarily unavailable",
    ]


def test_closing_ends_the_runs_and_the_server(tasks, stage, gone):
    events = run_processes(tasks(a="wait a", b="wait b"), jobs=2)
    assert next(events).started
    pids = [pid_of(stage, "a"), pid_of(stage, "b"), int((stage / "imports").read_text())]
    events.close()
    assert all(gone(pid) for pid in pids)


# --- for real ------------------------------------------------------------------------------------

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
SETTINGS = {
    "num_threads": 1,
    "backbone": BACKBONE,
    "benchmark": {"name": "digits", "n_experiences": 2, "train_per_class": 2},
    "strategy": {"name": "ntk_cl", "train_epochs": 1, "mixed_precision": "no"},
}
LOOK = """
import os, sys, torch
counted = []
torch._C._cuda_getDeviceCount = lambda: counted.append(1) or 0
from avalanche_peftcl.sweeps.fork_server import _NEEDED
for name in _NEEDED:
    __import__(name)
tasks = os.listdir("/proc/self/task")
names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in tasks]
print(torch.cuda.is_initialized(), len(counted), *names)
"""


def said(record: Record, but: set[str]) -> dict[str, object]:
    """Return a record without some keys, and without its folder."""
    told = record.model_dump(mode="json", exclude=but)
    return told | {"config": told["config"] | {"output": None}}


@pytest.mark.slow
def test_a_forked_run_is_the_run_alone_and_imports_nothing_heavy(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")  # every import is a line of standard error
    config = RunConfig.model_validate(SETTINGS | {"output": tmp_path / "o", "seeds": [3, 4]})
    outcomes = run_sweep(config, console=Console(quiet=True))
    for outcome in outcomes:
        log = (outcome.folder / "run.log").read_text()
        assert outcome.error is None, log
        imported = {line.rpartition("|")[2].strip() for line in log.splitlines() if "|" in line}
        assert imported
        assert not imported & {"torch", "avalanche", "timm", "numpy", "scipy", "matplotlib"}
        alone = RunConfig.model_validate(
            SETTINGS | {"output": tmp_path / f"alone{outcome.seed}", "seed": outcome.seed}
        )
        found = run(alone)
        assert read_matrix(outcome.folder, 2) == found.metrics["accuracy_matrix"]
        assert outcome.record.weights_sha256 == found.record.weights_sha256
        times = {"started_at", "written_at", "cost"}
        assert said(outcome.record, times) == said(found.record, times)


@pytest.mark.slow
def test_a_server_can_be_forked():
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, env=env)
    initialized, counted, *threads = told.stdout.split()
    assert (initialized, counted) == ("False", "0")
    # jemalloc's, of pyarrow, ends in a fork in order
    assert [name for name in threads if not name.startswith("jemalloc")] == ["python"]
