import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from avalanche_peftcl import cli
from avalanche_peftcl.checkpoints.folder import write_checkpoint
from avalanche_peftcl.config import RunConfig, load_config, parse_seeds
from avalanche_peftcl.config.plan import make_plan
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import discover
from avalanche_peftcl.runs.identity import Identity, settings_of
from avalanche_peftcl.runs.matrix_file import read_matrix
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.runs.schema import Progress, Record
from avalanche_peftcl.sweeps import children, engine, sweep
from avalanche_peftcl.sweeps import processes as sweep_local
from avalanche_peftcl.sweeps.children import Children
from avalanche_peftcl.sweeps.engine import Outcome
from avalanche_peftcl.sweeps.processes import Task, environment, last_words
from avalanche_peftcl.sweeps.sweep import run_sweep, summary

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
SETTINGS = {
    "num_threads": 1,
    "backbone": BACKBONE,
    "benchmark": {"name": "digits", "n_experiences": 2, "train_per_class": 2},
    # said, for a process of its own asks its processor
    "strategy": {"name": "nearest_class_mean", "mixed_precision": "no"},
}

CHILD = """
import json, os, pathlib, re, shutil, signal, sys, time
stage = pathlib.Path(sys.argv[1])
seed = int(re.search(r"^seed: (\\d+)$", pathlib.Path(sys.argv[2]).read_text(), re.M)[1])
folder = pathlib.Path(json.loads((stage / "folders.json").read_text())[str(seed)])
def wait_for(path):
    for _ in range(30_000):  # a test that was killed leaves nobody waiting for ever
        if path.exists():
            return
        time.sleep(0.01)
    sys.exit("error: nobody came")
with open(stage / "calls", "a") as calls:
    calls.write(f"{seed}\\n")
(stage / f"pid{seed}").write_text(str(os.getpid()))
(stage / f"started{seed}").touch()
part = (stage / f"part{seed}")
for act in part.read_text().split("|") if part.exists() else ["finish"]:
    word, _, rest = act.partition(" ")
    if word == "finish":
        for name in "metrics.json", "accuracy_matrix.csv":
            shutil.copy(stage / str(seed) / name, folder / name)
    elif word == "fail":
        sys.exit("some words\\nerror: " + rest)
    elif word == "crash":
        raise RuntimeError(rest)
    elif word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "wait":
        wait_for(stage / rest)
    elif word == "say":
        print(rest, flush=True)
    elif word == "bar":
        pathlib.Path(os.environ["AVALANCHE_PEFTCL_BAR"]).write_text(rest)
        time.sleep(0.5)
    elif word == "touch":
        (stage / rest).touch()
"""


class Stage:
    """Runs whose processes do what the test says instead of training."""

    def __init__(self, root: Path, monkeypatch, record_of) -> None:
        self.record_of = record_of
        self.root, self.output, self.lines = root / "stage", root / "out", io.StringIO()
        self.root.mkdir()
        (self.root / "child.py").write_text(CHILD)
        command = [sys.executable, "-S", str(self.root / "child.py"), str(self.root)]
        monkeypatch.setattr(children, "command", lambda words: [*command, words[1]])
        monkeypatch.setattr(sweep_local, "forked", lambda tasks: False)
        self.registry = discover()

    def config(self, seeds, **changed) -> RunConfig:
        settings = SETTINGS | {"output": self.output, "seeds": seeds} | changed
        return RunConfig.model_validate(settings)

    def record(self, config: RunConfig, seed: int, **changed) -> Record:
        numbers = {"average_incremental_accuracy": 0.8 + seed / 100, "forgetting": 0.1}
        numbers |= {"last_accuracy": 0.7 + seed / 100, "accuracy_curve": [0.9, 0.7]}
        settings = make_plan(config.for_seed(seed), self.registry).settings
        record = self.record_of(2, 2, seed=seed, accuracy=numbers, config=settings)
        return record.model_copy(update=changed)

    def write(self, config: RunConfig, seed: int, finished: int = 2) -> Path:
        done = Progress(total=2, finished=finished)
        record = self.record(config, seed, complete=finished == 2, experiences=done)
        folder = config.for_seed(seed).output
        RunRecord(folder, record).write()
        return folder / "metrics.json"

    def run(self, config: RunConfig, parts=None, **options) -> list[Outcome]:
        folders = {seed: str(config.for_seed(seed).output) for seed in config.seeds}
        (self.root / "folders.json").write_text(json.dumps(folders))
        for seed in config.seeds:
            RunRecord(self.root / str(seed), self.record(config, seed)).write()
            (self.root / f"part{seed}").unlink(missing_ok=True)
        for seed, part in (parts or {}).items():
            (self.root / f"part{seed}").write_text(part)
        (self.root / "calls").write_text("")
        self.lines = io.StringIO()
        console = options.pop("console", None) or Console(file=self.lines, width=120)
        return run_sweep(config, console=console, **options)

    @property
    def calls(self) -> list[int]:
        return [int(line) for line in (self.root / "calls").read_text().split()]

    @property
    def said(self) -> list[str]:
        return [line for line in self.lines.getvalue().splitlines() if line.startswith("seed ")]


@pytest.fixture
def stage(tmp_path, monkeypatch, record_of) -> Stage:
    return Stage(tmp_path, monkeypatch, record_of)


# --- seeds ---------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(dump_settings(SETTINGS | {"output": "out"}))
    return path


def test_seeds_come_from_the_file_or_from_the_caller(file):
    assert load_config(file).seeds is None
    assert load_config(file, ["seeds=[2, 0]"]).seeds == [2, 0]
    file.write_text(file.read_text() + "seed: 5\n")
    assert load_config(file, seeds=[0, 1]).seeds == [0, 1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seeds=[1, 2, 1, 3, 3]"], "seeds must not name a seed twice: 1, 3"),
        (["seeds=[]"], "seeds must name a seed"),
        (["seeds=1"], "seeds must be a valid list"),
        (["seeds=[0, -1]"], "seeds.1 must be greater than or equal to 0, got -1"),
        (["seeds=[0, 0.5]"], "seeds.1 must be a valid integer, got 0.5"),
        (["seeds=[a]"], "seeds.0 must be a valid integer, got 'a'"),
        (["seeds=[true]"], "seeds.0 must be a valid integer, got True"),
        (["seeds=[4294967296]"], "seeds.0 must be less than 4294967296"),
        (["seed=1", "seeds=[0]"], r"both seed and seeds are given \(1 and \[0\]\); leave one out"),
    ],
)
def test_seeds_that_cannot_be_used(file, overrides, said):
    with pytest.raises(ConfigError, match=said):
        load_config(file, overrides)


def test_one_seed_is_a_run_of_its_own(file):
    config = load_config(file, ["seeds=[3, 4]"])
    one = config.for_seed(4)
    assert (one.seed, one.seeds, one.output) == (4, None, Path("out/seed4"))
    assert "seeds" not in one.model_dump()
    with pytest.raises(ConfigError, match=r"names several seeds, \[3, 4\].*run_sweep"):
        run(config)
    with pytest.raises(ConfigError, match="has no seeds"):
        run_sweep(load_config(file))


@given(st.text(max_size=20) | st.from_regex(r"[0-9 ,+-]*", fullmatch=True))
@example("0\x1f")  # a space to regular expressions and none to int
def test_seeds_on_the_command_line_are_numbers_or_a_message(text):
    if re.fullmatch(r"\s*[0-9]{1,10}\s*(,\s*[0-9]{1,10}\s*)*", text):
        seeds = parse_seeds(text)
        assert seeds == [int(part.strip()) for part in text.split(",")]
        assert min(seeds) >= 0
    else:
        with pytest.raises(ConfigError, match="as 0,1,2"):
            parse_seeds(text)


# --- runs that end as they should, and others ----------------------------------------------------


def test_every_seed_is_run_in_a_folder_of_its_own(stage):
    config = stage.config([2, 0])
    outcomes = stage.run(config)
    assert [o.seed for o in outcomes] == [2, 0]
    assert [o.error for o in outcomes] == [None, None]
    assert outcomes[0].folder == stage.output / "seed2"
    assert outcomes[0].record.accuracy.last_accuracy == 0.72
    assert stage.calls == [2, 0]
    assert stage.said == [
        f"seed 2: started, {stage.output / 'seed2'}",
        "seed 2: finished, last accuracy 72.0 %",
        f"seed 0: started, {stage.output / 'seed0'}",
        "seed 0: finished, last accuracy 70.0 %",
    ]
    shown = stage.lines.getvalue()
    assert "nearest_class_mean on digits, in %" in shown
    assert "mean of 2" in shown
    assert "71.0 ± 1.4" in shown


def test_a_failed_run_does_not_stop_the_others_and_is_run_again_alone(stage):
    config = stage.config([0, 1, 2, 3])
    parts = {0: "fail no such folder\n  second line", 1: "kill", 2: "crash oh"}
    outcomes = stage.run(config, parts)
    assert [o.error for o in outcomes] == [
        "no such folder\n  second line",
        "killed by SIGKILL, perhaps for want of memory",
        "exit status 1: RuntimeError: oh",
        None,
    ]
    assert [o.record is None for o in outcomes] == [True, True, True, False]
    failed = stage.said.index("seed 1: failed: killed by SIGKILL, perhaps for want of memory")
    assert stage.lines.getvalue().count(f"  see {stage.output / 'seed1' / 'run.log'}\n") == 2
    assert stage.said[failed + 1] == f"seed 2: started, {stage.output / 'seed2'}"
    assert f"see {stage.output / 'seed0' / 'run.log'}" in stage.lines.getvalue()
    assert "mean of" not in stage.lines.getvalue()
    assert (stage.output / "seed0" / "run.log").read_text().startswith("some words")
    outcomes = stage.run(config)
    assert stage.calls == [0, 1, 2]
    assert [o.error for o in outcomes] == [None] * 4
    assert stage.said[0] == "seed 3: finished earlier, last accuracy 73.0 %"
    stage.run(config)
    assert stage.calls == []


def test_what_a_run_says_of_finished_experiences_is_told_as_it_comes(stage):
    lines = "say nothing|say experience 1/2  classes a|say   note|say experience 2/2  classes b"
    stage.run(stage.config([0, 1]), {0: f"{lines}|finish"})
    assert stage.said[:4] == [
        f"seed 0: started, {stage.output / 'seed0'}",
        "seed 0: experience 1/2  classes a",
        "seed 0: experience 2/2  classes b",
        "seed 0: finished, last accuracy 70.0 %",
    ]


def test_on_a_terminal_every_seed_that_runs_has_a_bar(stage):
    bar = {"description": "experience 1/2 epoch 1/5", "pace": "loss 0.5", "completed": 1}
    bar |= {"total": 4}
    config, parts = stage.config([0, 1]), {0: f"bar {json.dumps(bar)}|touch a|wait b|finish"}
    terminal = io.StringIO()
    console = Console(file=terminal, width=80, force_terminal=True)
    stage.run(config, parts | {1: "wait a|touch b|finish"}, jobs=2, console=console)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "seed 0 1/2 epoch 1/5 " in shown
    assert "loss 0.5" in shown
    assert "seed 1 starts" in shown


def test_seeds_do_not_begin_inside_the_folder_of_a_run(stage):
    config = stage.config([0, 1])
    RunRecord(config.output, stage.record(config, 0)).write()
    before = sorted(config.output.iterdir())
    with pytest.raises(ConfigError) as caught:
        stage.run(config, overwrite=True)
    assert str(caught.value) == (
        f"{config.output} holds a run of its own, and the folders of the seeds would lie inside "
        f"it; choose another folder (output={config.output}-seeds), or move that run away "
        f"(mv {config.output} {config.output}-first)"
    )
    assert sorted(config.output.iterdir()) == before
    stage.write(config, 0)  # as an earlier version would have run it
    assert [outcome.error for outcome in stage.run(config)] == [None, None]
    assert f"warning: {config.output} holds a run of its own beside" in stage.lines.getvalue()


def test_a_run_is_finished_when_its_record_says_so(stage):
    config = stage.config([0, 1])
    (outcome, other) = stage.run(config, {0: "touch nothing", 1: "finish"})
    assert outcome.error == f"it ended without a complete record in {stage.output / 'seed0'}"
    assert other.error is None


def test_an_unfinished_record_is_replaced(stage):
    config = stage.config([0, 1])
    stage.write(config, 0, finished=1)
    left = ".lock", "run.log", ".metrics.json.0123456789abcdef.part"  # by one killed at its start
    (stage.output / "seed1").mkdir()
    for name in left:
        (stage.output / "seed1" / name).touch()
    assert [o.error for o in stage.run(config)] == [None, None]
    assert stage.calls == [0, 1]


def test_how_a_run_was_computed_does_not_matter(stage):
    earlier = stage.config([0], num_threads=3, num_workers=2)
    stage.write(earlier, 0)
    stage.run(stage.config([0]))
    assert stage.calls == []


def test_options_without_effect_that_an_older_record_has_do_not_matter(stage):
    config = stage.config([0], strategy={"name": "pegp"}, module={"name": "lora", "r": 4})
    record = stage.write(config, 0)
    told = json.loads(record.read_text())
    assert "peft" not in told["config"]["strategy"]
    told["config"]["strategy"] |= {"peft": "adapter", "r": 5, "length": 10, "blocks": None}
    record.write_text(json.dumps(told))
    stage.run(config)
    assert stage.calls == []
    now = settings_of(make_plan(config.for_seed(0), stage.registry).settings)
    was = now | {"strategy": now["strategy"] | {"peft": "adapter", "r": 5, "length": 10}}
    Identity(settings=now).check({"settings": was}, stage.output)


def test_an_earlier_name_of_a_value_is_of_the_same_run(stage):
    config = stage.config([0], strategy={"name": "pegp"})
    record = stage.write(config, 0)
    told = json.loads(record.read_text())
    assert told["config"]["strategy"]["peft"] == "attention_adapter"
    told["config"]["strategy"]["peft"] = "adapter"
    record.write_text(json.dumps(told))
    stage.run(config)
    stage.run(stage.config([0], strategy={"name": "pegp", "peft": "adapter"}))
    assert stage.calls == []


# --- records that are in the way -----------------------------------------------------------------


def test_a_finished_run_of_another_configuration_is_refused_with_the_difference(stage):
    earlier = stage.config([0, 1], strategy={"name": "naive", "lr": 0.5})
    files = [stage.write(earlier, seed) for seed in (0, 1)]
    before = [file.read_bytes() for file in files]
    config = stage.config([0, 1, 2], strategy={"name": "naive", "lr": 0.25})
    with pytest.raises(ConfigError) as caught:
        stage.run(config)
    said = str(caught.value)
    assert f"{stage.output / 'seed0'}, {stage.output / 'seed1'}: a run of another" in said
    assert "  strategy.lr: 0.5 there, 0.25 here" in said
    assert said.count("there, ") == 1
    assert "--overwrite" in said
    assert stage.calls == []
    assert [file.read_bytes() for file in files] == before
    stage.run(config, overwrite=True)
    assert sorted(stage.calls) == [0, 1, 2]


def test_an_unfinished_run_of_another_configuration_is_kept_if_it_got_anywhere(stage):
    earlier = stage.config([0], strategy={"name": "naive"})
    config = stage.config([0])
    stage.write(earlier, 0, finished=1)
    with pytest.raises(ConfigError, match=r"strategy\.name: 'naive' there"):
        stage.run(config)
    stage.write(earlier, 0, finished=0)
    stage.run(config)
    assert stage.calls == [0]


@pytest.mark.parametrize(
    ("changed", "versions", "said"),
    [
        ({"num_workers": 1}, {}, "other settings: num_workers was 0, is 1"),
        ({}, {"torch": "1.0"}, r"other versions: torch was '1\.0', is"),
    ],
    ids=["settings", "versions"],
)
def test_checkpoints_that_another_sweep_could_use_are_kept(stage, changed, versions, said):
    config = stage.config([0])
    one = config.for_seed(0)
    identity = Identity.of(make_plan(one, stage.registry)).saved()
    identity["versions"] |= versions
    folder = one.output / "checkpoint"
    write_checkpoint(folder, {"identity": identity}, number=1)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=f"{said}(.|\n)*--overwrite"):
        stage.run(stage.config([0], **changed))
    assert stage.calls == []
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    for options in ({"overwrite": True}, {}):  # without, the damaged one is of no use
        stage.run(stage.config([0], **changed), **options)
        assert stage.calls == [0]
        (one.output / "metrics.json").unlink()
        (folder / "000001.checkpoint").write_bytes(b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read as a run record"),
        ('{"format": 1, "compl', "cannot be read as a run record"),
        ("[1]", "cannot be read as a run record: .* it has no key 'format'"),
        ('{"format": 1}', "the key 'seed' is missing; if there are checkpoints, peftcl run --res"),
        ('{"format": 7, "complete": true}', "has format 7; this version reads formats 1 and 2"),
        ("[" * 100_000, "cannot be read as a run record"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused_and_kept(stage, content, said):
    config = stage.config([0, 1])
    path = stage.write(config, 1)
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        stage.run(config)
    assert stage.calls == []
    assert path.read_text() == content


def test_mistakes_are_told_once_and_before_anything_runs(stage):
    with pytest.raises(ConfigError, match="unknown option 'lrr'"):
        stage.run(stage.config([0, 1], strategy={"name": "naive", "lrr": 1}))
    with pytest.raises(ConfigError, match="there is no device 'cuda:99'"):
        stage.run(stage.config([0, 1], device="cuda:99"))
    stage.output.mkdir(exist_ok=True)
    (stage.output / "seed1").write_text("a file")
    with pytest.raises(ConfigError, match="is a file"):
        stage.run(stage.config([0, 1]))
    assert stage.calls == []


# --- several at a time ---------------------------------------------------------------------------


def test_jobs_run_side_by_side_and_are_told_in_the_order_of_ending(stage):
    config = stage.config([0, 1])
    stage.run(config, {0: "wait started1|wait ended1|finish", 1: "finish|touch ended1"}, jobs=2)
    ends = [line for line in stage.said if "started" not in line]
    assert sorted(stage.calls) == [0, 1]
    assert len(ends) == 2
    assert [line.endswith("%") for line in ends] == [True, True]
    log = stage.output / "seed0" / "run.log"
    assert log.read_text() == ""


def test_a_killed_run_among_several_breaks_no_other(stage):
    parts = {0: "wait started1|kill", 1: "wait started0|finish"}
    outcomes = stage.run(stage.config([0, 1, 2]), parts, jobs=2)
    assert [o.error is None for o in outcomes] == [False, True, True]


def test_cores_are_shared_out_unless_somebody_says_otherwise(stage, monkeypatch):
    monkeypatch.setattr(sweep_local, "cores", lambda: 9)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    config = stage.config([0], num_threads=None)
    assert environment(config, 4)["OMP_NUM_THREADS"] == "2"
    assert environment(config, 20)["MKL_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in environment(config, 1)
    assert "OMP_NUM_THREADS" not in environment(stage.config([0], num_threads=3), 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert environment(config, 4)["OMP_NUM_THREADS"] == "5"
    assert "MKL_NUM_THREADS" not in environment(config, 4)


def test_a_process_that_cannot_be_started_is_a_failed_run(stage, monkeypatch):
    monkeypatch.setattr(children, "command", lambda words: ["/no/such/program", *words])
    (outcome,) = stage.run(stage.config([0]))
    assert outcome.error.startswith("FileNotFoundError")


def test_the_last_words_of_a_run(tmp_path):
    log = tmp_path / "run.log"
    for text, said in [
        ("experience 1\nerror: the end\n  of it\n", "the end\n  of it"),
        ("error: at once", "at once"),
        ("Traceback\nKeyError: 3\n", "exit status 2: KeyError: 3"),
        ("", "exit status 2"),
    ]:
        log.write_text(text)
        assert last_words(log, 2) == said
    assert last_words(log, -15) == "killed by SIGTERM"
    assert last_words(log, -250) == "killed by 250"


# --- being stopped -------------------------------------------------------------------------------


@pytest.fixture
def set_signal():
    """Set what signals do, until the test ends."""
    earlier = {}

    def set_one(number, action) -> None:
        before = signal.signal(number, action)
        earlier.setdefault(number, before)

    yield set_one
    for number, action in earlier.items():
        signal.signal(number, action)


def act_when_seed_1_waits(stage, monkeypatch, act) -> None:
    def say(console, text):
        console.print(text, soft_wrap=True)
        if text.startswith("seed 1: started"):
            while not (stage.root / "started1").exists():
                time.sleep(0.01)
            act()

    monkeypatch.setattr(engine, "say", say)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_stopping_stops_the_runs_and_says_what_is_finished(
    stage, monkeypatch, set_signal, name, gone
):
    # where the tests themselves are a background job, interrupts are ignored
    set_signal(signal.SIGINT, signal.default_int_handler)
    config, number = stage.config([0, 1, 2]), getattr(signal, name)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    act_when_seed_1_waits(stage, monkeypatch, lambda: signal.raise_signal(number))
    with pytest.raises(KeyboardInterrupt):
        stage.run(config, {1: "wait the end of time"})
    said = stage.lines.getvalue()
    assert "stopped; finished seeds: 0; the same command goes on with 1, 2" in said
    assert "ignored" not in said
    assert gone(int((stage.root / "pid1").read_text()))
    assert stage.calls == [0, 1]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers


def test_what_is_ignored_when_a_sweep_begins_stays_so_and_another_way_is_told(
    stage, monkeypatch, set_signal, gone
):
    def act():
        for each in deaf:
            signal.raise_signal(each)
            assert signal.getsignal(each) == signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGTERM)

    deaf = [signal.SIGINT, signal.SIGHUP]  # a background job of a script; nohup
    for each in deaf:
        set_signal(each, signal.SIG_IGN)
    act_when_seed_1_waits(stage, monkeypatch, act)
    with pytest.raises(KeyboardInterrupt):
        stage.run(stage.config([0, 1, 2]), {1: "wait the end of time"})
    said = stage.lines.getvalue()
    assert (
        f"interrupts are ignored, as in every background job of a script; kill {os.getpid()} "
        in (said)
    )
    assert "stopped; finished seeds: 0; the same command goes on with 1, 2" in said
    assert gone(int((stage.root / "pid1").read_text()))


def test_a_second_interrupt_leaves_no_process_behind(tmp_path, monkeypatch):
    both, log = Children(), (tmp_path / "log").open("wb")
    # deaf to a request to terminate, as a process in the midst of a long computation
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True)"
    command = [sys.executable, "-S", "-c", f"{code}; time.sleep(300)"]
    monkeypatch.setattr(children, "command", lambda words: command)
    with log:
        started = [both.start([], log, os.environ) for _ in range(2)]
    while (tmp_path / "log").stat().st_size < 2:
        time.sleep(0.01)
    waits = iter([KeyboardInterrupt])

    def wait(child, *seconds):
        for error in waits:
            raise error
        return original(child, *seconds)

    original = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(KeyboardInterrupt):
        both.stop()
    assert [child.returncode for child in started] == [-signal.SIGKILL] * 2


# --- the table -----------------------------------------------------------------------------------


def test_the_summary_says_what_is_missing(stage):
    config = stage.config([0, 1])
    whole, half = (stage.record(config, seed) for seed in (0, 1))
    numbers = half.accuracy.model_copy(update={"forgetting": None})
    half = half.model_copy(update={"accuracy": numbers})
    outcomes = [Outcome(0, Path("a"), whole), Outcome(1, Path("b"), half)]
    outcomes.append(Outcome(2, Path("c"), error="killed"))
    console = Console(file=io.StringIO(), width=100)
    console.print(summary(config, outcomes))
    rows = [re.split(r"\s{2,}", line.strip()) for line in console.file.getvalue().splitlines()]
    assert rows[-6:-3] == [
        ["0", "80.0", "70.0", "10.0"],
        ["1", "81.0", "71.0", "-"],
        ["2", "failed"],
    ]
    assert rows[-2] == ["mean of 2", "80.5 ± 0.7", "70.5 ± 0.7", "-"]


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """Put a stand-in in the place of the sweep; it returns what was asked for."""
    seen = []

    def stand_in(config, *, console, **options):
        seen.append((config.seeds, options))
        return [Outcome(seed, Path(), error="no" if seed == 13 else None) for seed in config.seeds]

    monkeypatch.setattr(sweep, "run_sweep", stand_in)
    return seen


@pytest.mark.parametrize(
    ("words", "seeds", "options"),
    [
        (["--seeds", "0,1"], [0, 1], {}),
        (["--seeds", "0, 2", "--jobs", "2", "--overwrite"], [0, 2], {"jobs": 2, "overwrite": True}),
        (["seeds=[4]"], [4], {}),
        (["--seeds", "1", "--ray"], [1], {"ray": "local"}),
        (["--ray", "--seeds", "1"], [1], {"ray": "local"}),
        (["--seeds=1", "--floors"], [1], {"floors": True}),
        (["--ray", "strategy.lr=1", "--seeds=1"], [1], {"ray": "local"}),
        (["--seeds=1", "--ray", "auto"], [1], {"ray": "auto"}),
        (["--seeds=1", "--ray", "head:6379", "strategy.lr=1"], [1], {"ray": "head:6379"}),
        (["--seeds=1", "--ray=ray://10.0.0.1:10001"], [1], {"ray": "ray://10.0.0.1:10001"}),
    ],
)
def test_the_command_asks_for_what_was_typed(file, asked, words, seeds, options):
    result = CliRunner().invoke(cli.app, ["run", str(file), *words])
    assert result.exit_code == 0, result.stderr
    assert asked == [
        (seeds, {"jobs": 1, "ray": None, "overwrite": False, "floors": False} | options)
    ]


def test_the_command_fails_if_a_run_failed(file, asked):
    assert CliRunner().invoke(cli.app, ["run", str(file), "--seeds", "1,13"]).exit_code == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "0,a"], "seeds '0,a' are not whole numbers from 0"),
        (["--seeds", "-1"], "seeds '-1' are not whole numbers from 0"),
        (["--seeds", ""], "seeds '' are not whole numbers"),
        (["--seeds", "1,1"], "seeds must not name a seed twice: 1"),
        (["--seeds", "0,1", "seed=3"], "both seed and seeds are given"),
        (["--seeds", "9999999999"], "seeds.0 must be less than"),
        (["--jobs", "2"], "--jobs and --ray are for several seeds"),
        (["--ray"], "--jobs and --ray are for several seeds"),
    ],
)
def test_mistakes_are_one_message(file, asked, words, said):
    result = CliRunner().invoke(cli.app, ["run", str(file), *words])
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert asked == []


def test_ray_takes_no_jobs(stage):
    with pytest.raises(ConfigError, match="jobs is for this machine"):
        stage.run(stage.config([0]), jobs=2, ray="local")


# --- for real ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_run_is_that_of_its_seed_alone(tmp_path):
    config = RunConfig.model_validate(SETTINGS | {"output": tmp_path / "out", "seeds": [3]})
    (outcome,) = run_sweep(config)
    assert outcome.error is None, (outcome.folder / "run.log").read_text()
    alone = run(RunConfig.model_validate(SETTINGS | {"output": tmp_path / "alone", "seed": 3}))
    assert read_matrix(outcome.folder, 2) == alone.metrics["accuracy_matrix"]
    assert outcome.record.weights_sha256 == alone.record.weights_sha256
    assert "experience 2/2" in (outcome.folder / "run.log").read_text()
    assert Task(config.for_seed(3), "seed 3").log == outcome.folder / "run.log"


@pytest.mark.slow
@pytest.mark.parametrize("again", [{}, {"overwrite": True}], ids=["goes on", "anew"])
def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch, again):
    config = RunConfig.model_validate(SETTINGS | {"output": tmp_path, "seeds": [3]})

    class Stops(RunProgress):
        def end(self, finished, *more, **named):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config.for_seed(3), reporter=Stops())
    # settings that say how, not what, may change meanwhile
    changed = config.model_copy(update={"checkpoint_every": 2} if not again else {})
    (outcome,) = run_sweep(changed, **again)
    log = (outcome.folder / "run.log").read_text()
    assert outcome.error is None, log
    assert len(outcome.record.resumed_at) == (not again)
    assert ("goes on from its checkpoint, 1 experiences finished" in log) == (not again)
    alone = run(RunConfig.model_validate(SETTINGS | {"output": tmp_path / "alone", "seed": 3}))
    assert read_matrix(outcome.folder, 2) == alone.metrics["accuracy_matrix"]


@pytest.mark.slow
def test_an_interrupt_of_the_command_ends_its_runs(file, tmp_path, gone, descendants):
    settings = {"name": "ntk_cl", "train_epochs": 10_000}
    file.write_text(dump_settings(SETTINGS | {"strategy": settings, "output": str(tmp_path / "o")}))
    command = [sys.executable, "-m", "avalanche_peftcl", "run", str(file), "--seeds", "0,1"]
    with subprocess.Popen([*command, "--jobs", "2"], stderr=subprocess.PIPE, text=True) as parent:
        for seed in (0, 1):
            while not (tmp_path / "o" / f"seed{seed}" / "metrics.json").exists():
                assert parent.poll() is None
                time.sleep(0.1)
        begun = descendants(parent.pid)
        # a job in the background of a shell ignores interrupts, and so do its children
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        parent.send_signal(signal.SIGTERM if ignored else signal.SIGINT)
        assert parent.wait(60) == 130
        assert parent.stderr.read().startswith("interrupted: ")
    assert len(begun) >= 2
    assert all(gone(pid) for pid in begun)
