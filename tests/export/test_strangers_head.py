"""A head of another package, of another kind than ours: ridge regression in closed form."""

import pytest
import torch

from avalanche_peftcl import Component
from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.export import load as exported
from avalanche_peftcl.export.load import load, rebuild
from avalanche_peftcl.models import FrozenBranch, Head, LinearDrift, PEFTModel, exportable
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.testing import toy_backbone
from avalanche_peftcl.training import PEFTTemplate
from tests.export.test_write import tiny


class RidgeHead(Head):
    fitted = True
    row_tensors = ("weight", "sums")

    def __init__(self, in_features, *, ridge):
        super().__init__(in_features)
        self.ridge = ridge
        double = {"dtype": torch.float64}
        self.register_buffer("gram", torch.zeros(in_features, in_features, **double))
        self.register_buffer("sums", torch.zeros(0, in_features, **double))
        self.register_buffer("weight", torch.zeros(0, in_features))

    def observe(self, features, rows):
        self.gram += features.double().T @ features.double()
        self.sums.index_add_(0, rows, features.double())

    def settle(self):
        penalty = self.ridge * torch.eye(self.in_features, dtype=torch.float64)
        self.weight = torch.linalg.solve(self.gram + penalty, self.sums.T).T.float()

    def move(self, drift):
        self.gram, self.sums = drift.congruence(self.gram), drift(self.sums)
        self.settle()

    def forward(self, features):
        return features.float() @ self.weight.T


@exportable
def build_ridge(*, in_features: int, ridge: float = 0.1) -> RidgeHead:
    return RidgeHead(in_features, ridge=ridge)


def build_closed_form(*, backbone, plugins, evaluator):
    head = build_ridge(in_features=backbone.embed_dim, ridge=0.5)
    return PEFTTemplate(
        model=PEFTModel(backbone, FrozenBranch(), head),
        optimizer=None,
        train_epochs=0,
        plugins=plugins,
        evaluator=evaluator,
        eval_mb_size=64,
    )


def test_it_is_fitted_over_a_run_exported_and_loaded_again(tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "plugin_modules", lambda: {"avalanche_peftcl", "tests"})
    provider = Provider("test", "1")
    method = Component("strangers_form", build_closed_form, source="test")
    registry = Registry([*discover().entries(), Entry("strategy", method, provider)])
    config = tiny(tmp_path / "run", strategy={"name": "strangers_form"}, plugins=[])
    report = run(config, registry=registry)
    network = load(report.folder)
    head = network.model.head
    assert isinstance(head, RidgeHead)
    assert head.ridge == 0.5
    assert head.weight.shape == (10, 24)
    fitted = torch.linalg.solve(head.gram + 0.5 * torch.eye(24).double(), head.sums.T).T
    torch.testing.assert_close(head.weight, fitted.float())
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_it_is_the_regression_over_all_experiences_in_any_order_and_moves_with_features():
    torch.manual_seed(0)
    model = PEFTModel(toy_backbone(), FrozenBranch(), build_ridge(in_features=32))
    features, rows = torch.randn(40, 32), torch.arange(40) % 4
    for chosen in ([0, 1], [2, 3]):
        model.start_experience([(0, c) for c in chosen])
        mask = torch.isin(rows, torch.tensor(chosen))
        model.head.begin(chosen, [10, 10])
        model.head.observe(features[mask], rows[mask])
        model.head.settle()
    whole = build_ridge(in_features=32)
    whole.grow(4)
    whole.observe(features, rows)
    whole.settle()
    torch.testing.assert_close(model.head.weight, whole.weight)
    drift = torch.randn(32, 32)
    whole.move(LinearDrift(drift))
    again = build_ridge(in_features=32)
    again.grow(4)
    again.observe(features @ drift, rows)
    again.settle()
    torch.testing.assert_close(whole.weight, again.weight, atol=1e-3, rtol=1e-3)


def test_a_part_alone_is_no_network(monkeypatch):
    monkeypatch.setattr(exported, "plugin_modules", lambda: {"tests"})
    spec = build_ridge(in_features=3).export_spec.to_json()
    with pytest.raises(CheckpointError, match="build_ridge takes no backbone"):
        rebuild(spec, toy_backbone())
