"""Weights in files, as training code writes them."""

import argparse

import pytest
import safetensors.torch
import timm
import torch
from timm.layers import resample_abs_pos_embed

from avalanche_peftcl.errors import BackboneWarning, CheckpointError
from avalanche_peftcl.models import create_backbone
from avalanche_peftcl.models.backbones.weight_files import load_checkpoint


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_checkpoint_of_another_size_is_resampled(make_backbone, tmp_path, ending):
    source = make_backbone(img_size=24)
    path = tmp_path / f"weights.{ending}"
    state = {**source.vit.state_dict(), "head.weight": torch.zeros(5, 32)}
    state = {k: v.half() for k, v in state.items()}
    if ending == "pt":
        torch.save({"model": state}, path)
    else:
        safetensors.torch.save_file(state, path)
    loaded = make_backbone(checkpoint=path)
    assert loaded.num_tokens == 17
    assert loaded.vit.cls_token.dtype == torch.float32
    torch.testing.assert_close(
        loaded.vit.blocks[0].mlp.fc1.weight, source.vit.blocks[0].mlp.fc1.weight, atol=1e-3, rtol=0
    )


def test_checkpoint_that_does_not_fit_names_the_keys(make_backbone, tmp_path):
    state = make_backbone().vit.state_dict()
    del state["norm.weight"]
    state["extra"] = torch.zeros(1)
    state["norm.bias"] = torch.zeros(7)
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError) as caught:
        make_backbone(checkpoint=tmp_path / "weights.safetensors")
    assert "1 missing: norm.weight" in str(caught.value)
    assert "1 unexpected: extra" in str(caught.value)
    assert "norm.bias (7,) instead of (32,)" in str(caught.value)


def test_checkpoint_with_code_in_it_is_not_run(make_backbone, tmp_path):
    torch.save({"w": print}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        make_backbone(checkpoint=tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="no weights file"):
        make_backbone(checkpoint=tmp_path / "none.pt")


def test_deit_of_the_shared_data_loads_at_160_pixels(shared_data):
    backbone = create_backbone(
        "deit_tiny_patch16_224",
        checkpoint=shared_data / "deit_tiny_patch16_224.fp16.safetensors",
        img_size=160,
    )
    assert backbone.num_tokens == 101
    assert backbone(torch.zeros(1, 3, 160, 160)).isfinite().all()


def assert_same(loaded, source):
    own = source.vit.state_dict()
    for name, value in loaded.vit.state_dict().items():
        assert torch.equal(value, own[name]), name


def load(make_backbone, tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    torch.manual_seed(1)
    return make_backbone(checkpoint=tmp_path / "weights.pt")


def put(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_what_is_resampled_is_float32_first(make_backbone, tmp_path, dtype):
    state = {k: v.to(dtype) for k, v in make_backbone(img_size=24).vit.state_dict().items()}
    loaded = load(make_backbone, tmp_path, state).vit
    expected = resample_abs_pos_embed(
        state["pos_embed"].float(), new_size=(4, 4), old_size=(6, 6), num_prefix_tokens=1
    )
    assert torch.equal(loaded.pos_embed, expected)
    assert torch.equal(loaded.norm.weight, state["norm.weight"].float())
    assert all(p.dtype is torch.float32 for p in loaded.parameters())


PREFIXES = ["module.", "model.", "backbone.", "encoder.", "_orig_mod.", "module._orig_mod."]
PREFIXES += ["student.backbone.", "visual.trunk.", "vit."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.filterwarnings("ignore::avalanche_peftcl.errors.BackboneWarning")
def test_what_stands_in_front_of_every_name_is_taken_off(make_backbone, tmp_path, prefix):
    source = make_backbone(reg_tokens=2)
    content = put(prefix, source.vit.state_dict()) | {"classifier.weight": torch.zeros(3, 32)}
    torch.save(content, tmp_path / "weights.pt")
    assert_same(make_backbone(reg_tokens=2, checkpoint=tmp_path / "weights.pt"), source)


def test_what_is_taken_off_is_told(make_backbone, tmp_path):
    state = make_backbone().vit.state_dict()
    content = {"state_dict": put("module.", state) | {"criterion.weight": torch.zeros(1)}}
    with pytest.warns(BackboneWarning) as told:
        load(make_backbone, tmp_path, content)
    path = tmp_path / "weights.pt"
    assert [str(each.message) for each in told] == [
        f"{path}: the weights are those under 'state_dict'",
        f"{path}: 'module.' is taken off the names of {len(state)} weights; left out 1 others: "
        "criterion.weight",
    ]


@pytest.mark.parametrize(
    "wrap",
    [
        *(
            lambda state, key=key: {key: state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
            for key in ("state_dict", "model", "model_ema", "state_dict_ema", "teacher", "net")
        ),
        lambda state: {"model": {"state_dict": put("module.", state)}, "scaler": {"scale": 1.0}},
        lambda state: {
            "model": state,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1}]},
            "dino_loss": {"center": torch.zeros(1, 9)},
        },
    ],
)
@pytest.mark.filterwarnings("ignore::avalanche_peftcl.errors.BackboneWarning")
def test_dictionaries_around_the_weights_are_taken_off(make_backbone, tmp_path, wrap):
    source = make_backbone()
    assert_same(load(make_backbone, tmp_path, wrap(source.vit.state_dict())), source)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda s: {"student": s, "teacher": s}, "several networks, under student, teacher; save"),
        (lambda s: {"model": s, "model_ema": s}, "several networks, under model, model_ema; save"),
        (
            lambda s: put("module.base_encoder.", s) | put("module.momentum_encoder.", s),
            r"several networks, with module\.base_encoder\., module\.momentum_encoder\. in front",
        ),
        (lambda s: s | put("ema.", s), r"several networks, with \(nothing\), ema\. in front"),
        (lambda s: {"epoch": 3}, "holds no state dict"),
        (lambda s: [1, 2], "holds no state dict"),
        (lambda s: s | {"epoch": 3}, "holds no state dict"),
        (lambda s: {}, "holds no state dict"),
    ],
)
def test_what_is_not_one_network_is_named(make_backbone, tmp_path, content, said):
    with pytest.raises(CheckpointError, match=said):
        load(make_backbone, tmp_path, content(make_backbone().vit.state_dict()))


@pytest.mark.parametrize(
    "content",
    [
        lambda s: {f"layer{i}.weight": torch.zeros(1) for i in range(500)},
        lambda s: {f"my_{k}": v for k, v in s.items()},
        lambda s: {k: v for k, v in s.items() if "mlp" not in k},
        lambda s: s | {f"extra_{i}": torch.zeros(1) for i in range(500)},
        lambda s: {k: torch.zeros(7) for k in s},
        lambda s: {"x" * 100_000: torch.zeros(1)},
    ],
)
@pytest.mark.filterwarnings("ignore::avalanche_peftcl.errors.BackboneWarning")
def test_the_message_is_one_short_line(make_backbone, tmp_path, content):
    with pytest.raises(CheckpointError, match="does not fit") as caught:
        load(make_backbone, tmp_path, content(make_backbone().vit.state_dict()))
    told = str(caught.value).replace(str(tmp_path), "")
    assert len(told) < 600
    assert "\n" not in told


def test_weights_of_another_kind_are_told_so(make_backbone, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"none of its 2 names is one of the model's 42 \(a, b"
    ):
        load(make_backbone, tmp_path, {"a": torch.zeros(1), "b": torch.zeros(1)})


@pytest.mark.parametrize(
    "name", ["deit3_small_patch16_224", "flexivit_small", "vit_base_patch16_siglip_gap_224"]
)
def test_files_are_read_as_timm_reads_them(name, tmp_path):
    small = {"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": 64}
    source = timm.create_model(name, num_classes=0, **(small | {"img_size": 96}))
    state = source.state_dict()
    if "siglip" in name:
        state["attn_pool.latent"] = torch.zeros(1, 1, 24)  # what the file has and timm leaves out
    named = {
        k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v
        for k, v in state.items()
    }
    torch.save(named, tmp_path / "weights.pt")
    loaded = create_backbone(name, checkpoint=tmp_path / "weights.pt", **small).vit
    theirs = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={
            "file": str(tmp_path / "weights.pt"),
            "hf_hub_id": None,
            "custom_load": False,
        },
        num_classes=0,
        **small,
    )
    for key, value in theirs.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_a_network_of_timms_own_classes_is_enough(tmp_path):
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=24, num_heads=2)
    torch.save(vit.state_dict(), tmp_path / "weights.pt")
    bare = timm.models.VisionTransformer(depth=1, embed_dim=24, num_heads=2, num_classes=0)
    load_checkpoint(bare, tmp_path / "weights.pt")
    assert torch.equal(bare.pos_embed, vit.pos_embed)
