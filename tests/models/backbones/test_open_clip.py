import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.models import (
    ImageTextBackbone,
    PEFTModel,
    TextTower,
    build_adapters,
    build_attention_adapters,
    build_lora,
    build_prefix,
    build_prompt,
    create_open_clip,
    projection_sites,
)
from avalanche_peftcl.testing import BackboneContract

try:
    import open_clip
except ImportError:  # an extra
    open_clip = None
pytestmark = pytest.mark.skipif(open_clip is None, reason="open_clip_torch is not installed")

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
OPENAI = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TIMM = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 9,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "photo"]


def write(folder, config, *, state=None, preprocess=None):
    """Write a folder as open_clip does, of random weights; return the model that they are of."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"model_cfg": config, "preprocess_cfg": preprocess or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(**copy.deepcopy(config)).eval()
    state = model.state_dict() if state is None else state(model)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "open_clip_model.safetensors")
    return model


def config(vision=OPENAI, text=TEXT, **more):
    return {"embed_dim": 24, "vision_cfg": dict(vision), "text_cfg": dict(text), **more}


def write_bert(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(BERT))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    told = {"tokenizer_class": "BertTokenizer", "model_max_length": 16}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


@pytest.mark.parametrize("quick", [True, False])
def test_a_tower_of_openais_layout_gives_the_features_that_open_clip_gives(folder, quick):
    theirs = write(folder, config(quick_gelu=quick))
    ours, images = create_open_clip(f"local-dir:{folder}"), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.encode_image(images)
        assert (ours(images) - expected).abs().max() < 3e-6
        texts = open_clip.get_tokenizer("ViT-B-16")(["a photo of a cat.", "a photo of a dog."])
        expected = theirs.encode_text(texts, normalize=True)
    made = ours.encode_text(["cat", "dog"], ["a photo of a {}."])
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=0)
    assert ours.logit_scale == pytest.approx(float(theirs.logit_scale.exp().detach()), rel=1e-6)
    assert (ours.out_features, ours.embed_dim, ours.depth, ours.pools_cls) == (24, 32, 2, True)


@pytest.mark.parametrize("name", ["ViT-B-16-quickgelu", "ViT-B-32"])
@pytest.mark.slow
def test_openais_clip_by_its_name_is_timms_network_of_it(name):
    torch.manual_seed(0)
    ours = create_open_clip(name)
    torch.manual_seed(0)
    theirs = open_clip.create_model(name, force_custom_text=True, pretrained=None).eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.encode_image(images)
        scale = expected.abs().max()
        assert (ours(images) - expected).abs().max() < 3e-6 * max(1, scale)
    assert ours.input_config.mean == open_clip.OPENAI_DATASET_MEAN


def test_a_tower_of_timm_is_read_as_it_is(folder):
    theirs = write(folder, config(TIMM | {"image_size": 160}))
    ours = create_open_clip(f"local-dir:{folder}")
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.encode_image(images), atol=1e-6, rtol=0)


def test_siglip_pools_by_attention_and_has_no_projection(folder):
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "map", "timm_proj": "none"}
    small = config(vision, embed_dim=192, init_logit_bias=-10)
    theirs = write(folder, small | {"embed_dim": 192})
    ours, images = create_open_clip(f"local-dir:{folder}"), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.encode_image(images), atol=1e-5, rtol=0)
    assert not ours.pools_cls
    assert "logit_bias" in load_file(folder / "open_clip_model.safetensors")


def test_the_size_of_images_is_set_when_the_weights_are_there(folder):
    """`image_size` of a timm tower is none of timm's: what open_clip builds fails in forward."""
    theirs = write(
        folder, config(TIMM | {"image_size": 96, "timm_model_name": "vit_tiny_patch16_224"})
    )
    with pytest.raises(AssertionError, match="doesn't match model"):
        theirs.encode_image(torch.randn(1, 3, 96, 96))
    theirs.visual.set_input_size(96)
    ours, images = create_open_clip(f"local-dir:{folder}"), torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.encode_image(images), atol=1e-6, rtol=0)
        theirs.visual.set_input_size(64)
    other, images = create_open_clip(f"local-dir:{folder}", img_size=64), images[..., :64, :64]
    assert (other.input_config.img_size, other.num_tokens) == (64, 17)
    with torch.no_grad():
        # from 160 by 96 to 64 and at once: two resamplings there, one here
        assert F.cosine_similarity(other(images), theirs.encode_image(images)).min() > 0.99


def test_weights_of_another_size_are_loaded_as_they_are(folder):
    def saved_at_96(model):
        model.visual.set_input_size(96)
        return model.state_dict()

    theirs = write(folder, config(TIMM | {"image_size": 96}), state=saved_at_96)
    ours, images = create_open_clip(f"local-dir:{folder}"), torch.randn(2, 3, 96, 96)
    assert torch.equal(ours.vit.pos_embed, theirs.visual.trunk.pos_embed)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs.encode_image(images), atol=1e-6, rtol=0)
    openai = write(folder, config(OPENAI))
    bigger = create_open_clip(f"local-dir:{folder}", img_size=64)
    assert bigger(torch.randn(1, 3, 64, 64)).shape == (1, 24)
    assert openai.visual.positional_embedding.shape == (17, 32)


def test_nothing_trains_on_either_side_and_no_state_dict_holds_the_text_side(folder):
    write(folder, config())
    backbone = create_open_clip(f"local-dir:{folder}")
    model = PEFTModel(backbone, build_adapters(backbone=backbone, r=2))
    model.start_experience([(0, 0), (0, 1)])
    model.train()
    sides = [*backbone.parameters(), *backbone.text.module.parameters()]
    assert not any(p.requires_grad for p in sides)
    assert not any(m.training for m in [*backbone.modules(), *backbone.text.module.modules()])
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is None for p in sides)
    assert not [k for k in backbone.state_dict() if k.startswith("text.")]
    assert copy.deepcopy(model).backbone.text is backbone.text
    held = {id(p) for p in model.parameters()}
    assert not held & {id(p) for p in backbone.text.module.parameters()}


def test_another_text_side_is_another_network(folder):
    write(folder, config())
    one = create_open_clip(f"local-dir:{folder}")

    def nudged(model):
        state = model.state_dict()
        state["text.ln_final.bias"][0] += 1e-3
        return state

    write(folder, config(), state=nudged)
    other = create_open_clip(f"local-dir:{folder}")
    differ = [k for k, v in one.state_dict().items() if not torch.equal(v, other.state_dict()[k])]
    assert differ == ["text_sha256"]


def test_the_text_side_goes_where_the_backbone_goes(folder):
    write(folder, config())
    backbone = create_open_clip(f"local-dir:{folder}")
    before = backbone.encode_text(["cat"])
    backbone.double()
    assert {p.dtype for p in backbone.text.module.parameters()} == {torch.float64}
    again = backbone.encode_text(["cat"])
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, before, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "build",
    [build_adapters, build_attention_adapters, build_lora, build_prefix, build_prompt],
)
@pytest.mark.parametrize("vision", [OPENAI, TIMM | {"image_size": 64}], ids=["openai", "timm"])
def test_modules_and_their_projection_sites_run_on_it(folder, build, vision):
    write(folder, config(vision))
    backbone = create_open_clip(f"local-dir:{folder}")
    branch = build(backbone=backbone)
    model = PEFTModel(backbone, branch)
    model.start_experience([(0, 0), (0, 1)])
    assert model.head.in_features == 24
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    side = backbone.input_config.img_size
    model(torch.randn(2, 3, side, side)).sum().backward()
    trained = [p for p in branch.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.any() for p in trained)
    assert list(projection_sites(branch))


class TestContract(BackboneContract):
    @pytest.fixture(autouse=True)
    def _folder(self, folder):
        write(folder, config())
        self.name = f"local-dir:{folder}"

    def create_backbone(self):
        return create_open_clip(self.name)


# --- text towers of transformers ----------------------------------------------------------------


def bert(name, **more):
    return {"hf_model_name": name, "hf_proj_type": "linear", "context_length": 8, **more}


def write_with_bert(folder, name, *, inside=True):
    write_bert(folder / name if inside else folder)
    where = folder / name if inside else folder
    absolute = bert(str(where), hf_model_pretrained=False, hf_pooler_type="mean_pooler")
    theirs = write(folder, config(text=absolute))
    told = json.loads((folder / "open_clip_config.json").read_text())
    told["model_cfg"]["text_cfg"] = bert(name, hf_pooler_type="mean_pooler")
    (folder / "open_clip_config.json").write_text(json.dumps(told))
    return theirs, where


def test_a_relative_folder_of_the_text_tower_is_below_the_models(folder, monkeypatch, tmp_path):
    """open_clip looks below the working directory, where another one may lie."""
    theirs, where = write_with_bert(folder, "bert")
    monkeypatch.chdir(tmp_path)
    write_bert(tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text(json.dumps(BERT | {"hidden_size": 32}))
    ours = create_open_clip("local-dir:model")
    tokens = open_clip.tokenizer.HFTokenizer(str(where), context_length=8)(["a photo cat"])
    with torch.no_grad():
        expected = theirs.encode_text(tokens, normalize=True)
    torch.testing.assert_close(
        ours.encode_text(["cat"], ["a photo {}"]), expected, atol=1e-6, rtol=0
    )


def test_a_text_tower_of_transformers_reads_its_own_tokens(folder):
    """Without `hf_tokenizer_name` open_clip would hand it those of CLIP."""
    write_with_bert(folder, "bert")
    ours = create_open_clip(f"local-dir:{folder}")
    assert ours.text.tokens(["a cat"]).tolist() == [[2, 5, 6, 3, 0, 0, 0, 0]]
    assert not any(p.requires_grad for p in ours.text.module.parameters())


def test_a_missing_tokenizer_is_told_before_anything_is_run(folder):
    write_with_bert(folder, "bert")
    for file in ("vocab.txt", "tokenizer_config.json"):
        (folder / "bert" / file).unlink()
    with pytest.raises(CheckpointError, match=r"model holds no tokenizer, such as tokenizer\.json"):
        create_open_clip(f"local-dir:{folder}")


# --- what each class name becomes ---------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(4, 6), []

    def forward(self, tokens):
        self.seen.append(len(tokens))
        return self.linear(tokens.float())


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return TextTower(Counting(), lambda texts: torch.tensor([list(t.encode()[:4]) for t in texts]))


def test_an_embedding_is_computed_once(tower):
    first = tower.encode(["gnat", "wren"], ["{}s", "a {}"])
    assert tower.module.seen == [8]
    more = tower.encode(["wren", "toad", "gnat"], ["{}s", "a {}"])
    assert tower.module.seen == [8, 8]
    assert torch.equal(more[[2, 0]], first)
    tower.encode(["gnat"])
    assert tower.module.seen == [8, 8, 8]
    tower.encode(["gnat"], ["a {}", "{}s"])  # sums in another order
    tower.encode(["wren", "gnat", "wren"], ["{}s", "a {}"])
    assert len(tower.module.seen) == 4


def test_templates_are_averaged_on_unit_norm(tower):
    with torch.no_grad():
        parts = [tower.module(tower.tokens([t])) for t in ("gnats", "a gnat")]
    parts = [part / part.norm() for part in parts]
    mean = (parts[0] + parts[1]) / 2
    torch.testing.assert_close(tower.encode(["gnat"], ["{}s", "a {}"]), mean / mean.norm())


def test_weights_that_change_are_seen(tower):
    before = tower.encode(["gnat"])
    with torch.no_grad():
        tower.module.linear.weight[0, 0] += 1
    assert not torch.equal(tower.encode(["gnat"]), before)
    tower.module.linear.weight = nn.Parameter(tower.module.linear.weight.detach().clone() + 1)
    assert len(tower.module.seen) == 2
    tower.encode(["gnat"])
    assert len(tower.module.seen) == 3


@pytest.mark.parametrize(
    ("names", "templates", "told"),
    [
        ([], None, "class names must be words, one a class; got "),
        (["cat", " "], None, "class names must be words"),
        (["cat"], ["a photo"], "a template is a sentence with {} where the name"),
        (["cat"], [], "a template is a sentence"),
    ],
)
def test_what_is_no_name_and_no_template(tower, names, templates, told):
    with pytest.raises(ConfigError) as caught:
        tower.encode(names, templates)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


# --- what cannot be used ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model_name": "ViT-B-17"}, "open_clip has no model 'ViT-B-17' (did you mean 'ViT-B-1"),
        ({"model_name": "hf-hub:a/b"}, "open_clip has no model 'hf-hub:a/b'"),
        (
            {"model_name": "ViT-B-16-quickgelu.opanai", "pretrained": True},
            "open_clip has no weights 'opanai' of 'ViT-B-16-quickgelu'; name those you mean: ViT-B",
        ),
        (
            {"model_name": "ViT-B-16-quickgelu", "pretrained": True},
            "open_clip has several weights of 'ViT-B-16-quickgelu', or none; name those you mean",
        ),
        (
            {"model_name": "ViT-B-16.openai", "pretrained": True},
            "the weights 'openai' are of a model with QuickGELU, 'ViT-B-16' is one without; take "
            "ViT-B-16-quickgelu.openai",
        ),
        (
            {"model_name": "ViT-L-14", "checkpoint": "a.pt"},
            "open_clip has weights of 'ViT-L-14' that expect other images than others do; name",
        ),
        ({"model_name": "RN50"}, "the image tower of 'RN50' is no vision transformer"),
        ({"model_name": "coca_ViT-B-32"}, "'coca_ViT-B-32' is a captioner"),
        (
            {"model_name": "convnext_tiny"},
            "the image tower of 'convnext_tiny' is a ConvNeXt, no plain vision transformer",
        ),
        (
            {"model_name": "ViT-B-16", "pretrained": True, "checkpoint": "a"},
            "pretrained=True and checkpoint= exclude each other",
        ),
        ({"model_name": "local-dir:a", "pretrained": True}, "the weights of a folder are in it"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(options, told):
    with pytest.raises(ConfigError) as caught:
        create_open_clip(**options)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_files_that_do_not_fit_are_told(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere has no open_clip_config\.json"):
        create_open_clip(f"local-dir:{tmp_path / 'nowhere'}")
    write(folder, config())
    weights = folder / "open_clip_model.safetensors"
    state = load_file(weights)
    for left_out, said in (
        ("visual.ln_post.bias", "1 missing: norm.bias"),
        ("text.ln_final.bias", "1 missing: ln_final.bias"),
        ("logit_scale", "it has no logit_scale"),
    ):
        save_file({k: v for k, v in state.items() if k != left_out}, weights)
        with pytest.raises(CheckpointError, match=f"does not fit the model: {said}"):
            create_open_clip(f"local-dir:{folder}")
    save_file(state | {"third_tower": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match="unexpected third_tower"):
        create_open_clip(f"local-dir:{folder}")
    weights.unlink()
    with pytest.raises(CheckpointError, match="model holds no weights, such as open_clip_model"):
        create_open_clip(f"local-dir:{folder}")
    save_file({f"module.{k}": v.half() for k, v in state.items()}, tmp_path / "other.safetensors")
    made = create_open_clip(f"local-dir:{folder}", checkpoint=tmp_path / "other.safetensors")
    assert isinstance(made, ImageTextBackbone)
    assert made.vit.cls_token.dtype == torch.float32


def test_a_tower_of_timm_says_how_it_pools(folder):
    """`timm_pool` is `avg` where it is left out, with the same weights and no error."""
    write(folder, config({"timm_model_name": "test_vit", "image_size": 160}))
    with pytest.raises(ConfigError, match="does not say how the image tower pools, and open_clip"):
        create_open_clip(f"local-dir:{folder}")


def test_a_pickle_is_not_executed(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    write(folder, config())
    torch.save({"visual.proj": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        create_open_clip(f"local-dir:{folder}", checkpoint=tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_images_are_resized_as_the_model_expects(folder):
    squash = {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "resize_mode": "squash"}
    write(folder, config(), preprocess=squash | {"interpolation": "bilinear"})
    told = create_open_clip(f"local-dir:{folder}").input_config
    assert (told.mean, told.std) == ((0.5,) * 3, (0.25,) * 3)
    assert (told.interpolation, told.resize_mode, told.crop_pct) == ("bilinear", "squash", 1.0)
    write(folder, config(), preprocess=squash | {"resize_mode": "longest"})
    with pytest.raises(ConfigError, match="resizes images by 'longest', with a border, which ther"):
        create_open_clip(f"local-dir:{folder}")
    told = create_open_clip(f"local-dir:{folder}", resize_mode="shortest").input_config
    assert told.resize_mode == "shortest"


@pytest.mark.parametrize("tag", ["", ".webli"])
def test_images_of_a_name_are_those_of_its_published_weights(tag, monkeypatch):
    """Without a tag open_clip would hand SigLIP the means of CLIP."""
    small = open_clip.get_model_config("ViT-B-16-SigLIP")
    small["vision_cfg"] |= {"timm_model_name": "vit_tiny_patch16_224"}
    small["text_cfg"] |= {"width": 16, "heads": 2, "layers": 1}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: small | {"embed_dim": 192})
    told = create_open_clip(f"ViT-B-16-SigLIP{tag}").input_config
    assert (told.mean, told.std, told.resize_mode) == ((0.5,) * 3, (0.5,) * 3, "squash")
