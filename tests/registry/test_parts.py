"""A builder that returns something else than its kind: named with its package before training."""

import pytest
import torch
from typer.testing import CliRunner

from avalanche_peftcl import Component, cli
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.registry.parts import check_part
from avalanche_peftcl.runs import run
from avalanche_peftcl.testing.toys import toy_backbone, toy_benchmark

PLACES = {
    "backbone": {"backbone": "odd"},
    "module": {"module": "odd"},
    "benchmark": {"benchmark": "odd"},
    "strategy": {"strategy": "odd"},
    "strategy_plugin": {"plugins": ["odd"]},
    "metric": {"metrics": ["odd"]},
    "logger": {"loggers": ["odd"]},
}


def fails(**given):
    raise LookupError("no\nsuch luck")


BUILDERS = {
    "number": (lambda *, evaluator=None, module=None, plugins=None: 3, " built 3, which is no "),
    "class": (lambda *, evaluator=None, module=None, plugins=None: dict, "built <class 'dict'>"),
    "None": (
        lambda *, evaluator=None, module=None, plugins=None: None,
        "cannot be built: its builder returned None",
    ),
    "error": (
        lambda *, evaluator=None, module=None, plugins=None: fails(),
        "cannot be built: LookupError: no such luck",
    ),
}


def registry(kind: str, build) -> Registry:
    toys = [
        ("backbone", Component("toy", lambda: toy_backbone(depth=1), source="test")),
        ("benchmark", Component("toy", lambda: toy_benchmark(), source="test")),
        (kind, Component("odd", build, source="test")),
    ]
    entries = [Entry(kind, component, Provider("odd-pkg", "1.5")) for kind, component in toys]
    return Registry([*discover(only=["avalanche-peftcl"]).entries(), *entries])


@pytest.mark.parametrize("how", BUILDERS)
@pytest.mark.parametrize("kind", PLACES)
def test_what_is_not_of_its_kind_is_one_message(tmp_path, monkeypatch, kind, how):
    build, said = BUILDERS[how]
    offered = registry(kind, build)
    monkeypatch.setattr(run, "discover", lambda: offered)
    file = tmp_path / "run.yaml"
    settings = {
        "output": str(tmp_path / "run"),
        "backbone": "toy",
        "benchmark": "toy",
        "module": "adapter",
        "strategy": {"name": "naive", "train_epochs": 1},
    }
    file.write_text(dump_settings(settings | PLACES[kind]))
    result = CliRunner().invoke(cli.app, ["run", str(file)])
    assert result.exit_code == 2, result.exception
    assert f"error: {kind} 'odd' of odd-pkg 1.5 " in result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_list_of_metrics_is_one():
    from avalanche.evaluation.metrics import loss_metrics

    check_part("metric", loss_metrics(epoch=True), "it")
    check_part("module", torch.nn.Linear(1, 1), "it")
