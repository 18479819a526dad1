"""What is passed on: adapters that peft alone loads, and uploads with a card of the record."""

import re
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import timm
import torch
import yaml
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.errors import ConfigError, ExportError
from avalanche_peftcl.export.load import load
from avalanche_peftcl.models.passes import forward_branches
from avalanche_peftcl.runs.card import model_card
from avalanche_peftcl.runs.hub import push_to_hub, write_adapter, write_hub_folder
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.run import run
from tests.export.test_write import BACKBONE, tiny


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two seeds of one sweep, with LoRA; and beside them another configuration."""
    folder = tmp_path_factory.mktemp("runs")
    lora = {"module": {"name": "lora", "r": 2, "blocks": [0, 1]}, "plugins": []}
    for seed in (0, 1):
        run(tiny(folder / f"seed{seed}", seed=seed, **lora))
    run(tiny(folder / "seed7", seed=7, strategy={"name": "nearest_class_mean"}, plugins=[]))
    return folder


class Hub:
    """Stands for huggingface_hub: what would be uploaded is kept."""

    def __init__(self, error=None):
        self.made, self.files, self.error = [], {}, error

    def create_repo(self, repo_id, *, private, exist_ok):
        self.made.append((repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self.error:
            raise self.error
        self.files = {p.name: p.read_bytes() for p in Path(folder_path).iterdir()}
        return f"https://hub/{repo_id}"


def by_peft_alone(folder: Path, network, images):
    """Features of timm's network of the same weights, with what peft reads in a folder."""
    options = {k: v for k, v in BACKBONE.items() if k not in ("name", "model_name")}
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    vit.load_state_dict(network.model.backbone.vit.state_dict())
    return peft.PeftModel.from_pretrained(vit, folder).eval()(images)


@torch.no_grad()
def test_the_module_of_a_run_is_loaded_by_peft_alone_to_the_same_features(runs, tmp_path):
    words = ["export", str(runs / "seed0"), str(tmp_path / "lora"), "--peft"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    network, images = load(runs / "seed0"), torch.randn(3, 3, 16, 16)
    (expected,) = forward_branches(
        network.model.backbone, [network.model.branch], images, features=["pooled"]
    )
    torch.testing.assert_close(by_peft_alone(tmp_path / "lora", network, images), expected)
    assert CliRunner().invoke(app, words).exit_code == 2  # it is there already
    with pytest.raises(ConfigError, match="has no module of peft; peft's format holds 'lora'"):
        write_adapter(runs / "seed7", tmp_path / "none")


def test_an_upload_has_network_adapter_and_card_and_no_path_of_this_machine(runs, tmp_path):
    hub = Hub()
    told = push_to_hub(runs / "seed1", "me/digits", api=hub, overlap="all ten digits")
    assert told == "https://hub/me/digits"
    assert hub.made == [("me/digits", True, True)]
    assert sorted(hub.files) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "model.safetensors",
    ]
    for content in hub.files.values():
        assert str(runs).encode() not in content
    file = tmp_path / "model.safetensors"
    file.write_bytes(hub.files["model.safetensors"])
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(load(file)(images), load(runs / "seed1")(images))
    card = hub.files["README.md"].decode()
    assert "class overlap with the backbone's pre-training: all ten digits" in card


def test_a_card_says_method_data_numbers_of_all_seeds_and_limits(runs, tmp_path):
    write_hub_folder(runs / "seed1", tmp_path / "new", name="me/digits")
    card = (tmp_path / "new" / "README.md").read_text()
    record, other = read_record(runs / "seed1"), read_record(runs / "seed0")
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "avalanche_peftcl"
    assert "naive" in head["tags"]
    (settings,) = re.findall(r"```yaml\n(.*?)```", card, flags=re.DOTALL)
    assert yaml.safe_load(settings)["module"]["r"] == 2
    assert record.protocol.split_sha256 in card
    assert record.weights_sha256 in card
    for each, name in ((record, "1 (this one)"), (other, "0")):
        value = f"{100 * each.accuracy.last_accuracy:.1f} %"
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
        assert value in row
    assert "mean ± standard deviation" in card
    assert "| 7 |" not in card  # another method
    assert "of one seed" not in card
    assert "not known. The record has no labels of the backbone's pre-training" in card  # "7"
    assert "weights of the backbone are not here" in card
    with pytest.raises(ConfigError, match="holds something already"):
        write_hub_folder(runs / "seed1", tmp_path / "new")


def test_a_card_of_one_seed_says_that_no_spread_is_known(runs):
    card = model_card(read_record(runs / "seed7"))
    assert "of one seed; no spread is known" in card
    assert "peft.PeftModel" not in card


def test_what_goes_wrong_is_one_error(runs):
    with pytest.raises(ConfigError, match="is no repository; write OWNER/NAME"):
        push_to_hub(runs / "seed1", "digits", api=Hub())
    with pytest.raises(ExportError, match="upload to me/digits failed: OSError: no network"):
        push_to_hub(runs / "seed1", "me/digits", api=Hub(OSError("no network")))


def test_the_command_writes_a_folder_or_uploads(runs, tmp_path, monkeypatch):
    hub = Hub()
    monkeypatch.setitem(
        __import__("sys").modules, "huggingface_hub", SimpleNamespace(HfApi=lambda: hub)
    )
    words = ["push", str(runs / "seed7"), "me/digits"]
    result = CliRunner().invoke(app, [*words, "--only-folder", str(tmp_path / "new")])
    assert result.exit_code == 0, result.stderr
    assert "README.md, model.safetensors; nothing was uploaded" in result.stdout
    assert hub.made == []
    result = CliRunner().invoke(app, [*words, "--public"])
    assert result.exit_code == 0, result.stderr
    assert hub.made == [("me/digits", False, True)]
