"""Names and options of timm's models: what is taken, what is refused and how that is said."""

import inspect
import math

import pytest
import timm
import torch
from timm.models import _registry

from avalanche_peftcl.errors import BackboneWarning, CheckpointError, ConfigError
from avalanche_peftcl.models import create_backbone
from avalanche_peftcl.models.backbones.timm_names import current_name
from avalanche_peftcl.models.backbones.timm_vit import check_fit
from avalanche_peftcl.registry import discover

TINY = "vit_tiny_patch16_224"
REGISTRY = discover(only=["avalanche-peftcl"])


def draft(model_name, **options):
    """Build a network without weights, as large as it may be."""
    with torch.device("meta"):
        return timm.create_model(model_name, num_classes=0, **options)


# --- names ---------------------------------------------------------------------------------------


def test_a_name_may_carry_the_tag_of_its_weights():
    plain = create_backbone(f"{TINY}.augreg_in21k", img_size=32, depth=1)
    tuned = create_backbone("deit_tiny_patch16_224.fb_in1k", img_size=32, depth=1)
    assert plain.input_config.mean == pytest.approx((0.5, 0.5, 0.5))
    assert tuned.input_config.mean == pytest.approx((0.485, 0.456, 0.406))
    assert plain.model_name == f"{TINY}.augreg_in21k"


def test_a_name_that_timm_has_given_up_is_followed_to_the_same_weights():
    with pytest.warns(BackboneWarning, match=r"calls 'vit_base_patch16_224_in21k' 'vit_base_patch"):
        backbone = create_backbone("vit_base_patch16_224_in21k", depth=1, embed_dim=12)
    assert backbone.model_name == "vit_base_patch16_224.augreg_in21k"
    assert backbone.input_config.mean == (0.5, 0.5, 0.5)


@pytest.mark.filterwarnings("ignore::avalanche_peftcl.errors.BackboneWarning")
def test_every_name_that_timm_has_given_up_leads_where_timm_leads():
    given_up = _registry._deprecated_models
    assert len(given_up) > 20
    for name, current in given_up.items():
        if current is None:
            with pytest.raises(ConfigError, match="timm has removed"):
                current_name(name)
        else:
            assert current_name(name) == current
            assert timm.is_model(current.partition(".")[0])


def test_every_name_in_timms_registry_is_taken():
    assert {current_name(name) for name in timm.list_models("vit_*")} == set(
        timm.list_models("vit_*")
    )
    for name in timm.list_pretrained("deit*"):
        assert current_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:",
        "hub:timm/vit_tiny_patch16_224.augreg_in21k",
        "file:///some/model",
        "timm/vit_tiny_patch16_224",
        "https://example.org/vit_tiny_patch16_224",
        "../vit_tiny_patch16_224",
        "C:\\vit_tiny_patch16_224",
        "vit_tiny_patch16_224\n",
        "",
    ],
)
def test_a_name_that_is_a_place_is_refused(name, no_network):
    with pytest.raises(
        ConfigError, match=r"not the name of a model in timm's registry.*checkpoint"
    ):
        create_backbone(name, pretrained=True)


def test_a_name_that_is_not_there_lists_others_and_says_that_they_are_others():
    with pytest.raises(ConfigError) as caught:
        current_name("vit_tiny_patch16_225")
    assert str(caught.value).startswith(
        "timm has no model 'vit_tiny_patch16_225'. Spelt alike, but with other weights and so "
        "other results: 'vit_tiny_patch16_224', "
    )
    with pytest.raises(ConfigError, match=r"other weights.*'vit_tiny_patch16_224\.augreg_in21k'"):
        current_name("vit_tiny_patch16_224.augreg_in21l")
    with pytest.raises(ConfigError) as caught:
        current_name("vit" * 10_000)
    assert len(str(caught.value)) < 1000


# --- options -------------------------------------------------------------------------------------

OUT_OF_RANGE = {
    "depth": [0, -1, 10**6],
    "embed_dim": [0, -24, 10**9],
    "num_heads": [0, -2, 10**9],
    "patch_size": [0, -8, 10**9],
    "img_size": [0, -32, 10**9],
    "mlp_ratio": [0, -4, math.nan, math.inf, 1e9],
    "init_values": [-1, math.nan, math.inf],
    "reg_tokens": [-1, 10**9],
    "crop_pct": [0.00001, 0, -1, 1.1, math.nan],
    "global_pool": ["", "mean", 1],
    "norm_layer": ["foo", "torch.nn.LayerNorm"],
    "act_layer": ["foo"],
    "qkv_bias": ["maybe"],
    "interpolation": ["nearest"],
}
CASES = [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]


@pytest.mark.parametrize(("option", "value"), CASES)
def test_a_value_out_of_range_never_reaches_timm(option, value, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: pytest.fail("was called"))
    with pytest.raises(ConfigError, match=f"option '{option}' should be .*, got"):
        create_backbone(TINY, **{option: value})
    with pytest.raises(ConfigError, match=f"option '{option}' should be .*, got"):
        REGISTRY.build("backbone", "timm_vit", {"model_name": TINY, option: value})


@pytest.mark.parametrize(
    "option",
    [
        "checkpoint_path",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_strict",
        "cache_dir",
        "embed_layer",
        "block_fn",
        "attn_layer",
        "in_chans",
        "num_classes",
        "use_naflex",
        "dtype",
        "features_only",
        "drop_rate",
        "img_sise",
    ],
)
def test_only_options_of_the_architecture_are_there(option):
    options = {"model_name": TINY, option: 1}
    with pytest.raises(ConfigError, match=f"unknown option '{option}'"):
        REGISTRY.build("backbone", "timm_vit", options)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        create_backbone(**options)


TAKEN = [
    {"img_size": 64, "patch_size": 8},
    {"embed_dim": 24, "num_heads": 4},
    {"depth": 2},
    {"mlp_ratio": 0.5},
    {"qkv_bias": False},
    {"proj_bias": False},
    {"qk_norm": True},
    {"init_values": 0.1},
    {"class_token": False, "global_pool": "avg"},
    {"reg_tokens": 3},
    {"no_embed_class": True},
    {"pre_norm": True},
    {"final_norm": False},
    {"fc_norm": True},
    {"norm_layer": "rmsnorm"},
    *({"act_layer": name} for name in ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")),
    *({"global_pool": name} for name in ("token", "avg", "max", "avgmax", "map")),
]


@pytest.mark.parametrize("options", TAKEN, ids=str)
def test_every_option_is_timms(options):
    small = {"depth": 1, "embed_dim": 24, "num_heads": 2, "img_size": 32}
    torch.manual_seed(0)
    ours = create_backbone(TINY, **(small | options)).vit
    torch.manual_seed(0)
    theirs = timm.create_model(TINY, num_classes=0, **(small | options)).eval()
    images = torch.randn(2, 3, ours.patch_embed.img_size[0], ours.patch_embed.img_size[0])
    assert torch.equal(ours(images), theirs(images))
    assert str(ours) == str(theirs)


def test_each_option_is_tried_above():
    there = set(inspect.signature(create_backbone).parameters)
    there -= {"model_name", "pretrained", "checkpoint", "normalize", "crop_pct", "interpolation"}
    assert {name for options in TAKEN for name in options} == there


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet10t", {}, "not a plain vision transformer"),
        (TINY, {"img_size": 3}, "img_size=3 is not a multiple of the patch size 16"),
        (TINY, {"img_size": 200}, "img_size=200 is not a multiple of the patch size 16"),
        (TINY, {"patch_size": 15}, "img_size=224 is not a multiple of the patch size 15"),
        (TINY, {"pretrained": True, "checkpoint": "x"}, "exclude each other"),
        (TINY, {"num_heads": 5}, "cannot build .* with num_heads=5: .*divisible by num_heads"),
        (TINY, {"class_token": False}, "class_token=False: .*(class token|go together)"),
        ("deit_tiny_distilled_patch16_224", {"global_pool": "avg"}, "with global_pool='avg': "),
    ],
)
def test_bad_backbones_are_config_errors(name, options, message):
    with pytest.raises(ConfigError, match=message):
        create_backbone(name, **options)


def test_a_size_of_timms_own_may_leave_a_margin():
    backbone = create_backbone("vit_so400m_patch14_siglip_384", depth=1, embed_dim=16)
    assert backbone.input_config.img_size == 384
    assert backbone.num_tokens == 27 * 27
    assert backbone(torch.zeros(1, 3, 384, 384)).shape == (1, 16)


# --- timm's weights ------------------------------------------------------------------------------


def test_failed_download_says_the_way_out(monkeypatch):
    real = timm.create_model

    def no_network(*args, pretrained=False, **kwargs):
        if pretrained:
            raise OSError("Name or service not known")
        return real(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(CheckpointError, match="give the file as checkpoint="):
        create_backbone(TINY, pretrained=True)


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 2},
        {"depth": 13},
        {"global_pool": "avg"},
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 1},
        {"qk_norm": True},
        {"embed_dim": 96},
        {"init_values": 1.0},
    ],
    ids=str,
)
def test_pretrained_weights_that_would_leave_parts_random_are_refused(options, no_network):
    with pytest.raises(ConfigError, match=r"weights of '.*' do not fit with .* leave these"):
        create_backbone(TINY, pretrained=True, **options)


def test_a_network_that_is_not_plain_is_refused_before_its_weights_are_fetched(no_network):
    for name in ("resnet10t", "vit_base_patch16_rpn_224"):
        with pytest.raises(ConfigError, match="not a plain vision transformer"):
            create_backbone(name, pretrained=True)


@pytest.mark.parametrize(
    "options", [{}, {"img_size": 32}, {"patch_size": 8}, {"global_pool": "token"}], ids=str
)
def test_pretrained_weights_that_are_made_to_fit_are_not_refused(options):
    check_fit(TINY, draft(TINY, **options), options)
    pooled = {"global_pool": "avg", "fc_norm": False}
    check_fit(TINY, draft(TINY, **pooled), pooled)
