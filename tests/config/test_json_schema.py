"""The JSON schema of a configuration says of examples and of mistakes what the command says."""

from pathlib import Path

import pytest
import yaml

from avalanche_peftcl.config.json_schema import json_schema
from avalanche_peftcl.registry import discover

jsonschema = pytest.importorskip("jsonschema")
EXAMPLES = Path(__file__).parents[2] / "examples"
BASE = {
    "output": "runs/a",
    "backbone": "vit_glyph",
    "benchmark": {"name": "digits", "n_experiences": 5},
    "strategy": {"name": "naive", "lr": 0.1},
}


@pytest.fixture(scope="module")
def validator():
    schema = json_schema(discover(only=["avalanche-peftcl"]))
    checker = jsonschema.validators.validator_for(schema)
    checker.check_schema(schema)
    return checker(schema)


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_example_fits(validator, path):
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [error.message for error in validator.iter_errors(settings)] == []


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"seeds": [0, 1]},
        {"module": {"name": "avalanche-peftcl/lora", "r": 2}, "head": "cosine"},
        {"plugins": ["replay", {"name": "gradient_projection", "threshold": 0.5}], "head": None},
        {"device": "auto"},
    ],
)
def test_what_may_be_written_fits(validator, changed):
    assert validator.is_valid(BASE | changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"strategy": "naif"},
        {"strategy": {"name": "naive", "lrr": 0.1}},
        {"strategy": {"name": "naive", "lr": "fast"}},
        {"module": {"name": "lora", "r": 0}},
        {"plugins": "replay"},
        {"epochs": 3},
        {"seed": -1},
        {"backbone": None},
    ],
)
def test_mistakes_do_not(validator, changed):
    assert not validator.is_valid(BASE | changed)
