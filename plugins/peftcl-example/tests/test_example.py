import csv
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.models import InputConfig
from avalanche_peftcl.registry import discover

HERE = Path(__file__).parents[1]


@pytest.mark.parametrize(("kind", "name"), [("strategy", "linear_probe"), ("benchmark", "stripes")])
def test_found(kind, name):
    entry = discover().get(kind, name)
    assert entry.provider.name == "peftcl-example"
    assert entry.provider.version == version("peftcl-example")


def test_listed():
    result = CliRunner().invoke(app, ["list", "strategy"])
    assert result.exit_code == 0
    (row,) = [line for line in result.stdout.splitlines() if "linear_probe" in line]
    assert "peftcl-example" in row
    assert "arXiv 1610.01644" in row
    assert "peftcl-example" in CliRunner().invoke(app, ["plugins"]).stdout


def test_under_100_lines():
    files = sorted((HERE / "peftcl_example").glob("*.py"))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert 0 < sum(bool(line.strip()) for line in lines) < 100


@pytest.mark.parametrize(("scenario", "classes"), [("class", 2), ("domain", 6)])
def test_stripes(scenario, classes):
    def make():
        given = {"input_config": InputConfig(img_size=16)}
        return discover().build("benchmark", "stripes", {"scenario": scenario}, given)

    first, second = make(), make()
    assert len(first.train_stream) == len(first.test_stream) == 3
    for one, two in zip(first.train_stream, second.train_stream, strict=True):
        assert len(one.classes_in_this_experience) == classes
        assert torch.equal(one.dataset[0][0], two.dataset[0][0])
    train, test = first.train_stream[0].dataset[0][0], first.test_stream[0].dataset[0][0]
    assert not torch.equal(train, test)


def test_runs_through_the_command_line(tmp_path):
    config, output = str(HERE / "stripes.yaml"), tmp_path / "record"
    result = CliRunner().invoke(app, ["run", config, f"output={output}"])
    assert result.exit_code == 0, result.stderr
    rows = list(csv.reader((output / "accuracy_matrix.csv").open(encoding="utf-8")))
    assert len(rows) >= 3
