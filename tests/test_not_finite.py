"""A run with numbers that are none ends with an error, and records nothing as a result."""

import json
import math

import pytest
import torch
from avalanche.training.plugins import EWCPlugin
from avalanche.training.supervised import Naive
from torch import nn
from typer.testing import CliRunner

from avalanche_peftcl import Component, cli
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.errors import NotFiniteError
from avalanche_peftcl.models import create_backbone
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import SWITCH, Entry, Provider
from avalanche_peftcl.runs.run import run

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
SETTINGS = {
    "backbone": BACKBONE,
    "benchmark": {"name": "digits", "n_experiences": 5, "train_per_class": 4},
    "strategy": {"name": "naive", "train_epochs": 2, "train_mb_size": 4},
}
DIVERGED = {"name": "naive", "train_epochs": 3, "train_mb_size": 4, "lr": 1e6}
EWC = [{"name": "heavy_ewc"}]


def broken_backbone():
    options = {key: value for key, value in BACKBONE.items() if key != "name"}
    backbone = create_backbone(**options)
    backbone.vit.blocks[0].mlp.fc1.weight.data[3, 4] = math.nan
    return backbone


class Classifier(nn.Module):
    """A strategy of another package: its own model, its own loop."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(backbone.embed_dim, 10)

    def forward(self, images):
        return self.head(self.backbone.pool(self.backbone.vit.forward_features(images))) * math.inf


def foreign(*, backbone, device, plugins, evaluator):
    model = Classifier(backbone)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    return Naive(
        model=model,
        optimizer=optimizer,
        train_mb_size=8,
        eval_mb_size=64,
        plugins=plugins,
        evaluator=evaluator,
        device=device,
    )


def heavy_ewc():
    """The weight that the range of ``ewc_lambda`` refuses."""
    return EWCPlugin(ewc_lambda=1e300)


@pytest.fixture(scope="module")
def registry():
    offered = [
        ("backbone", Component("broken", broken_backbone, source="test")),
        ("strategy", Component("foreign", foreign, source="test")),
        ("strategy_plugin", Component("heavy_ewc", heavy_ewc, source="test")),
    ]
    provider = Provider("test-package", "1.0")
    more = [Entry(kind, component, provider) for kind, component in offered]
    return Registry([*discover().entries(), *more])


def record(folder):
    return json.loads((folder / "metrics.json").read_text())


def start(folder, registry, **changed):
    return run(RunConfig.model_validate(SETTINGS | {"output": folder} | changed), registry=registry)


@pytest.mark.parametrize("strategy", ["naive", "ntk_cl", "pegp", "nearest_class_mean"])
def test_one_bad_weight_of_the_backbone_trains_nothing(tmp_path, registry, strategy):
    expected = (
        r"the backbone 'broken' has weights that are not finite numbers, in "
        r"vit\.blocks\.0\.mlp\.fc1\.weight: "
    )
    with pytest.raises(NotFiniteError, match=expected):
        start(tmp_path / "r", registry, backbone="broken", strategy=strategy)
    assert not (tmp_path / "r" / "metrics.json").exists()


def test_a_weight_of_1e300_keeps_the_experience_before(tmp_path, registry):
    folder = tmp_path / "r"
    with pytest.raises(NotFiniteError, match=r"experience 2, epoch 1 .*\(EWCPlugin\)"):
        start(folder, registry, plugins=EWC)
    kept = record(folder)
    assert kept["complete"] is False
    assert kept["experiences"] == {"total": 5, "finished": 1}
    assert len((folder / "accuracy_matrix.csv").read_text().splitlines()) == 1 + 1
    with pytest.raises(NotFiniteError, match="experience 2"):  # and goes on from there
        run(
            RunConfig.model_validate(SETTINGS | {"output": folder, "plugins": EWC}),
            registry=registry,
            resume=True,
        )


def test_an_lr_of_a_million_records_nothing(tmp_path, registry):
    with (
        pytest.warns(match="training diverges"),
        pytest.raises(NotFiniteError, match=r"experience 1, .*; lower lr \(now "),
    ):
        start(tmp_path / "r", registry, strategy=DIVERGED)
    assert record(tmp_path / "r")["experiences"]["finished"] == 0


def test_no_checkpoint_of_what_has_diverged(tmp_path, registry):
    with (
        pytest.warns(match="training diverges"),
        pytest.raises(NotFiniteError, match="experience 1"),
    ):
        start(tmp_path / "r", registry, strategy=DIVERGED, checkpoint_every=1)
    with pytest.raises(NotFiniteError, match="experience 1"):
        run(
            RunConfig.model_validate(
                SETTINGS | {"output": tmp_path / "r", "strategy": DIVERGED, "checkpoint_every": 1}
            ),
            registry=registry,
            resume=True,
        )


def test_a_strategy_of_another_package_gives_no_accuracy_of_nothing(tmp_path, registry):
    with pytest.raises(NotFiniteError, match=r"images of experience 1 of stream test are not"):
        start(tmp_path / "r", registry, strategy="foreign")
    assert record(tmp_path / "r")["experiences"]["finished"] == 0


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"plugins": [{"name": "ewc", "ewc_lambda": 1e300}]},
            "'ewc_lambda' should be less than or equal to",
        ),
        ({"strategy": DIVERGED}, "error: training diverged in experience 1, epoch "),
    ],
)
def test_the_command_line_says_so_in_a_line(tmp_path, monkeypatch, changed, told):
    monkeypatch.setenv(SWITCH, "")
    file = tmp_path / "c.yaml"
    file.write_text(dump_settings(SETTINGS | {"output": str(tmp_path / "r")} | changed))
    result = CliRunner().invoke(cli.app, ["run", str(file)])
    assert result.exit_code == 2
    assert told in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert isinstance(result.exception, SystemExit)


def test_the_command_line_refuses_a_weights_file_with_one_bad_number(tmp_path, monkeypatch):
    monkeypatch.setenv(SWITCH, "")
    weights, file = tmp_path / "w.pt", tmp_path / "c.yaml"
    torch.save(broken_backbone().vit.state_dict(), weights)
    settings = SETTINGS | {"output": str(tmp_path / "r")}
    file.write_text(dump_settings(settings | {"backbone": BACKBONE | {"checkpoint": str(weights)}}))
    result = CliRunner().invoke(cli.app, ["run", str(file)])
    assert result.exit_code == 2
    assert "error: the backbone 'timm_vit' has weights that are not finite numbers" in result.stderr
    assert "Traceback" not in result.stderr
