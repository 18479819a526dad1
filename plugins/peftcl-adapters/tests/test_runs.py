"""Through ``peftcl``: found, listed, run in every scenario, gone on with, exported, predicted."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.registry import discover
from avalanche_peftcl.testing import (
    check_configuration,
    check_export,
    check_goes_on,
    check_run,
    toy_run,
)

HERE = Path(__file__).parents[1]
SCENARIOS = ("class", "task", "domain", "online")
HEAD = {"name": "random_ridge", "n_features": 60}
SHORT = {"train_epochs": 1, "lr": 0.05}
ALIGNED = {"align_samples": 8, "align_epochs": 1} | SHORT
WITHOUT_DOMAINS = ("mos",)
METHODS = {
    "simplecil": {"strategy": {"name": "simplecil"}},
    "simplecil on blocks": {"strategy": {"name": "simplecil", "features": "blocks"}},
    "aper": {"strategy": {"name": "aper", **SHORT}},
    "aper with lora": {"strategy": {"name": "aper", **SHORT}, "module": "lora"},
    "aper with ssf": {"strategy": {"name": "aper", **SHORT}, "module": "ssf"},
    "aper with vpt": {"strategy": {"name": "aper", **SHORT}, "module": "vpt"},
    "ranpac": {"strategy": {"name": "ranpac", **SHORT}, "head": HEAD},
    "ease": {"strategy": {"name": "ease", "r": 4, **SHORT}},
    "c_ada": {"strategy": {"name": "c_ada", "r": 4, **SHORT}},
    "mos": {"strategy": {"name": "mos", "r": 4, **ALIGNED}},
    "ssiat": {"strategy": {"name": "ssiat", "later_epochs": 0} | ALIGNED},
    "slca_pp": {"strategy": {"name": "slca_pp"} | ALIGNED},
    "ranpac's phase two": {"strategy": {"name": "ranpac", "phase_one": False}, "head": HEAD},
}


def config(output, method, *, scenario="class", **changes):
    return toy_run(output, scenario=scenario, **METHODS[method] | changes)


def each_method(*quick):
    """Parametrize over the methods; those that are not among ``quick`` are for a long run of tests.

    The contracts say of each the same, in seconds, without a run's files.
    """
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "method", [m if m in quick else pytest.param(m, marks=slow) for m in METHODS]
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("module", "ssf"),
        ("module", "vpt"),
        ("strategy", "simplecil"),
        ("strategy", "aper"),
        ("strategy", "ranpac"),
        ("strategy", "c_ada"),
        ("strategy", "ease"),
        ("strategy", "mos"),
        ("strategy", "slca_pp"),
        ("strategy", "ssiat"),
    ],
)
def test_found(kind, name, installed):
    registry = discover()
    entry = registry.get(kind, name)
    assert entry.provider.name == "peftcl-adapters"
    assert entry.provider.version == installed["version"]
    assert registry.schema(kind, name).options is not None
    result = CliRunner().invoke(app, ["list", kind])
    (row,) = [line for line in result.stdout.splitlines() if f" {name} " in f" {line} "]
    assert "peftcl-adapters" in row


def test_listing_imports_nothing_heavy():
    code = """
import peftcl_adapters, sys
print([m for m in ("torch", "avalanche", "timm") if m in sys.modules])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=True)
    assert done.stdout.strip() == "[]"


@each_method("simplecil", "simplecil on blocks", "aper", "aper with lora", "ranpac")
@pytest.mark.parametrize(
    "scenario", ["class", *(pytest.param(s, marks=pytest.mark.slow) for s in SCENARIOS[1:])]
)
def test_it_runs_in_every_scenario(tmp_path, method, scenario):
    if scenario == "domain" and method in WITHOUT_DOMAINS:
        pytest.skip("the method does not claim it")
    check_run(config(tmp_path / "run", method, scenario=scenario))


@each_method("aper", "ease")
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, method):
    check_goes_on(config(tmp_path, method))


@each_method("ranpac")
def test_exported_it_predicts_what_the_record_says(tmp_path, method):
    check_export(config(tmp_path / "run", method), tmp_path / "network.safetensors")


@pytest.mark.parametrize(
    "example", sorted((HERE / "examples").glob("*.yaml")), ids=lambda path: path.stem
)
def test_examples_name_what_there_is(example):
    check_configuration(example)


def test_a_dry_run_tells_the_passes_of_a_test_image(tmp_path):
    """Not those of a training step, in the midst of which it stops."""
    many_steps = {"name": "aper", "train_epochs": 20, "train_mb_size": 2}
    asked = config(tmp_path / "run", "aper", strategy=many_steps)
    file = tmp_path / "run.yaml"
    file.write_text(asked.model_dump_json())
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["run", str(file), "--dry-run"])
    assert "2 passes of the backbone each" in result.output
