"""Through ``peftcl``: found, listed, run in every scenario, gone on with, exported, predicted."""

import subprocess
import sys
from pathlib import Path

import pytest

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


def own_scenario(method):
    return "domain" if method == "s_prompts" else "class"


def serves(method, scenario):
    name = METHODS[method]["strategy"]["name"]
    return scenario in discover().get("strategy", name).component.scenarios


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
    if not serves(method, scenario):
        pytest.skip("the method does not serve the scenario")
    check_run(config(tmp_path / "run", method, scenario=scenario))


@each_method()
@pytest.mark.parametrize("online", [False, True])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path, method, online):
    """Between experiences, and online between two chunks of the first."""
    scenario = "online" if online else own_scenario(method)
    if not serves(method, scenario):
        pytest.skip("the method does not serve the scenario")
    check_goes_on(config(tmp_path, method, scenario=scenario))


@each_method()
def test_exported_it_predicts_what_the_record_says(tmp_path, method):
    check_export(
        config(tmp_path / "run", method, scenario=own_scenario(method)),
        tmp_path / "network.safetensors",
    )


@pytest.mark.parametrize(
    "example", sorted((HERE / "examples").glob("*.yaml")), ids=lambda path: path.stem
)
def test_examples_name_what_there_is(example):
    check_configuration(example)
