"""Through ``peftcl``: found, listed, run in every scenario, gone on with, exported, predicted."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.registry import discover
from avalanche_peftcl.testing import check_configuration, check_export, check_run, toy_run

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
    return toy_run(output, scenario=scenario, **METHODS[method] | changes)


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
    check_run(config(tmp_path / "run", method, scenario=scenario))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_exported_it_predicts_what_the_record_says(tmp_path, method):
    check_export(config(tmp_path / "run", method), tmp_path / "network.safetensors")


@pytest.mark.parametrize(
    "example", sorted((HERE / "examples").glob("*.yaml")), ids=lambda path: path.stem
)
def test_examples_name_what_there_is(example):
    check_configuration(example)
