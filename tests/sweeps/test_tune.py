"""Searching options on images that are no test images."""

import csv
import re

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from avalanche_peftcl import cli
from avalanche_peftcl.config import RunConfig, load_config
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.sweeps import engine
from avalanche_peftcl.sweeps.processes import Event
from avalanche_peftcl.sweeps.tune import tune

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
SETTINGS = {
    "num_threads": 1,
    "backbone": BACKBONE,
    "benchmark": {"name": "digits", "n_experiences": 2, "train_per_class": 4},
    "strategy": {"name": "naive", "train_epochs": 1, "mixed_precision": "no"},
}


@pytest.fixture
def ran(monkeypatch):
    """Run trials in this process, and tell which."""
    done = []

    def here(tasks, *, jobs, bars):
        for task in tasks:
            yield Event(task)
            done.append(task.name)
            try:
                run(task.config, overwrite=task.anew, resume=not task.anew)
            except ConfigError as error:
                yield Event(task, ended=True, error=str(error))
            else:
                yield Event(task, ended=True)

    monkeypatch.setattr(engine, "run_processes", here)
    return done


def config_in(folder, **changes) -> RunConfig:
    return RunConfig.model_validate({**SETTINGS, "output": str(folder / "run"), **changes})


def test_first_experience(tmp_path, ran):
    console = Console(record=True, width=100)
    config = config_in(tmp_path, seeds=[3, 4], metrics=["any_time"])
    found = tune(config, trials=3, held_out=2, console=console)
    assert ran == ["trial 0", "trial 1", "trial 2"]
    folder = tmp_path / "run-tune"

    records = [read_record(folder / f"trial{k}") for k in range(3)]
    for record in records:  # one experience, held-out training images, no test image
        assert (record.experiences.finished, record.experiences.total) == (1, 2)
        assert record.protocol.tested_on == "held-out training images"
        assert record.config.benchmark.options["validation_per_class"] == 2
        assert record.seed == 3
        assert record.config.metrics == []
    rates = [record.config.strategy.options["lr"] for record in records]
    assert rates[0] == 0.025
    assert len(set(rates)) == 3
    scores = [record.accuracy_matrix[0][0] for record in records]
    assert [trial.score for trial in found.trials] == scores
    best = max(range(3), key=lambda k: (scores[k], -k))
    assert found.tuned.values == {"strategy.lr": rates[best]}

    tuned = load_config(folder / "tuned.yaml")
    assert tuned.seeds == [3, 4]
    assert tuned.strategy.options["lr"] == rates[best]
    assert tuned.benchmark == config.benchmark
    assert tuned.stop_after is None
    assert tuned.tuned == found.tuned
    assert found.tuned.said().startswith("3 trials of strategy.lr on held-out training images of")
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["score"]) for row in rows] == scores
    assert str(folder / "tuned.yaml") in console.export_text()

    # the record of a run says how it was tuned
    record = run(tuned.for_seed(4)).record
    assert record.config.tuned == found.tuned
    assert record.complete

    # finished trials keep no checkpoints
    assert list(folder.glob("*/checkpoint")) == []

    # the same command goes on, more trials add to those that are there
    ran.clear()
    more = tune(config, trials=4, held_out=2)
    assert ran == ["trial 3"]
    assert more.trials[:3] == found.trials


def test_another_stream_is_seen_whole_and_nothing_of_this_one(tmp_path, ran):
    other = tmp_path / "other.yaml"
    changed = {"name": "digits", "n_experiences": 5, "train_per_class": 3, "class_order": "natural"}
    other.write_text(yaml.safe_dump({**SETTINGS, "output": "unused", "benchmark": changed}))
    asked = ["strategy.lr=[0.01, 0.1]"]
    config = config_in(tmp_path)
    found = tune(config, trials=2, phase=f"other:{other}", search=asked, held_out=2)
    record = read_record(tmp_path / "run-tune/trial1")
    assert record.complete
    assert record.experiences.total == 5
    assert found.tuned.phase == "other"
    assert found.tuned.benchmark["n_experiences"] == 5
    assert found.trials[1].score == record.accuracy.last_accuracy
    assert load_config(found.file).benchmark == config.benchmark


def test_a_trial_that_breaks_is_told_and_others_count(tmp_path, ran, monkeypatch):
    def broken(tasks, *, jobs, bars):
        for task in tasks:
            yield Event(task)
            if task.name == "trial 0":
                yield Event(task, ended=True, error="out of memory")
            else:
                run(task.config)
                yield Event(task, ended=True)

    monkeypatch.setattr(engine, "run_processes", broken)
    console = Console(record=True, width=200)
    found = tune(config_in(tmp_path), trials=2, held_out=2, console=console)
    assert found.tuned.failed == 1
    assert found.tuned.score_before is None
    assert found.trials[1].score == found.tuned.score
    assert "out of memory" in console.export_text()
    with pytest.raises(ConfigError, match=r"no trial in .* has a score.*out of memory"):
        tune(config_in(tmp_path / "b"), trials=1, held_out=2)


def test_other_trials_in_the_folder_are_not_mixed_in(tmp_path, ran):
    tune(config_in(tmp_path), trials=1, held_out=2)
    with pytest.raises(ConfigError, match="another configuration"):
        tune(config_in(tmp_path), trials=1, held_out=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"phase": "last"}, "neither 'first_experience' nor 'other:FILE'"),
        ({"phase": "other"}, "neither 'first_experience' nor 'other:FILE'"),
        ({"phase": "other:none.yaml"}, "there is no file none.yaml"),
        ({"held_out": 0}, "holds out no image"),
        ({"trials": 0}, "trials=0 is not from 1 to"),
        ({"search": ["strategy.rl"]}, "did you mean"),
        ({"jobs": 2, "ray": "local"}, "jobs is for this machine"),
    ],
)
def test_what_cannot_be_searched_is_refused_before_anything_runs(tmp_path, ran, options, said):
    with pytest.raises(ConfigError, match=said):
        tune(config_in(tmp_path), **options)
    assert not ran
    assert not (tmp_path / "run-tune").exists()


def test_a_benchmark_that_holds_nothing_out_is_refused(tmp_path, ran):
    config = config_in(tmp_path, benchmark={"name": "image_text", "root": "x", "captions": "y"})
    with pytest.raises(ConfigError, match="has no option 'validation_per_class'"):
        tune(config)


def test_joint_training_has_no_first_experience(tmp_path, ran):
    config = config_in(tmp_path, strategy={"name": "joint", "train_epochs": 1})
    with pytest.raises(ConfigError, match="trains on all experiences at once"):
        tune(config, trials=1, held_out=2)


@pytest.mark.slow
def test_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {**SETTINGS, "output": "run"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    words = ["tune", "run.yaml", "--trials", "3", "--held-out", "2", "--jobs", "2"]
    ended = CliRunner().invoke(cli.app, words)
    assert ended.exit_code == 0, ended.output
    assert re.search(r"trial 2: strategy.lr [0-9.e-]+: [0-9.]+ %", ended.output)
    again = CliRunner().invoke(cli.app, words)
    assert again.output.count("finished earlier") == 3
    tuned = load_config("run-tune/tuned.yaml")
    assert tuned.tuned is not None
    assert tuned.tuned.trials == 3
