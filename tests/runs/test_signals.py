"""A request to terminate says what is finished; what a killed process started ends with it."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.runs import record
from avalanche_peftcl.runs.signals import Terminated, termination_raised

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
DIGITS = {"name": "digits", "n_experiences": 2, "train_per_class": 1, "validation_per_class": 1}
SETTINGS = {"num_threads": 1, "backbone": BACKBONE, "benchmark": DIGITS}
NUMBERS = [signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def heard():
    """Signals end a process, also where the tests themselves run under nohup."""
    earlier = {number: signal.signal(number, signal.SIG_DFL) for number in NUMBERS}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", NUMBERS)
def test_a_request_to_terminate_is_raised_and_handlers_are_put_back(number):
    before = [signal.getsignal(each) for each in NUMBERS]
    with pytest.raises(Terminated) as caught, termination_raised():
        signal.raise_signal(number)
    assert caught.value.number == number
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with termination_raised():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_another_thread_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with termination_raised():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    settings = {"output": str(tmp_path / "run"), "strategy": {"name": "nearest_class_mean"}}
    path.write_text(dump_settings(SETTINGS | settings))
    return path


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_that_is_terminated_says_what_is_finished_and_how_to_go_on(
    file, tmp_path, monkeypatch, number
):
    folder, write = tmp_path / "run", record.RunRecord.write

    def end(self, *given):
        write(self, *given)
        if self.record.experiences.finished == 1:
            signal.raise_signal(number)

    monkeypatch.setattr(record.RunRecord, "write", end)
    result = CliRunner().invoke(app, ["run", str(file)])
    assert result.exit_code == 128 + number
    assert result.stderr == (
        f"terminated: 1 of 2 experiences are finished and on disk in {folder}; peftcl run "
        f"--resume {folder} goes on with it\n"
    )
    monkeypatch.setattr(record.RunRecord, "write", write)
    result = CliRunner().invoke(app, ["run", "--resume", str(folder)])
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "metrics.json").read_text())["complete"]


@pytest.mark.usefixtures("heard")
def test_what_is_terminated_before_anything_is_finished_says_so(file, tmp_path, monkeypatch):
    def end(self, *given):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(record.RunRecord, "write", end)
    result = CliRunner().invoke(app, ["run", str(file)])
    assert result.exit_code == 143
    folder = tmp_path / "run"
    said = f"0 of 2 experiences are finished and on disk in {folder}; peftcl run --resume {folder}"
    assert f"terminated: {said} begins it again" in result.stderr


# --- whose parent has ended ----------------------------------------------------------------------

ORPHAN = """
import sys, time
from avalanche_peftcl.runs import signals
signals._PATIENCE = 0.05
signals.end_with_parent()
if sys.argv[1] == "deaf":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(300)
"""


@pytest.mark.parametrize(("how", "code"), [("hears", -signal.SIGTERM), ("deaf", 143)])
def test_a_process_ends_when_whoever_started_it_does(how, code):
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", ORPHAN, how], stdin=pipe, stdout=pipe) as orphan:
        orphan.stdout.readline()
        assert orphan.poll() is None
        orphan.stdin.close()
        assert orphan.wait(60) == code


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_runs_of_a_sweep_end_with_it_and_the_same_command_goes_on(
    file, tmp_path, number, gone, descendants
):
    settings = {"output": str(tmp_path / "o"), "checkpoint_every": 1}
    settings |= {"strategy": {"name": "ntk_cl", "train_epochs": 10_000}}
    file.write_text(dump_settings(SETTINGS | settings))
    command = [sys.executable, "-m", "avalanche_peftcl", "run", str(file), "--seeds", "0,1"]
    command += ["--jobs", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as parent:
        for seed in (0, 1):
            while not list((tmp_path / "o" / f"seed{seed}" / "checkpoint").glob("*.checkpoint")):
                assert parent.poll() is None
                time.sleep(0.1)
        children = descendants(parent.pid)
        assert len(children) >= 2
        parent.send_signal(number)
        said = parent.communicate(timeout=120)[1]
    assert all(gone(pid) for pid in children)
    for seed in (0, 1):  # in order, though its parent could say nothing
        log = (tmp_path / "o" / f"seed{seed}" / "run.log").read_text()
        assert "terminated: 0 of 2 experiences are finished" in log
    if number == signal.SIGTERM:
        assert parent.returncode == 143
        assert said == "terminated: what is finished is on disk; the same command goes on\n"


@pytest.mark.slow
def test_a_run_that_is_terminated_inside_an_experience_goes_on(file, tmp_path):
    settings = {"output": str(tmp_path / "run"), "checkpoint_every": 1}
    settings |= {"strategy": {"name": "ntk_cl", "train_epochs": 300}}
    file.write_text(dump_settings(SETTINGS | settings))
    command = [sys.executable, "-m", "avalanche_peftcl", "run", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run" / "checkpoint" / "000002.checkpoint").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        said = process.communicate(timeout=120)[1]
    assert process.returncode == 143
    folder = tmp_path / "run"
    assert said == (
        f"terminated: 0 of 2 experiences are finished and on disk in {folder}; peftcl run "
        f"--resume {folder} goes on with it\n"
    )
    command = [*command[:4], "--resume", str(folder)]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert json.loads((folder / "metrics.json").read_text())["complete"]
