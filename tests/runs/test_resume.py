"""A run that is stopped and gone on with ends like one that never was, bit for bit."""

import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, class_accuracy_metrics, loss_metrics
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.plugins import SupervisedPlugin
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from avalanche_peftcl import Component
from avalanche_peftcl.checkpoints import folder as checkpoint
from avalanche_peftcl.checkpoints.folder import read_checkpoint
from avalanche_peftcl.cli import app
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.errors import CheckpointError, CheckpointWarning, ConfigError
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs import checkpoints, facts, record
from avalanche_peftcl.runs.command import resume_from_folder
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.run import run

TIMES = re.compile("Seconds|Memory")


class Stopped(BaseException):
    """What stops a run here; nobody catches it."""


class Stop(SupervisedPlugin):
    """Stops a run at the n-th call of a callback."""

    at: ClassVar[tuple[str, int] | None] = None
    seen: ClassVar[dict[str, int]] = {}

    @classmethod
    def set(cls, at: tuple[str, int] | None) -> None:
        cls.at, cls.seen = at, {}

    def _call(self, name: str) -> None:
        self.seen[name] = self.seen.get(name, 0) + 1
        if self.at == (name, self.seen[name]):
            raise Stopped

    def before_training_exp(self, strategy, **kwargs):
        self._call("before_training_exp")

    def after_training_iteration(self, strategy, **kwargs):
        self._call("after_training_iteration")

    def after_training_exp(self, strategy, **kwargs):
        self._call("after_training_exp")

    def before_eval(self, strategy, **kwargs):
        self._call("before_eval")


class Forgetful(SupervisedPlugin):
    """Remembers something that nobody can ask for."""

    def __init__(self):
        super().__init__()
        self.seen = object()


def some_metrics():
    return [
        *accuracy_metrics(epoch=True, epoch_running=True, stream=True, trained_experience=True),
        *loss_metrics(epoch=True),
        *class_accuracy_metrics(epoch=True),
    ]


class OwnNaive(Naive):
    """A strategy of which nobody knows what it remembers."""


def host_naive(*, backbone, device, plugins, evaluator):
    """Build a strategy that is none of ours."""
    model = torch.nn.Sequential(backbone, IncrementalClassifier(backbone.embed_dim))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    return Naive(model=model, optimizer=optimizer, plugins=plugins, evaluator=evaluator)


def own_naive(*, backbone, device, plugins, evaluator):
    built = host_naive(backbone=backbone, device=device, plugins=plugins, evaluator=evaluator)
    built.__class__ = OwnNaive
    return built


@pytest.fixture(scope="module")
def registry():
    provider = Provider("test-package", "1.2")
    offered = [
        ("strategy_plugin", Component("stop", Stop, source="test")),
        ("strategy_plugin", Component("forgetful", Forgetful, source="test")),
        ("strategy", Component("host_naive", host_naive, source="test")),
        ("strategy", Component("own_naive", own_naive, source="test")),
        ("metric", Component("some", some_metrics, source="test")),
    ]
    more = [Entry(kind, component, provider) for kind, component in offered]
    return Registry([*discover().entries(), *more])


@pytest.fixture(autouse=True)
def nothing_stops():
    Stop.set(None)


def settings(output: Path, **changed: Any) -> RunConfig:
    given = {
        "output": output,
        "num_threads": 1,
        "seed": 5,
        "backbone": {"name": "vit_glyph", "img_size": 16},
        "benchmark": DIGITS,
        "strategy": {"name": "naive", "train_epochs": 2, "train_mb_size": 4},
        "plugins": [],
    }
    given |= changed
    given["plugins"] = [{"name": "stop"}, *given["plugins"]]
    return RunConfig.model_validate(given)


def stop_and_go_on(
    config: RunConfig, registry: Registry, *stops: tuple[str, int]
) -> list[tuple[int, int, int] | None]:
    """Run, stop at each of the points in turn, and go on to the end.

    Returns where the run went on each time: experience, epoch and minibatch, ``None`` between
    experiences.
    """
    places = []
    for i, at in enumerate(stops):
        Stop.set(at)
        with pytest.raises(Stopped):
            run(config, registry=registry, resume=i > 0)
        _, state = read_checkpoint(config.output / "checkpoint")
        assert state["standing"]["visited"] + (state["position"] is not None) > 0
        inside = state["position"]
        place = inside and (state["standing"]["visited"], inside["epoch"], inside["iteration"])
        places.append(place)
    Stop.set(None)
    done = run(config, registry=registry, resume=True)
    assert len(done.metrics["resumed_at"]) == len(stops)
    return places


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        yield path, len(value)
        for i, inner in enumerate(value):
            yield from leaves(inner, f"{path}.{i}")
    elif isinstance(value, torch.Tensor):
        bits = value.detach().contiguous().flatten().view(torch.uint8)
        yield path, (value.dtype, tuple(value.shape), value.stride(), bits.numpy().tobytes())
    elif isinstance(value, float):
        yield path, "nan" if math.isnan(value) else value.hex()
    else:
        yield path, value


def end_of(folder: Path) -> dict[str, Any]:
    """Return all that the last checkpoint of a run holds, but the times."""
    found = read_checkpoint(folder / "checkpoint")
    state = found[1]
    for key in ("started_at", "resumed_at"):
        del state["standing"][key]
    (evaluator,) = (p for p in state["strategy"]["plugins"] if p["class"] == "EvaluationPlugin")
    del evaluator["state"]["host"]["metrics"][1]  # the cost
    for holder, kind in (
        (evaluator["state"]["host"], "last"),
        (evaluator["state"]["host"], "all"),
        (state["standing"], "further"),
    ):
        holder[kind] = {k: v for k, v in holder[kind].items() if not TIMES.search(k)}
    return dict(leaves(state))


def recorded(folder: Path) -> dict[str, Any]:
    """Return what a run recorded, but for the times and the folder."""
    metrics = json.loads((folder / "metrics.json").read_text())
    for key in ("started_at", "resumed_at", "written_at"):
        del metrics[key]
    for key in ("training_seconds", "evaluation_seconds", "peak_memory_bytes"):
        del metrics["cost"][key]
    for key in ("output", "checkpoint_every"):
        del metrics["config"][key]
    metrics["further_metrics"] = {
        k: v for k, v in metrics["further_metrics"].items() if not TIMES.search(k)
    }
    return metrics


def assert_same(one: Path, other: Path) -> None:
    assert recorded(one) == recorded(other)
    a, b = end_of(one), end_of(other)
    assert a.keys() == b.keys()
    assert [key for key in a if a[key] != b[key]] == []


DIGITS = {"name": "digits", "classes_per_experience": [4, 3, 3], "train_per_class": 4}
DIGITS |= {"validation_per_class": 2}  # few images to test on
NAIVE = {"name": "naive", "train_epochs": 2, "train_mb_size": 4}
PEGP = {"name": "pegp", "train_epochs": 2, "head_epochs": 1, "train_mb_size": 4, "n_samples": 8}
NTK = {"name": "ntk_cl", "train_epochs": 2, "train_mb_size": 4}
CASES: dict[str, dict[str, Any]] = {
    "naive": {"strategy": NAIVE},
    "ntk_cl": {"strategy": NTK},
    "ntk_cl released": {"strategy": NTK | {"recipe": "released"}},
    "ntk_cl kernel": {"strategy": NTK | {"recipe": "kernel", "train_epochs": 1}},
    "pegp": {"strategy": PEGP},
    "pegp released": {"strategy": PEGP | {"recipe": "released"}},
    "nearest_class_mean": {"strategy": {"name": "nearest_class_mean"}},
}


# of a plain run; what trains by the same loop as another is slow
_SCENARIOS = {"ntk_cl kernel": "class", "pegp": "class"}


@pytest.mark.parametrize(
    ("case", "scenario"),
    [
        pytest.param(
            case,
            scenario,
            id=f"{case.replace(' ', '-')}-{scenario}",
            marks=[pytest.mark.slow] if _SCENARIOS.get(case) != scenario else [],
        )
        for case in CASES
        for scenario in ("class", "online")
    ],
)
def test_stopped_between_and_inside_experiences(case, scenario, registry, tmp_path):
    changed = CASES[case] | {"benchmark": DIGITS | {"scenario": scenario, "experience_size": 4}}
    starts = {0, 4, 7} if scenario == "online" else {None}
    run(settings(tmp_path / "whole", **changed), registry=registry)

    if case in ("naive", "nearest_class_mean"):  # to the others it happens below, too
        between = settings(tmp_path / "between", **changed)
        assert stop_and_go_on(between, registry, ("before_eval", 2)) == [None]
        assert_same(tmp_path / "whole", tmp_path / "between")

    if case != "nearest_class_mean":  # which has no steps
        inside = settings(tmp_path / "inside", **changed, checkpoint_every=3)
        stops = ("after_training_iteration", 5), ("before_eval", 2), ("after_training_exp", 1)
        places = stop_and_go_on(inside, registry, *stops)
        assert {place[0] for place in places if place} - starts  # also after the first chunk
        assert_same(tmp_path / "whole", tmp_path / "inside")


FURTHER: dict[str, dict[str, Any]] = {
    "adamw, clipped, accumulated": {
        "strategy": NAIVE
        | {"optimizer": "adamw", "lr": 0.01, "accumulation_steps": 2, "max_grad_norm": 1.0}
    },
    "augmented, by two processes": {
        "benchmark": DIGITS | {"augment": "random_resized_crop"},
        "num_workers": 2,
    },
    "augmented": {"benchmark": DIGITS | {"augment": "random_resized_crop"}},
    # a model that draws, and a memory that is shuffled again just before the checkpoint
    "replay": {
        "strategy": NTK | {"train_mb_size": 2},
        "plugins": [{"name": "replay", "mem_size": 5}],
        "stop": 21,
    },
    "replay, online": {
        "plugins": [{"name": "replay", "mem_size": 5}],
        "benchmark": DIGITS
        | {"scenario": "online", "experience_size": 8, "augment": "random_resized_crop"},
    },
    "ewc and lwf": {"plugins": [{"name": "ewc", "ewc_lambda": 9.0}, {"name": "lwf"}]},
    "pieces on task labels": {
        "benchmark": DIGITS | {"scenario": "task"},
        "plugins": [
            {"name": "retention", "weight": 0.1},
            {"name": "gradient_projection", "threshold": 0.9, "n_samples": 8},
        ],
    },
    "domains, all evaluated, metrics of Avalanche": {
        "benchmark": {"name": "digits", "scenario": "domain", "n_experiences": 3}
        | {"train_per_class": 2, "validation_per_class": 1},
        "evaluate": "all",
        "metrics": [{"name": "some"}],
    },
    "several copies": {"strategy": NTK | {"n_copies": 2, "use_pretrained": True}},
    "dora of peft, prompts with projection": {
        "module": {"name": "peft_tuner", "tuner": "lora", "use_dora": True, "r": 2, "blocks": [1]},
        "strategy": PEGP | {"threshold": 0.9},
    },
    "bfloat16": {"strategy": NAIVE | {"mixed_precision": "bf16"}},
}


# what others here, and every state in tests/checkpoints, show in less time
_SLOW = (
    "bfloat16",
    "augmented, by two processes",
    "augmented",
    "replay",
    "several copies",
    "ewc and lwf",
    "dora of peft, prompts with projection",
    "domains, all evaluated, metrics of Avalanche",
)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=re.sub("[, ]+", "-", case),
            marks=[pytest.mark.slow] if case in _SLOW else [],
        )
        for case in FURTHER
    ],
)
def test_whatever_remembers_something_goes_on(case, registry, tmp_path):
    changed = dict(FURTHER[case])
    stops = ("after_training_iteration", changed.pop("stop", 13)), ("before_eval", 1)
    run(settings(tmp_path / "whole", **changed), registry=registry)
    inside = settings(tmp_path / "inside", **changed, checkpoint_every=2)
    places = stop_and_go_on(inside, registry, *stops)
    assert any(places)
    assert_same(tmp_path / "whole", tmp_path / "inside")


# --- what is refused, and what is told ---------------------------------------------------------

QUICK = {"strategy": {"name": "nearest_class_mean"}}


@pytest.fixture
def stopped(registry, tmp_path):
    """The configuration of a run that was stopped while its second experience trained."""
    config = settings(tmp_path / "stopped", **QUICK)
    Stop.set(("before_training_exp", 2))
    with pytest.raises(Stopped):
        run(config, registry=registry)
    Stop.set(None)
    return config


def shown(function, *args, **kwargs) -> str:
    console = Console(file=io.StringIO(), width=300)
    function(*args, **kwargs, reporter=RunProgress(console))
    return console.file.getvalue()


def test_the_same_command_says_how_to_go_on(stopped, registry):
    before = (stopped.output / "metrics.json").read_bytes()
    said = rf"already holds a run.*go on with it by peftcl run --resume {stopped.output} "
    with pytest.raises(ConfigError, match=said):
        run(stopped, registry=registry)
    assert (stopped.output / "metrics.json").read_bytes() == before
    run(stopped, registry=registry, resume=True)
    with pytest.raises(ConfigError, match="already holds a run") as caught:
        run(stopped, registry=registry)
    assert "--resume" not in str(caught.value)


def test_a_finished_run_is_not_trained_again(stopped, registry):
    first = run(stopped, registry=registry, resume=True)
    files = {p: p.read_bytes() for p in stopped.output.rglob("*") if p.is_file()}
    Stop.set(("before_training_exp", 1))
    text = shown(run, stopped, registry=registry, resume=True)
    assert text == f"the run in {stopped.output} is complete; there is nothing left to do\n"
    again = run(stopped, registry=registry, resume=True).metrics
    assert again == json.loads(json.dumps(first.metrics))
    assert again.items() >= read(first.folder).items()
    assert {p: p.read_bytes() for p in stopped.output.rglob("*") if p.is_file()} == files


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def test_the_record_tells_when_it_went_on(stopped, registry):
    assert read(stopped.output)["resumed_at"] == []
    text = shown(run, stopped, registry=registry, resume=True)
    assert "goes on from its checkpoint, 1 experiences finished" in text
    metrics = read(stopped.output)
    assert len(metrics["resumed_at"]) == 1
    assert metrics["started_at"] <= metrics["resumed_at"][0] <= metrics["written_at"]


def test_the_network_in_the_folder_is_that_of_the_finished_experiences(registry, tmp_path):
    config = settings(tmp_path / "run", checkpoint_every=2)
    for stop in ("after_training_iteration", 13), ("after_training_iteration", 1):
        Stop.set(stop)  # in the second experience, both times
        with pytest.raises(Stopped):
            run(config, registry=registry, resume=True)
        network = (config.output / "model.safetensors").read_bytes()
        if stop[1] == 13:
            whole = network
    assert len(read(config.output)["resumed_at"]) == 1
    assert network == whole


def test_two_processes_do_not_write_one_run(stopped, registry):
    code = "import sys; from avalanche_peftcl.files import held, Path\n"
    code += "with held(Path(sys.argv[1])): print(flush=True); input()"
    command, pipe = [sys.executable, "-c", code, str(stopped.output)], subprocess.PIPE
    before = {p: p.read_bytes() for p in stopped.output.rglob("*") if p.is_file()}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as other:
        other.stdout.readline()
        for how in {"resume": True}, {"overwrite": True}, {"resume": True, "overwrite": True}:
            with pytest.raises(ConfigError, match="another process is running in"):
                run(stopped, registry=registry, **how)
        assert {p: p.read_bytes() for p in stopped.output.rglob("*") if p.is_file()} == before
        other.kill()
    assert run(stopped, registry=registry, resume=True).metrics["complete"] is True


def test_a_record_of_another_version_is_refused(stopped, registry):
    path = stopped.output / "metrics.json"
    metrics = json.loads(path.read_text())
    for changed in ({"format": 1}, {"format": 3}, {"format": 3, "complete": True}, {"format": "x"}):
        path.write_text(json.dumps(metrics | changed))
        before = path.read_bytes()
        said = rf"has format {changed['format']!r}, this version of .* writes 2; go on with the one"
        with pytest.raises(CheckpointError, match=said):
            run(stopped, registry=registry, resume=True)
        assert path.read_bytes() == before


@pytest.mark.parametrize("left", ["{", '{"format": 2, "complete": true}'])
def test_a_spoilt_record_is_made_again_from_the_checkpoint(left, stopped, registry, tmp_path):
    run(stopped, registry=registry, resume=True)
    whole = recorded(stopped.output)
    (stopped.output / "metrics.json").write_text(left)
    run(stopped, registry=registry, resume=True)
    assert recorded(stopped.output) == whole


def test_a_run_of_which_nothing_is_finished_begins_anew(registry, tmp_path):
    config = settings(tmp_path / "run", **QUICK)
    run(settings(tmp_path / "whole", **QUICK), registry=registry, resume=True)
    Stop.set(("before_training_exp", 1))
    with pytest.raises(Stopped):
        run(config, registry=registry)
    Stop.set(None)
    other = settings(tmp_path / "run", **QUICK, seed=6)
    with pytest.raises(CheckpointError, match="with other settings: seed was 5, is 6"):
        run(other, registry=registry, resume=True)
    run(config, registry=registry, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_the_folder_may_have_moved(stopped, registry, tmp_path):
    shutil.move(stopped.output, tmp_path / "moved")
    moved = stopped.model_copy(update={"output": tmp_path / "moved", "checkpoint_every": 9})
    assert run(moved, registry=registry, resume=True).metrics["complete"] is True


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": 6}, "seed was 5, is 6, benchmark.seed was 5, is 6"),
        ({"num_workers": 1}, "num_workers was 0, is 1"),
        (
            {"strategy": {"name": "nearest_class_mean", "eval_mb_size": 32}},
            "strategy.eval_mb_size was 64, is 32",
        ),
        (
            {"plugins": [{"name": "stop"}, {"name": "ewc"}]},
            "plugins.1.name was not there, is 'ewc'",
        ),
    ],
    ids=["seed", "workers", "option", "plugin"],
)
@pytest.mark.parametrize("finished", [False, True], ids=["unfinished", "finished"])
def test_another_configuration_is_refused(stopped, registry, changed, said, finished):
    if finished:
        run(stopped, registry=registry, resume=True)
    before = {p: p.read_bytes() for p in stopped.output.rglob("*") if p.is_file()}
    other = RunConfig.model_validate(stopped.model_dump() | changed)
    with pytest.raises(CheckpointError, match="with other settings") as caught:
        run(other, registry=registry, resume=True)
    assert said in str(caught.value)
    assert str(stopped.output) in str(caught.value)
    assert "start anew (--overwrite" in str(caught.value)
    assert {p: p.read_bytes() for p in stopped.output.rglob("*") if p.is_file()} == before


def test_images_may_have_moved_and_must_be_the_same(registry, tmp_path):
    for part, count in (("train", 3), ("test", 1)):
        for name in "abcd":
            (tmp_path / "here" / part / name).mkdir(parents=True)
            for i in range(count):
                color = (50 * "abcd".index(name), 20 * i, 0)
                Image.new("RGB", (8, 8), color).save(tmp_path / "here" / part / name / f"{i}.png")

    def at(place: str) -> RunConfig:
        benchmark = {"name": "image_folder", "root": str(tmp_path / place), "n_experiences": 2}
        return settings(tmp_path / "run", benchmark=benchmark)

    Stop.set(("before_training_exp", 2))
    with pytest.raises(Stopped):
        run(at("here"), registry=registry)
    Stop.set(None)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = tmp_path / "there" / "train" / "a" / "0.png"
    moved.rename(moved.with_name("9.png"))
    with pytest.raises(CheckpointError, match="other data: split_sha256 was"):
        run(at("there"), registry=registry, resume=True)
    moved.with_name("9.png").rename(moved)
    assert run(at("there"), registry=registry, resume=True).metrics["complete"]


def test_other_versions_are_refused(stopped, registry, monkeypatch):
    there = facts.version
    versions = {"torch": "1.0", "timm": "0.1"}
    monkeypatch.setattr(facts, "version", lambda name: versions.get(name) or there(name))
    said = (
        rf"other versions: torch was {there('torch')!r}, is '1.0', timm was .*, is '0.1'; install"
    )
    with pytest.raises(CheckpointError, match=said):
        run(stopped, registry=registry, resume=True)


def test_another_version_of_a_plugin_package_is_refused(stopped, registry):
    changed = [
        Entry(e.kind, e.component, Provider("test-package", "1.3"))
        if e.provider.name == "test-package"
        else e
        for e in registry.entries()
    ]
    with pytest.raises(CheckpointError, match=r"test-package was '1\.2', is '1\.3'"):
        run(stopped, registry=Registry(changed), resume=True)


def test_other_weights_and_other_images_are_refused(stopped, registry, monkeypatch):
    from avalanche_peftcl.runs import journal as module

    monkeypatch.setattr(module, "weights_sha256", lambda backbone: "0")
    with pytest.raises(
        CheckpointError, match=r"other weights of the backbone: it was '.*', is '0'"
    ):
        run(stopped, registry=registry, resume=True)
    monkeypatch.undo()
    describe = module.describe_stream

    def fewer(*args):
        stream = describe(*args)
        less = stream.experiences[1].model_copy(update={"train_images": 11})
        return stream.model_copy(update={"experiences": [stream.experiences[0], less]})

    monkeypatch.setattr(module, "describe_stream", fewer)
    said = r"other data: experiences\.1\.train_images was 12, is 11"
    with pytest.raises(CheckpointError, match=said):
        run(stopped, registry=registry, resume=True)


def test_a_damaged_checkpoint_is_passed_over(registry, tmp_path):
    run(settings(tmp_path / "whole", **QUICK), registry=registry)
    config = settings(tmp_path / "run", **QUICK)
    Stop.set(("before_training_exp", 3))
    with pytest.raises(Stopped):
        run(config, registry=registry)
    Stop.set(None)
    newest = config.output / "checkpoint" / "000002.checkpoint"
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(CheckpointWarning, match="000002.checkpoint is damaged"):
        run(config, registry=registry, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_damaged_checkpoints_stop_before_anything_is_changed(stopped, registry):
    path = stopped.output / "checkpoint" / "000001.checkpoint"
    path.write_bytes(path.read_bytes()[:100])
    before = {p: p.read_bytes() for p in stopped.output.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match=r"checkpoint/000001\.checkpoint is damaged"):
        run(stopped, registry=registry, resume=True)
    assert {p: p.read_bytes() for p in stopped.output.rglob("*") if p.is_file()} == before


def test_a_checkpoint_that_belongs_elsewhere_is_refused(stopped, registry):
    checkpoint.write_checkpoint(stopped.output / "checkpoint", {"x": 1}, number=2)
    with pytest.raises(CheckpointError, match="is none of a run"):
        run(stopped, registry=registry, resume=True)


def test_a_checkpoint_whose_state_does_not_fit_is_refused(stopped, registry):
    folder = stopped.output / "checkpoint"
    _, state = read_checkpoint(folder)
    state["strategy"]["plugins"][1]["class"] = "Other"
    checkpoint.write_checkpoint(folder, state, number=2)
    with pytest.raises(CheckpointError, match="a Stop stands where a Other stood"):
        run(stopped, registry=registry, resume=True)
    del state["strategy"]["model"]["head.counts"]
    checkpoint.write_checkpoint(folder, state, number=3)
    with pytest.raises(CheckpointError, match=r"do not fit PEFTModel: missing: .*counts"):
        run(stopped, registry=registry, resume=True)


def _damage(folder: Path) -> None:
    for path in folder.glob("*.checkpoint"):
        path.write_bytes(path.read_bytes()[:100])


def _disown(folder: Path) -> None:
    """Give the checkpoint a state that fits only when all is built."""
    _, state = read_checkpoint(folder)
    del state["strategy"]["model"]["head.counts"]
    checkpoint.write_checkpoint(folder, state, number=3)


@pytest.mark.parametrize("spoil", [None, _damage, _disown])
def test_with_overwrite_a_run_goes_on_if_it_can_and_else_begins_anew(
    spoil, stopped, registry, tmp_path
):
    said = Console(file=io.StringIO(), width=200)
    if spoil is not None:
        spoil(stopped.output / "checkpoint")
    done = run(stopped, registry=registry, resume=True, overwrite=True, reporter=RunProgress(said))
    run(stopped.model_copy(update={"output": tmp_path / "whole"}), registry=registry)
    assert_same(tmp_path / "whole", stopped.output)
    assert len(done.metrics["resumed_at"]) == (spoil is None)
    assert ("it cannot go on and begins anew: " in said.file.getvalue()) == (spoil is not None)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(registry, tmp_path, monkeypatch):
    run(settings(tmp_path / "whole", **QUICK), registry=registry)
    config = settings(tmp_path / "run", **QUICK)
    real, calls = checkpoints.write_checkpoint, []

    def full(folder, state, **how):
        calls.append(how)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        real(folder, state, **how)

    monkeypatch.setattr(checkpoints, "write_checkpoint", full)
    Stop.set(("before_eval", 3))
    with pytest.warns(CheckpointWarning) as told, pytest.raises(Stopped):
        run(config, registry=registry)
    assert [str(w.message) for w in told if w.category is CheckpointWarning] == [
        f"no checkpoint could be written to {config.output / 'checkpoint'}: [Errno 28] No space "
        "left on device; the run goes on and tries again; if it is stopped before one is written, "
        f"peftcl run --resume {config.output} goes on after experience 1, from its last checkpoint"
    ]
    assert len(calls) == 3  # and once more before the next experience trained
    assert read(config.output)["experiences"]["finished"] == 2
    monkeypatch.undo()
    Stop.set(None)
    run(config, registry=registry, resume=True)  # from the first, the only one
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_a_record_that_cannot_be_written_is_an_error(stopped, registry, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record, "replace_file", full)
    way_out = f"once it can be, peftcl run --resume {stopped.output} goes on"
    with pytest.raises(ConfigError, match=rf"cannot write the .*No space left.*; {way_out}"):
        run(stopped, registry=registry, resume=True)
    monkeypatch.undo()
    assert run(stopped, registry=registry, resume=True).metrics["complete"] is True


def test_a_plugin_whose_memory_nobody_knows_is_told_once(registry, tmp_path):
    config = settings(tmp_path / "run", **QUICK, plugins=[{"name": "forgetful"}])
    Stop.set(("before_training_exp", 2))
    with pytest.warns(CheckpointWarning) as told, pytest.raises(Stopped):
        run(config, registry=registry)
    why = (
        "Forgetful.seen is a object, whose state is not known; say what Forgetful keeps: "
        'remembers = ("name", ...), or remembers = () for nothing'
    )
    messages = [str(w.message) for w in told if w.category is CheckpointWarning]
    assert messages == [f"if this run is stopped, it cannot be resumed: {why}"]
    assert not (config.output / "checkpoint").exists()
    assert read(config.output)["resume_obstacles"] == [why]
    with pytest.raises(CheckpointError, match=rf"left no checkpoint, for {re.escape(why)}; start"):
        run(config, registry=registry, resume=True)
    Stop.set(None)
    with pytest.warns(CheckpointWarning, match="cannot be resumed"):
        assert run(config, registry=registry, overwrite=True).metrics["complete"] is True


def test_a_strategy_of_the_host_goes_on_but_not_inside_an_experience(stopped, registry, tmp_path):
    changed = {"strategy": {"name": "host_naive"}, "checkpoint_every": 3}
    config = RunConfig.model_validate(stopped.model_dump() | changed)
    before = {p: p.read_bytes() for p in stopped.output.rglob("*") if p.is_file()}
    with pytest.raises(ConfigError, match="checkpoint_every=3, but Naive cannot be taken down in"):
        run(config, registry=registry, overwrite=True)
    assert {p: p.read_bytes() for p in stopped.output.rglob("*") if p.is_file()} == before
    straight = config.model_copy(update={"checkpoint_every": None, "output": tmp_path / "straight"})
    run(straight, registry=registry)
    config = straight.model_copy(update={"output": tmp_path / "again"})
    assert stop_and_go_on(config, registry, ("before_training_exp", 2)) == [None]
    assert end_of(config.output) == end_of(straight.output)


def test_a_strategy_that_nobody_knows_runs_and_cannot_be_resumed(stopped, registry):
    config = RunConfig.model_validate(stopped.model_dump() | {"strategy": {"name": "own_naive"}})
    with pytest.warns(CheckpointWarning, match="resumed: OwnNaive is a Naive and does not say"):
        metrics = run(config, registry=registry, overwrite=True).metrics
    assert metrics["complete"] is True


def test_overwriting_removes_the_checkpoints(stopped, registry):
    old = (stopped.output / "checkpoint" / "000001.checkpoint").read_bytes()
    Stop.set(("before_training_exp", 1))
    with pytest.raises(Stopped):
        run(stopped, registry=registry, overwrite=True)
    assert not (stopped.output / "checkpoint").exists()
    Stop.set(None)
    run(stopped, registry=registry, overwrite=True)
    assert (stopped.output / "checkpoint" / "000003.checkpoint").read_bytes() != old


def test_the_folder_knows_its_configuration(stopped, registry, monkeypatch):
    from avalanche_peftcl.runs import run as module

    monkeypatch.setattr(module, "discover", lambda: registry)
    console = Console(file=io.StringIO(), width=200)
    config = stopped.output / "config.yaml"
    with pytest.raises(CheckpointError, match="other settings: seed was 5, is 1"):
        resume_from_folder(stopped.output, config, ["seed=1"], False, console)
    resume_from_folder(stopped.output, None, [], False, console)
    assert read(stopped.output)["complete"] is True
    nowhere = stopped.output / "nowhere"
    with pytest.raises(ConfigError, match="nowhere holds no run to go on with: there is no"):
        resume_from_folder(nowhere, None, [], False, console)
    assert not nowhere.exists()


# --- on the command line -----------------------------------------------------------------------


@pytest.fixture
def half_done(tmp_path, monkeypatch):
    """The folder of a run whose last checkpoint was made before its last record was written."""
    config = {"output": str(tmp_path / "run"), "backbone": {"name": "vit_glyph", "img_size": 16}}
    config |= {"benchmark": DIGITS, "strategy": {"name": "nearest_class_mean"}}
    file = tmp_path / "run.yaml"
    file.write_text(dump_settings(config))
    write = record.RunRecord.write

    def stop(self, *written):
        if self.record.complete:
            raise KeyboardInterrupt
        write(self, *written)

    monkeypatch.setattr(record.RunRecord, "write", stop)
    result = CliRunner().invoke(app, ["run", str(file)])
    assert result.exit_code == 130
    folder = tmp_path / "run"
    said = f"3 of 3 experiences are finished and on disk in {folder}; peftcl run --resume {folder} "
    assert f"interrupted: {said}goes on with it" in result.stderr
    monkeypatch.setattr(record.RunRecord, "write", write)
    return tmp_path / "run"


def test_the_command_goes_on_and_then_has_nothing_to_do(half_done):
    result = CliRunner().invoke(app, ["run", str(half_done.with_suffix(".yaml"))])
    assert result.exit_code == 2
    assert f"go on with it by peftcl run --resume {half_done}" in result.stderr
    result = CliRunner().invoke(app, ["run", "--resume", str(half_done)])
    assert result.exit_code == 0, result.output
    assert "goes on from its checkpoint, 3 experiences finished" in result.stdout
    assert "last accuracy" in result.stdout
    assert read(half_done)["complete"] is True
    result = CliRunner().invoke(app, ["run", "--resume", str(half_done)])
    assert result.exit_code == 0
    assert "is complete; there is nothing left to do" in result.stdout


def test_the_command_tells_of_damaged_checkpoints(half_done):
    for number, code in ((3, 0), (2, 2)):
        path = half_done / "checkpoint" / f"00000{number}.checkpoint"
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        metrics = (half_done / "metrics.json").read_bytes()
        result = CliRunner().invoke(app, ["run", "--resume", str(half_done)])
        assert result.exit_code == code, result.output
        assert f"00000{number}.checkpoint is damaged" in result.stderr
        assert result.stderr.startswith("warning: " if code == 0 else "error: ")
        assert "Traceback" not in result.output + result.stderr
        if code == 0:  # it went on from the second; damage both now
            assert read(half_done)["complete"] is True
            (half_done / "metrics.json").write_bytes(metrics)
            newest = half_done / "checkpoint" / "000004.checkpoint"
            newest.write_bytes(b"")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=1"], "was begun with other settings: seed was 0, is 1"),
        (["no/such.yaml"], "there is no file no/such.yaml"),
    ],
    ids=["another seed", "no file"],
)
def test_the_command_refuses_in_one_line(half_done, words, said):
    if words[0].startswith("seed"):
        words = [str(half_done.with_suffix(".yaml")), *words]
    result = CliRunner().invoke(app, ["run", *words, "--resume", str(half_done)])
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.output + result.stderr
