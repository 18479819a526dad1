"""A file of a network opens no other file, fetches nothing and runs nothing."""

import io
import json
import pickle
import zipfile

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.export.file import INFO_KEY, read_export
from avalanche_peftcl.export.load import load
from avalanche_peftcl.models import create_backbone
from avalanche_peftcl.runs.run import run

SMALL = {"model_name": "vit_tiny_patch16_224", "img_size": 16}
SMALL |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
BACKBONE = {"name": "avalanche-peftcl/timm_vit"} | SMALL
PEFT = {"name": "peft_tuner", "tuner": "lora", "r": 1, "blocks": [0]}
RAN = []


def program():
    RAN.append("ran")


class Bomb:
    """Goes off where a file is unpickled without care."""

    def __reduce__(self):
        return program, ()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    settings = {
        "output": tmp_path_factory.mktemp("runs") / "naive",
        "backbone": BACKBONE,
        "benchmark": {"name": "digits", "n_experiences": 1, "train_per_class": 1},
        "strategy": {"name": "naive", "train_epochs": 1},
        "module": PEFT,
    }
    return run(RunConfig.model_validate(settings)).folder / "model.safetensors"


@pytest.fixture
def bomb(tmp_path):
    """A file of weights as torch writes it, whose pickle runs a function."""
    RAN.clear()
    torch.save({"weight": torch.zeros(1)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w") as armed,
    ):
        for name in plain.namelist():
            content = pickle.dumps(Bomb()) if name.endswith("data.pkl") else plain.read(name)
            armed.writestr(name, content)
    torch.load(io.BytesIO((tmp_path / "bomb.pt").read_bytes()), weights_only=False)
    assert RAN == ["ran"]  # it would go off
    RAN.clear()
    return tmp_path / "bomb.pt"


def rewrite(path, source, **changed):
    """Write a copy of a network's file that says something else."""
    with safe_open(source, "pt") as file:
        told = json.loads(file.metadata()[INFO_KEY])
    save_file(load_file(source), path, {INFO_KEY: json.dumps(told | changed)})
    return path


CRAFTED = {
    "checkpoint": {"checkpoint": "BOMB"},
    "pretrained": {"pretrained": True},
    "pretrained in words": {"pretrained": "yes"},
    "checkpoint_path": {"checkpoint_path": "BOMB"},
    "pretrained_cfg": {"pretrained_cfg": {"url": "https://example.org/a.pth"}},
    "pretrained_cfg file": {"pretrained_cfg": {"file": "BOMB"}},
    "pretrained_cfg_overlay": {"pretrained_cfg_overlay": {"hf_hub_id": "someone/something"}},
    "pretrained_strict": {"pretrained_strict": False},
    "cache_dir": {"cache_dir": "/tmp"},
    "hub": {"model_name": "hf-hub:someone/something"},
    "hub, the old way": {"model_name": "hf_hub:someone/something"},
    "folder": {"model_name": "local-dir:/tmp"},
    "repository": {"model_name": "someone/something"},
    "address": {"model_name": "https://example.org/a.pth"},
    "block_fn": {"block_fn": "os.system"},
    "no option": {"features_only": True},
    "no name": {"model_name": "vit_nothing"},
    "no blocks": {"depth": 0},
}


@pytest.mark.parametrize("case", CRAFTED)
@pytest.mark.parametrize("allowed", [False, True])
def test_a_crafted_backbone_runs_and_fetches_nothing(
    case, allowed, done, bomb, tmp_path, no_network
):
    text = json.dumps(CRAFTED[case]).replace("BOMB", str(bomb))
    file = rewrite(tmp_path / "a.safetensors", done, backbone=BACKBONE | json.loads(text))
    with pytest.raises(CheckpointError) as caught:
        load(file, pretrained=allowed)
    assert RAN == []
    assert "Traceback" not in str(caught.value)
    for words in (
        ["predict", str(file), str(bomb)],
        ["predict", "--pretrained", str(file), "x.pt"],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert "Traceback" not in result.output + result.stderr
    assert RAN == []


def test_what_a_crafted_file_names_is_told(done, tmp_path):
    changed = BACKBONE | {"checkpoint": "a.pt", "url": "https://example.org"}
    file = rewrite(tmp_path / "a.safetensors", done, backbone=changed)
    with pytest.raises(CheckpointError, match=r"a place .*\(checkpoint, url\), which is never"):
        read_export(file)


@pytest.mark.parametrize(
    "options",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "this"},
        {"corda_config": {"cache_file": "BOMB"}},
        {"init_lora_weights": "BOMB"},
        {"base_model_name_or_path": "someone/something"},
    ],
)
def test_a_crafted_module_runs_and_fetches_nothing(options, done, bomb, tmp_path, no_network):
    spec = read_export(done)[0].model
    build = spec["options"]["branch"]
    more = json.loads(json.dumps(options).replace("BOMB", str(bomb)))
    build = build | {"options": build["options"] | more}
    spec = spec | {"options": spec["options"] | {"branch": build}}
    file = rewrite(tmp_path / "a.safetensors", done, model=spec)
    with pytest.raises(CheckpointError, match=r"has no option|names a place"):
        load(file)
    assert RAN == []


def test_a_file_of_weights_runs_nothing(bomb):
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        create_backbone(**SMALL, checkpoint=bomb)
    assert RAN == []


def test_a_download_is_the_callers_to_allow(done, tmp_path, monkeypatch, no_network):
    asked = []
    real = timm.create_model

    def fetch(name, *, pretrained=False, **options):
        asked.append(pretrained)
        torch.manual_seed(0)
        return real(name, **options)

    info = read_export(done)[0]
    file = rewrite(tmp_path / "a.safetensors", done, left_out=["pretrained"])
    with pytest.raises(CheckpointError, match=r"are a download, which no file sets off; allow it"):
        load(file)
    monkeypatch.setattr(timm, "create_model", fetch)
    monkeypatch.setattr("avalanche_peftcl.models.backbones.timm_vit.check_fit", lambda *args: None)
    torch.manual_seed(info.seed)
    load(file, pretrained=True)
    assert asked[-1] is True


def test_exports_carry_no_place(tmp_path):
    torch.save(create_backbone(**SMALL).vit.state_dict(), tmp_path / "vit.pt")
    settings = {
        "output": tmp_path / "run",
        "backbone": BACKBONE | {"checkpoint": str(tmp_path / "vit.pt")},
        "benchmark": {"name": "digits", "n_experiences": 1, "train_per_class": 1},
        "strategy": "nearest_class_mean",
    }
    info = read_export(run(RunConfig.model_validate(settings)).folder / "model.safetensors")[0]
    assert info.left_out == ["checkpoint"]
    assert "checkpoint" not in info.backbone.options
    assert info.backbone.options["model_name"] == SMALL["model_name"]


def test_the_bundled_network_needs_no_permission(tmp_path):
    settings = {
        "output": tmp_path / "run",
        "backbone": {"name": "vit_glyph", "img_size": 16, "pretrained": False},
        "benchmark": {"name": "digits", "n_experiences": 1, "train_per_class": 1},
        "strategy": "nearest_class_mean",
    }
    for pretrained in (False, True):
        settings["backbone"]["pretrained"] = pretrained
        settings["output"] = tmp_path / str(pretrained)
        assert load(run(RunConfig.model_validate(settings)).folder).class_names
