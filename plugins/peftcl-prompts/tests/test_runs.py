"""Through ``peftcl``: found, listed, run in every scenario, gone on with, exported, predicted."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

import avalanche_peftcl
from avalanche_peftcl.benchmarks import digits
from avalanche_peftcl.cli import app
from avalanche_peftcl.config import RunConfig, load_config
from avalanche_peftcl.registry import discover

HERE = Path(__file__).parents[1]
SCENARIOS = ("class", "task", "domain", "online")
SHORT = {"train_epochs": 1, "lr": 0.01}
PGP = [{"name": "gradient_projection", "threshold": 0.5, "n_samples": 8}]
METHODS = {
    "l2p": {"strategy": {"name": "l2p", **SHORT}},
    "dualprompt": {"strategy": {"name": "dualprompt", "g_blocks": [0], "e_blocks": [1], **SHORT}},
    "coda_prompt": {"strategy": {"name": "coda_prompt", "components": 3, **SHORT}},
    "one_prompt": {
        "strategy": {"name": "one_prompt", "short_blocks": [0], "long_blocks": [1], **SHORT}
    },
    "s_prompts": {"strategy": {"name": "s_prompts", **SHORT}},
    "vpt_nsp": {"strategy": {"name": "vpt_nsp", **SHORT}},
    "hide_prompt": {
        "strategy": {"name": "hide_prompt", "align_epochs": 1, "align_samples": 4, **SHORT}
    },
    "l2p with pgp": {"strategy": {"name": "l2p", **SHORT}, "plugins": PGP},
}
STOPPER = '''
from avalanche.training.plugins import SupervisedPlugin
from avalanche_peftcl import Component, hookimpl

class Stopped(BaseException):
    """What stops a run here; nobody catches it."""

class Stop(SupervisedPlugin):
    remembers = ()
    armed = True

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def before_training_exp(self, strategy, **kwargs):
        if self.armed and strategy.experience.current_experience == self.at:
            raise Stopped

@hookimpl
def peftcl_strategy_plugins():
    yield Component("stop", Stop, source="test")
'''


@pytest.fixture
def stopper(tmp_path, monkeypatch):
    """A package whose plugin stops a run before an experience, until it is told not to."""
    (tmp_path / "stopper.py").write_text(STOPPER, encoding="utf-8")
    info = tmp_path / "stopper-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stopper\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[avalanche_peftcl]\nstopper = stopper\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda: sys.modules["stopper"]
    sys.modules.pop("stopper", None)


def config(output, method, *, scenario="class", **changes):
    settings = {
        "output": str(output),
        "backbone": {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 32}
        | {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 16},
        "benchmark": {"name": "digits", "scenario": scenario, "n_experiences": 2}
        | ({"train_per_class": 6} if scenario != "online" else {"train_per_class": 3}),
        "num_threads": 1,
    }
    settings |= METHODS[method]
    settings["strategy"] = settings["strategy"] | {"mixed_precision": "no"}
    return RunConfig.model_validate(settings | changes)


def each_method(*quick):
    """Parametrize over the methods; those that are not among ``quick`` are for a long run of tests.

    The contracts say of each the same, in seconds, without a run's files.
    """
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "method", [m if m in quick else pytest.param(m, marks=slow) for m in METHODS]
    )


def own_scenario(method):
    return "domain" if method == "s_prompts" else "class"


def serves(method, scenario):
    name = METHODS[method]["strategy"]["name"]
    return scenario in discover().get("strategy", name).component.scenarios


def matrix(folder):
    return list(csv.reader((folder / "accuracy_matrix.csv").open(encoding="utf-8")))


@pytest.mark.parametrize("name", sorted({m["strategy"]["name"] for m in METHODS.values()}))
def test_found(name, installed):
    registry = discover()
    entry = registry.get("strategy", name)
    assert entry.provider.name == "peftcl-prompts"
    assert entry.provider.version == installed["version"]
    assert registry.schema("strategy", name).options is not None


def test_listing_imports_nothing_heavy():
    code = """
import peftcl_prompts, sys
print([m for m in ("torch", "avalanche", "timm") if m in sys.modules])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=True)
    assert done.stdout.strip() == "[]"


@each_method("l2p")
@pytest.mark.parametrize(
    "scenario", ["class", *(pytest.param(s, marks=pytest.mark.slow) for s in SCENARIOS[1:])]
)
def test_it_runs_in_every_scenario(tmp_path, method, scenario):
    if (
        scenario
        not in discover().get("strategy", METHODS[method]["strategy"]["name"]).component.scenarios
    ):
        pytest.skip("the method does not serve the scenario")
    file = tmp_path / "run.yaml"
    asked = config(tmp_path / "run", method, scenario=scenario)
    file.write_text(yaml.safe_dump(asked.model_dump(mode="json", exclude={"seeds"})))
    result = CliRunner().invoke(app, ["run", str(file)])
    assert result.exit_code == 0, result.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["complete"]
    assert metrics["resume_obstacles"] == []
    assert metrics["not_exported"] is None
    assert len(matrix(tmp_path / "run")) >= 2


@each_method()
@pytest.mark.parametrize("online", [False, True])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, stopper, method, online):
    """Between experiences, and online between two chunks of the first."""
    scenario = "online" if online else own_scenario(method)
    if not serves(method, scenario):
        pytest.skip("the method does not serve the scenario")
    plugins = [{"name": "stop", "at": 1}]
    whole, halves = (
        config(tmp_path / n, method, plugins=plugins, scenario=scenario)
        for n in ("whole", "halves")
    )
    discover()
    stopper().Stop.armed = False
    avalanche_peftcl.run(whole)
    stopper().Stop.armed = True
    with pytest.raises(stopper().Stopped):
        avalanche_peftcl.run(halves)
    stopper().Stop.armed = False
    avalanche_peftcl.run(halves, resume=True)
    assert matrix(whole.output) == matrix(halves.output)
    networks = [avalanche_peftcl.load(each.output) for each in (whole, halves)]
    states = [network.state_dict() for network in networks]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@each_method()
def test_exported_it_predicts_what_the_record_says(tmp_path, method):
    asked = config(tmp_path / "run", method, scenario=own_scenario(method))
    metrics = avalanche_peftcl.run(asked).metrics
    file = tmp_path / "network.safetensors"
    result = CliRunner().invoke(app, ["export", str(asked.output), str(file)])
    assert result.exit_code == 0, result.stderr
    network = avalanche_peftcl.load(file)
    benchmark = digits(input_config=network.input_config, **asked.benchmark.options)
    accuracies = []
    for experience in benchmark.test_stream:
        pairs = [(x, y) for x, y, *_ in experience.dataset.eval()]
        right = network(torch.stack([x for x, _ in pairs])).argmax(dim=1).tolist()
        accuracies.append(sum(p == y for p, (_, y) in zip(right, pairs, strict=True)) / len(pairs))
    assert accuracies == pytest.approx(list(metrics["accuracy_matrix"])[-1])


@pytest.mark.parametrize(
    "example", sorted((HERE / "examples").glob("*.yaml")), ids=lambda path: path.stem
)
def test_examples_name_what_there_is(example):
    config, registry = load_config(example), discover()
    for kind in ("backbone", "module", "head", "benchmark", "strategy"):
        if (component := getattr(config, kind)) is not None:
            registry.schema(kind, component.name).check(component.options)
    for component in config.plugins:
        registry.schema("strategy_plugin", component.name).check(component.options)
