import pytest
import safetensors.torch
import torch

from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.models import Branch, create_backbone, forward_branches


def test_frozen_means_no_gradient_and_eval_mode(backbone):
    backbone.train()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.modules())


def test_steps_compose_to_the_network(backbone):
    images = torch.randn(3, 3, 16, 16)
    tokens = backbone.embed(images)
    assert tokens.shape == (3, backbone.num_tokens, backbone.embed_dim) == (3, 17, 32)
    for i, block in enumerate(backbone.blocks):
        after = backbone.attend(i, tokens)
        torch.testing.assert_close(after + backbone.feed(i, after), block(tokens))
        tokens = block(tokens)
    torch.testing.assert_close(backbone.pool(tokens), backbone.vit(images))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"img_size": 24, "patch_size": 8},
        {"qk_norm": True},
        {"init_values": 0.1},
        {"reg_tokens": 2},
        {"global_pool": "avg", "class_token": False},
        {"no_embed_class": True},
        {"depth": 1},
        {"qkv_bias": False},
        {"pre_norm": True},
    ],
)
def test_shared_pass_equals_timm_for_every_kind_of_vit(make_backbone, changes):
    backbone = make_backbone(**changes)
    size = backbone.input_config.img_size
    images = torch.randn(2, 3, size, size)
    expected = backbone.vit(images)
    assert backbone.embed(images).shape[1] == backbone.num_tokens
    for features in forward_branches(backbone, [Branch(), Branch()], images):
        torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_queries_are_a_slice_of_the_whole(backbone):
    tokens = torch.randn(2, 17, 32)
    torch.testing.assert_close(
        backbone.attend(1, tokens, queries=3), backbone.attend(1, tokens)[:, :3]
    )


def test_a_name_may_carry_the_tag_of_its_weights():
    plain = create_backbone("vit_tiny_patch16_224.augreg_in21k", img_size=32, depth=1)
    tuned = create_backbone("deit_tiny_patch16_224.fb_in1k", img_size=32, depth=1)
    assert plain.input_config.mean == pytest.approx((0.5, 0.5, 0.5))
    assert tuned.input_config.mean == pytest.approx((0.485, 0.456, 0.406))


def test_input_config_follows_the_model_or_is_none():
    deit = create_backbone("deit_tiny_patch16_224", img_size=32, depth=1).input_config
    assert deit.img_size == 32
    assert deit.mean == pytest.approx((0.485, 0.456, 0.406))
    cut = create_backbone("deit_tiny_patch16_224", img_size=32, depth=1, crop_pct=1.0)
    assert (deit.crop_pct, cut.input_config.crop_pct) == (0.9, 1.0)
    linear = create_backbone(
        "deit_tiny_patch16_224", img_size=32, depth=1, interpolation="bilinear"
    )
    assert (deit.interpolation, linear.input_config.interpolation) == ("bicubic", "bilinear")
    plain = create_backbone("deit_tiny_patch16_224", img_size=32, depth=1, normalize="none")
    assert plain.input_config.mean == (0, 0, 0)
    assert plain.input_config.std == (1, 1, 1)


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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_tiny_patch16_225", {}, "did you mean 'vit_tiny_patch16_224'"),
        (
            "vit_tiny_patch16_224.augreg_in21l",
            {},
            "did you mean 'vit_tiny_patch16_224.augreg_in21k'",
        ),
        ("resnet18", {}, "not a plain vision transformer"),
        ("vit_tiny_patch16_224", {"img_size": 3}, "img_size"),
        ("vit_tiny_patch16_224", {"pretrained": True, "checkpoint": "x"}, "exclude each other"),
        ("vit_tiny_patch16_224", {"img_sise": 1}, "did you mean 'img_size'"),
        ("vit_tiny_patch16_224", {"num_heads": 5}, "cannot build"),
    ],
)
def test_bad_backbones_are_config_errors(name, options, message):
    with pytest.raises(ConfigError, match=message):
        create_backbone(name, **options)


def test_failed_download_says_the_way_out(monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("avalanche_peftcl.models.backbone.timm.create_model", no_network)
    with pytest.raises(CheckpointError, match="give the file as checkpoint="):
        create_backbone("vit_tiny_patch16_224", pretrained=True)


def test_deit_of_the_shared_data_loads_at_160_pixels(shared_data):
    backbone = create_backbone(
        "deit_tiny_patch16_224",
        checkpoint=shared_data / "deit_tiny_patch16_224.fp16.safetensors",
        img_size=160,
    )
    assert backbone.num_tokens == 101
    assert backbone(torch.zeros(1, 3, 160, 160)).isfinite().all()
