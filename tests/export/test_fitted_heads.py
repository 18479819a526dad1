"""Heads that are fitted: what a run predicts, a file of it predicts, and a stopped run goes on."""

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from safetensors import safe_open

from avalanche_peftcl import Component
from avalanche_peftcl.export.load import load
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.run import run
from tests.export.test_write import SEEN, Witness, tiny

HEADS = [
    {"name": "lda"},
    {"name": "gaussian"},
    {"name": "ridge", "penalty": "scale_free"},
    {"name": "random_ridge", "n_features": 60},
    {"name": "kernel_ridge", "n_features": 60},
    {"name": "kernel_ridge", "exact": True},
]


class Stop(SupervisedPlugin):
    armed = False

    def before_training_exp(self, strategy, *args, **kwargs):
        if self.armed and strategy.experience.current_experience == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def registry():
    offered = [
        Component("witness", Witness, source="test"),
        Component("stop", Stop, source="test"),
    ]
    more = [Entry("strategy_plugin", component, Provider("test", "1")) for component in offered]
    return Registry([*discover().entries(), *more])


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_a_stopped_run_goes_on_and_the_file_of_both_predicts_the_same(
    head, registry, tmp_path, monkeypatch
):
    plugins = [{"name": "witness"}, {"name": "stop"}]
    made = {"strategy": {"name": "closed_form"}, "head": head, "plugins": plugins}
    run(tiny(tmp_path / "whole", **made), registry=registry)
    seen = list(SEEN)
    monkeypatch.setattr(Stop, "armed", True)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(tmp_path / "parts", **made), registry=registry)
    monkeypatch.setattr(Stop, "armed", False)
    report = run(tiny(tmp_path / "parts", **made), registry=registry, resume=True)
    assert len(report.metrics["resumed_at"]) == 1
    for folder in (tmp_path / "whole", tmp_path / "parts"):
        network = load(folder)
        for images, _, logits in seen:
            assert torch.equal(network(images), logits)
        with safe_open(folder / "model.safetensors", "pt") as file:
            names = set(file.keys())
        assert "model.head.weight" in names or "model.head.whitening" in names
        assert not {f"model.head.{name}" for name in network.model.head.statistics} & names
