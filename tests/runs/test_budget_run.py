"""A run with a budget: recorded, told, gone on with to the same end."""

import io
import json
import re
from contextlib import suppress

import pytest
import torch
from avalanche.core import SupervisedPlugin
from rich.console import Console

from avalanche_peftcl import Component
from avalanche_peftcl.checkpoints.folder import read_checkpoint
from avalanche_peftcl.config import RunConfig, load_config
from avalanche_peftcl.config.json_schema import json_schema
from avalanche_peftcl.errors import BudgetError, CheckpointError, ConfigError
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.dry_run import dry_run
from avalanche_peftcl.runs.floors import floor_runs
from avalanche_peftcl.runs.run import run

IMAGES = [16, 12, 12]


class Stopped(BaseException):
    """What stops a run here; nobody catches it."""


class Stop(SupervisedPlugin):
    """Stops a run after so many minibatches."""

    left = 0

    def after_training_iteration(self, strategy, **kwargs):
        Stop.left -= 1
        if not Stop.left:
            raise Stopped


@pytest.fixture(scope="module")
def registry():
    entry = Entry("strategy_plugin", Component("stop", Stop, source="test"), Provider("test", "1"))
    return Registry([*discover().entries(), entry])


def settings(output, **changed):
    given = {
        "output": output,
        "num_threads": 1,
        "backbone": {"name": "vit_glyph", "img_size": 16},
        "benchmark": {
            "name": "digits",
            "classes_per_experience": [4, 3, 3],
            "train_per_class": 4,
            "validation_per_class": 2,
        },
        "strategy": {"name": "naive", "train_epochs": 2, "train_mb_size": 4},
        "budget": {"passes": 1.5},
        "plugins": ["stop"],
    }
    return RunConfig.model_validate(given | changed)


@pytest.fixture(scope="module")
def whole(registry, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(settings(folder), registry=registry)
    return folder


def weights(folder):
    _, state = read_checkpoint(folder / "checkpoint")
    return state["strategy"]["model"], state["strategy"]["optimizer"], state["random"]


def flat(value):
    if isinstance(value, dict):
        return [x for key in sorted(value, key=str) for x in flat(value[key])]
    if isinstance(value, list | tuple):
        return [x for inner in value for x in flat(inner)]
    return [value.tolist() if isinstance(value, torch.Tensor) else value]


def test_it_is_recorded_and_told(whole):
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["config"]["budget"]["passes"] == 1.5
    assert metrics["cost"]["training_passes"] == [1.5, 20 / 12, 20 / 12]
    assert metrics["cost"]["training_steps"] == [6, 5, 5]
    budget = metrics["plugins"]["BudgetPlugin"]
    assert budget["passes"] == 1.5
    assert budget["experiences"][0] == {
        "experience": 1,
        "ended": True,
        "training_passes": 1.5,
        "epochs": 1.5,
        "train_epochs": 2,
    }
    summary = (whole / "summary.md").read_text()
    assert "- budget: 1.5 passes a training image\n" in summary
    assert "budget: 1.5 of 1.5 passes, which ended training after 1.5 of 2 epochs" in summary
    assert "- passes of the backbone for a training image: 1.5, 1.667, 1.667 (16 steps)" in summary
    assert load_config(whole / "config.yaml").budget.passes == 1.5


@pytest.mark.parametrize(
    "minibatches",
    [pytest.param(3, marks=pytest.mark.slow), 6, pytest.param(8, marks=pytest.mark.slow)],
    ids=["before", "as it ends", "after"],
)
def test_what_goes_on_ends_the_same(whole, registry, tmp_path, minibatches):
    config = settings(tmp_path / "run", checkpoint_every=1)
    Stop.left = minibatches
    with pytest.raises(Stopped):
        run(config, registry=registry)
    done = run(config, registry=registry, resume=True)
    metrics = json.loads((whole / "metrics.json").read_text())
    for key in ("training_passes", "training_steps"):
        assert done.metrics["cost"][key] == metrics["cost"][key]
    assert done.metrics["plugins"] == metrics["plugins"]
    assert flat(weights(tmp_path / "run")) == flat(weights(whole))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["class", "online"])
@pytest.mark.parametrize("passes", [1.5, 2.75, 3.5], ids=["first", "between", "second"])
def test_stages_and_chunks_go_on_to_the_same_end(registry, tmp_path, scenario, passes):
    pegp = {"name": "pegp", "train_epochs": 2, "head_epochs": 1, "train_mb_size": 4}
    changed = {"strategy": pegp | {"n_samples": 8}, "budget": {"passes": passes}}
    benchmark = settings(tmp_path).benchmark.model_dump() | {"scenario": scenario}
    changed["benchmark"] = benchmark | ({"experience_size": 6} if scenario == "online" else {})
    Stop.left = 0
    straight = run(settings(tmp_path / "straight", **changed), registry=registry)
    config = settings(tmp_path / "run", checkpoint_every=1, **changed)
    for minibatches in (7, 6, 5):
        Stop.left = minibatches
        with suppress(Stopped):
            run(config, registry=registry, resume=(tmp_path / "run").exists())
    Stop.left = 0
    done = run(config, registry=registry, resume=True)
    for key in ("training_passes", "training_steps"):
        assert done.metrics["cost"][key] == straight.metrics["cost"][key]
    assert done.metrics["plugins"] == straight.metrics["plugins"]
    assert flat(weights(tmp_path / "run")) == flat(weights(tmp_path / "straight"))


def test_another_budget_is_another_run(whole, registry):
    for budget in (None, {"passes": 2.0}, {"passes": 1.5, "seconds": 100.0}):
        config = settings(whole, budget=budget)
        with pytest.raises(CheckpointError, match=r"other settings: budget"):
            run(config, registry=registry, resume=True)


def test_what_keeps_too_much_ends_with_an_error_and_what_is_finished_stays(
    whole, registry, tmp_path
):
    floats = json.loads((whole / "metrics.json").read_text())["cost"]["stored_floats"]
    budget = {"passes": 0.25, "stored_floats": floats - 1}  # the head grows
    with pytest.raises(BudgetError, match=rf"after experience 3 {floats:,} floats .* in head"):
        run(settings(tmp_path / "run", budget=budget), registry=registry)
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["experiences"] == {"total": 3, "finished": 2}


def test_floors_have_none(registry, tmp_path):
    floors = floor_runs(settings(tmp_path / "run"), registry)
    assert {floor.output.name for floor in floors} == {"nearest_class_mean", "ridge"}
    assert all(floor.budget is None for floor in floors)
    alike = settings(tmp_path / "run", strategy="nearest_class_mean", plugins=[])
    assert [floor.output.name for floor in floor_runs(alike, registry)] == ["ridge"]


def test_a_dry_run_names_it(registry, tmp_path):
    text = io.StringIO()
    Stop.left = 0
    dry_run(settings(tmp_path / "run"), console=Console(file=text, width=200), registry=registry)
    assert "budget: 1.5 passes a training image; the estimate" in text.getvalue()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            {"pases": 2},
            r"unknown key 'budget.pases' \(did you mean 'passes'\?\); the keys are passes, sec",
        ),
        ({"passes": -1}, r"budget\.passes must be greater than 0, got -1"),
        ({"passes": "two"}, r"budget\.passes must be a valid number, got 'two'"),
        ({"stored_floats": 1.5}, r"budget\.stored_floats must be a valid integer, got 1\.5"),
        ({}, r"budget must have one of passes, seconds, stored_floats, or be null, got \{\}"),
        (3, r"budget must be a mapping, such as \{passes: 2\}; got 3"),
    ],
)
def test_what_is_no_budget_is_told_in_one_line(budget, message, tmp_path):
    given = settings(tmp_path).model_dump(mode="json", exclude_unset=True)
    with pytest.raises(ConfigError, match=message) as error:
        load_config("run.yaml", settings=given | {"budget": budget})
    assert not re.search(r"\n", str(error.value))


def test_an_editor_knows_it(registry):
    schema = json_schema(registry)
    assert schema["properties"]["budget"]["anyOf"][0] == {"$ref": "#/$defs/BudgetConfig"}
    assert schema["$defs"]["BudgetConfig"]["additionalProperties"] is False
