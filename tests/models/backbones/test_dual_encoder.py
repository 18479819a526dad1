import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional as F

from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.models import create_backbone, create_dual_encoder
from avalanche_peftcl.testing import BackboneContract

try:
    import open_clip
except ImportError:  # an extra
    open_clip = None
pytestmark = pytest.mark.skipif(open_clip is None, reason="open_clip_torch is not installed")

NAME, SIZE, WIDTH = "test_vit", 64, 12
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "photo"]


def write(folder):
    """Write two small towers and two maps; return the options that name them, and all weights."""
    torch.manual_seed(0)
    image = create_backbone(NAME, img_size=SIZE)
    save_file({k: v.half() for k, v in image.vit.state_dict().items()}, folder / "vit.safetensors")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 32, "vocab_size": len(WORDS), "max_position_embeddings": 16}
    told = transformers.BertConfig(**sizes)
    bert = transformers.BertModel(told).eval()
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text(json.dumps(told.to_dict()))
    (folder / "bert" / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    state = dict(bert.state_dict())  # with BERT's own pooler, which is not used
    assert any(k.startswith("pooler.") for k in state)
    state["embeddings.position_ids"] = torch.arange(16)[None]  # as files of some years ago have
    save_file(state, folder / "bert" / "model.safetensors")
    maps = {
        "visual_projection.weight": torch.randn(WIDTH, image.embed_dim),
        "text_projection.weight": torch.randn(WIDTH, 16),
        "logit_scale": torch.tensor(3.0),
    }
    save_file(maps, folder / "maps.safetensors")
    options = {
        "model_name": NAME,
        "img_size": SIZE,
        "out_features": WIDTH,
        "context_length": 8,
        "checkpoint": folder / "vit.safetensors",
        "checkpoint_text": folder / "bert",
        "checkpoint_projections": folder / "maps.safetensors",
    }
    return options, image, bert, maps


@pytest.fixture
def options(tmp_path):
    return write(tmp_path)[0]


def test_it_is_two_towers_and_two_maps(tmp_path):
    options, image, bert, maps = write(tmp_path)
    backbone, images = create_dual_encoder(**options), torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = image(images) @ maps["visual_projection.weight"].T
        torch.testing.assert_close(backbone(images), expected, atol=1e-2, rtol=1e-2)  # from fp16
        tokens, mask = torch.tensor([[2, 5, 6, 3, 0, 0, 0, 0]]), torch.tensor([[1] * 4 + [0] * 4])
        last = bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        mean = (last * mask[..., None]).sum(dim=1) / mask.sum()
        expected = F.normalize(mean @ maps["text_projection.weight"].T)
    made = backbone.encode_text(["cat"], ["a {}"])
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=0)
    assert backbone.logit_scale == pytest.approx(20.0855, rel=1e-5)
    assert (backbone.has_text, backbone.out_features, backbone.model_name) == (True, WIDTH, None)
    assert not any(p.requires_grad for p in backbone.text.module.parameters())


def test_without_its_files_it_is_an_image_tower_for_what_an_exported_file_holds(options):
    backbone = create_dual_encoder(**options)
    alone = create_dual_encoder(NAME, img_size=SIZE, out_features=WIDTH)
    assert not alone.has_text
    alone.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(alone(images), backbone(images))
    assert alone.logit_scale == backbone.logit_scale
    with pytest.raises(ConfigError, match="was built without its text side, so no class name can"):
        alone.encode_text(["cat"])


class TestContract(BackboneContract):
    @pytest.fixture(autouse=True)
    def _options(self, options):
        self.options = options

    def create_backbone(self):
        return create_dual_encoder(**self.options)


def test_some_of_its_files_are_none(options):
    del options["checkpoint_projections"]
    with pytest.raises(ConfigError, match="checkpoint_projections is missing: the weights of bot"):
        create_dual_encoder(**options)


def test_files_that_are_missing_or_do_not_fit_are_told(options, tmp_path):
    with pytest.raises(CheckpointError, match="1 of another shape: weight"):
        create_dual_encoder(**options | {"out_features": 13})
    with pytest.raises(CheckpointError, match="no text tower can be built of the folder"):
        create_dual_encoder(**options | {"checkpoint_text": tmp_path / "nowhere"})
    with pytest.raises(CheckpointError, match="does not hold logit_scale, text_projection"):
        create_dual_encoder(**options | {"checkpoint_projections": tmp_path / "vit.safetensors"})
    for file in ("vocab.txt", "tokenizer_config.json"):
        (tmp_path / "bert" / file).unlink()
    with pytest.raises(CheckpointError, match=r"bert holds no tokenizer, such as tokenizer\.json"):
        create_dual_encoder(**options)


def test_without_open_clip_it_says_what_to_install(options, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"pip install avalanche-peftcl\[clip\]"):
        create_dual_encoder(**options)
    assert not create_dual_encoder(NAME, img_size=SIZE, out_features=4).has_text
