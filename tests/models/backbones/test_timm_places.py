"""Models of timm's in a repository of the Hugging Face Hub or in a folder."""

import json

import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from timm.models import _hub

from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.models import create_backbone
from avalanche_peftcl.models.backbones.weights import weights_sha256

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}


@pytest.fixture
def folder(tmp_path):
    """Write a small network with seven classes and a normalisation of its own, as timm does."""
    torch.manual_seed(3)
    vit = timm.create_model(NAME, num_classes=7, **SMALL)
    place = tmp_path / "my model.v1"
    _hub.save_for_hf(vit, place, model_args=SMALL, safe_serialization=True)
    told = json.loads((place / "config.json").read_text())
    told["pretrained_cfg"] |= {"mean": [0.1, 0.2, 0.3], "crop_pct": 0.8}
    (place / "config.json").write_text(json.dumps(told))
    return place


@pytest.fixture
def hub(folder, monkeypatch):
    """Let the hub have the files of the folder, as ``owner/name``; return what is asked for."""
    asked = []

    def fetch(repo_id, filename, *, revision=None, cache_dir=None):
        asked.append((repo_id, filename, revision))
        if repo_id != "owner/name":
            raise OSError(f"no repository {repo_id}")
        if not (folder / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(folder / filename)

    monkeypatch.setattr(_hub, "hf_hub_download", fetch)
    return asked


def test_a_folder_is_taken_as_timm_takes_it(folder, no_network):
    name = f"local-dir:{folder}"
    ours = create_backbone(name, pretrained=True)
    theirs = timm.create_model(name, pretrained=True, num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours(images), theirs(images))
    saved = load_file(folder / "model.safetensors")
    own = ours.vit.state_dict()
    assert own.keys() == {k for k in saved if not k.startswith("head.")}
    assert all(torch.equal(own[k], saved[k]) for k in own)
    assert ours.input_config.mean == (0.1, 0.2, 0.3)
    assert (ours.input_config.img_size, ours.input_config.crop_pct) == (32, 0.8)
    assert ours.model_name == NAME


def test_the_hash_of_the_weights_is_that_of_the_file(folder):
    kept = create_backbone(NAME, checkpoint=folder / "model.safetensors", **SMALL)
    there = create_backbone(f"local-dir:{folder}", pretrained=True)
    drawn = create_backbone(f"local-dir:{folder}")
    assert weights_sha256(there) == weights_sha256(kept) != weights_sha256(drawn)


@pytest.mark.parametrize("source", ["hf-hub:", "hf_hub:"])
def test_a_repository_is_taken_as_a_folder_is(folder, hub, source, no_network):
    there = create_backbone(f"{source}owner/name@v2", pretrained=True)
    assert {repo for repo, *_ in hub} == {"owner/name"}
    assert {revision for *_, revision in hub} == {"v2"}
    assert {"config.json", "model.safetensors"} == {file for _, file, _ in hub}
    kept = create_backbone(f"local-dir:{folder}", pretrained=True)
    assert weights_sha256(there) == weights_sha256(kept)
    assert there.input_config == kept.input_config
    assert there.model_name == "hf-hub:owner/name@v2"


def test_without_pretrained_only_the_network_is_read(hub):
    drawn = create_backbone("hf-hub:owner/name")
    assert (drawn.depth, drawn.embed_dim, drawn.model_name) == (2, 24, NAME)
    assert {file for _, file, _ in hub} == {"config.json"}


def test_the_size_may_be_another(folder):
    grown = create_backbone(f"local-dir:{folder}", pretrained=True, img_size=48)
    theirs = timm.create_model(f"local-dir:{folder}", True, num_classes=0, img_size=48).eval()
    images = torch.randn(1, 3, 48, 48)
    assert torch.equal(grown(images), theirs(images))


def test_weights_that_would_leave_parts_random_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"with depth=3 .*or leave these options out"):
        create_backbone(f"local-dir:{folder}", pretrained=True, depth=3)
    state.pop("blocks.1.norm1.weight")  # timm itself says nothing of it to who wants no classifier
    save_file(state, folder / "model.safetensors")
    timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    with pytest.raises(CheckpointError, match=r"blocks.1.norm1.weight.*model_name='vit_tiny"):
        create_backbone(f"local-dir:{folder}", pretrained=True)


def test_places_without_a_model_name_the_way_out(folder, hub, tmp_path):
    with pytest.raises(CheckpointError, match=r"no repository nobody/none\); fetch .*local-dir:"):
        create_backbone("hf-hub:nobody/none", pretrained=True)
    with pytest.raises(CheckpointError, match=r"not found: .*needs the config\.json .*checkpoint="):
        create_backbone(f"local-dir:{tmp_path / 'none'}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"No suitable checkpoints .*; give them as a file"):
        create_backbone(f"local-dir:{folder}", pretrained=True)
    for text in ("{", "{}", "[]", '{"architecture": "vit_none"}', '{"architecture": "../a"}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"needs the config\.json"):
            create_backbone(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {
                "architecture": "vit_base_patch16_rpn_224",
                "model_args": SMALL | {"global_pool": "avg"},
            },
            "not a plain vision transformer",
        ),
        ({"model_args": SMALL | {"in_chans": 1}}, "images of 1 channels, not of 3"),
        ({"model_args": SMALL | {"num_heads": 5}}, "cannot build"),
    ],
)
def test_a_model_that_is_not_taken_is_refused_before_its_weights(folder, change, message):
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | change))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=message):
        create_backbone(f"local-dir:{folder}", pretrained=True)
