"""The logs of a sweep: nothing in them is lost, and each run is quoted alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.files import held_log
from avalanche_peftcl.sweeps import children, processes
from avalanche_peftcl.sweeps.processes import Event, Task, last_words, run_processes
from avalanche_peftcl.sweeps.ray import work_on

RECORD = {"format": 2, "complete": False, "config": {}, "experiences": {"finished": 1}}
HOLD = """
import sys
from avalanche_peftcl.files import Path, held_log
with held_log(Path(sys.argv[1])) as log:
    log.write(b"experience 1/2\\nerror: of the run that goes on\\n")
    log.flush()
    print(flush=True)
    input()
"""


@pytest.fixture
def task(tmp_path) -> Task:
    benchmark = {"name": "image_folder", "root": "nowhere", "n_experiences": 1}
    settings = {"output": tmp_path / "run", "backbone": "vit_glyph", "benchmark": benchmark}
    return Task(RunConfig.model_validate(settings | {"strategy": "naive"}), "seed 0")


@pytest.fixture
def says(monkeypatch):
    """Return a function that sets what the process of a run says, and how it ends."""

    def say(text: str, code: int = 2) -> None:
        program = f"import sys; print({text!r}, flush=True); sys.exit({code})"
        command = [sys.executable, "-S", "-c", program]
        monkeypatch.setattr(children, "command", lambda words: command)
        monkeypatch.setattr(processes, "forked", lambda tasks: False)

    return say


def outcome(task: Task) -> str | None:
    *_, last = run_processes([task], jobs=1)
    assert last.ended
    return last.error


def test_what_earlier_attempts_said_stays_and_is_not_quoted(task, says):
    says("experience 1/2\nerror: no room")
    assert outcome(task) == "no room"
    says("nothing to say of it", 3)
    assert outcome(task) == "exit status 3: nothing to say of it"
    first, mark, second = task.log.read_text().partition("--- again, ")
    assert first == "experience 1/2\nerror: no room\n"
    assert mark
    assert second.endswith("\nnothing to say of it\n")
    assert last_words(task.log, 3) == "no room\n" + mark + second.strip()  # all of the log


def test_a_run_that_replaces_another_begins_its_log_anew(task, says):
    task.log.parent.mkdir()
    task.log.write_text("mine")
    anew = Task(task.config, task.name, anew=True)
    says("first")
    outcome(anew)
    assert task.log.read_text().startswith("mine--- again, ")  # no record says whose it is
    (task.config.output / "metrics.json").write_text(json.dumps(RECORD))
    says("second")
    outcome(anew)
    assert task.log.read_text() == "second\n"


def test_the_log_of_a_run_that_goes_on_is_neither_emptied_nor_quoted(task, says):
    says("experience 1/2")
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLD, str(task.log)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as other:
        other.stdout.readline()
        before = task.log.read_bytes()
        busy = f"another process is running in {task.config.output}; wait until it ends, or end it"
        for anew in False, True:
            events = list(run_processes([Task(task.config, task.name, anew=anew)], jobs=1))
            assert [event.error for event in events] == [f"{busy} first"]
        settings = task.config.model_dump(mode="json")
        assert work_on(settings, os.getcwd(), True) == f"{busy} first"
        assert task.log.read_bytes() == before
        other.kill()
    says("done", 0)
    assert outcome(task) is None


def test_this_process_does_not_let_go_of_a_log_by_asking_twice(task):
    with held_log(task.log) as log:
        log.write(b"here")
        for _ in range(2):
            assert "another process is running in" in str(outcome(task))
    assert task.log.read_text() == "here"


def link(task: Task, target: Path) -> None:
    task.log.symlink_to(target)


def folder(task: Task, target: Path) -> None:
    task.log.mkdir()


def pipe(task: Task, target: Path) -> None:
    os.mkfifo(task.log)


@pytest.mark.parametrize("make", [link, folder, pipe])
def test_what_is_no_log_is_not_written_to(task, says, tmp_path, make):
    says("hello")
    task.log.parent.mkdir()
    (tmp_path / "outside").write_text("mine")
    make(task, tmp_path / "outside")
    events = list(run_processes([task], jobs=1))
    assert [event.ended for event in events] == [True]
    assert events[0].error.startswith(f"cannot write {task.log}: ")
    assert (tmp_path / "outside").read_text() == "mine"


def test_a_log_with_a_second_name_elsewhere_is_parted_from_it(task, says, tmp_path):
    task.log.parent.mkdir()
    (tmp_path / "outside").write_text("mine\n")
    task.log.hardlink_to(tmp_path / "outside")
    says("hello")
    outcome(task)
    assert (tmp_path / "outside").read_text() == "mine\n"
    assert task.log.read_text().startswith("mine\n--- again, ")
    assert task.log.read_text().endswith("\nhello\n")


def test_a_run_says_where_it_starts(task, says):
    says("hello", 0)
    assert list(run_processes([task], jobs=1)) == [Event(task), Event(task, ended=True)]


def test_runs_of_one_seed_are_kept_apart(task, says, tmp_path):
    says("hello", 0)
    config = task.config.model_copy(update={"output": tmp_path / "other"})
    other = Task(config, "trial 1")
    (tmp_path / "other").write_text("a file")
    events = list(run_processes([task, other], jobs=2, bars=True))
    ends = {event.task.name: event.error for event in events if event.ended}
    assert ends["seed 0"] is None
    assert str(tmp_path / "other") in ends["trial 1"]
