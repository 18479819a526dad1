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
SHORT = {"train_epochs": 1, "lr": 0.01, "mixed_precision": "no"}
METHODS = {
    "o_lora": {"strategy": {"name": "o_lora", "r": 2, **SHORT}},
    "inflora": {"strategy": {"name": "inflora", "r": 2, "n_experiences": 2, **SHORT}},
    "lae": {"strategy": {"name": "lae", **SHORT}},
    "lae with a prefix": {"strategy": {"name": "lae", **SHORT}, "module": "prefix"},
    "sd_lora": {"strategy": {"name": "sd_lora", "r": 2, **SHORT}},
    "sd_lora goes on": {"strategy": {"name": "sd_lora", "r": 2, "continuous": True, **SHORT}},
    "o_lora with ridge": {"strategy": {"name": "o_lora", "r": 2, **SHORT}, "head": "ridge"},
}
QUICK = {"o_lora": ("class",)}
"""What a short run of the tests tries; the contracts say of each the same without a run's files."""
CASES = [
    pytest.param(m, s, marks=() if s in QUICK.get(m, ()) else pytest.mark.slow)
    for m in METHODS
    for s in SCENARIOS
]


def config(output, method, *, scenario="class", **changes):
    settings = {
        "output": str(output),
        "backbone": {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 32}
        | {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 16},
        "benchmark": {"name": "digits", "scenario": scenario, "n_experiences": 2}
        | ({"train_per_class": 6} if scenario != "online" else {"train_per_class": 3}),
        "num_threads": 1,
    }
    return RunConfig.model_validate(settings | METHODS[method] | changes)


def matrix(folder):
    return list(csv.reader((folder / "accuracy_matrix.csv").open(encoding="utf-8")))


@pytest.mark.parametrize("name", ["o_lora", "inflora", "lae", "sd_lora"])
def test_found(name, installed):
    registry = discover()
    entry = registry.get("strategy", name)
    assert entry.provider.name == "peftcl-lora"
    assert entry.provider.version == installed["version"]
    assert registry.schema("strategy", name).options is not None
    result = CliRunner().invoke(app, ["list", "strategy"])
    (row,) = [line for line in result.stdout.splitlines() if f" {name} " in f" {line} "]
    assert "peftcl-lora" in row


def test_listing_imports_nothing_heavy():
    code = """
import peftcl_lora, sys
print([m for m in ("torch", "avalanche", "timm") if m in sys.modules])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("method", "scenario"), CASES)
def test_it_runs(tmp_path, method, scenario):
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


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_exported_it_predicts_what_the_record_says(tmp_path, method):
    asked = config(tmp_path / "run", method)
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
