"""Vectors that stand for words in front of a name, in every kind of text tower."""

import pytest
import torch
import transformers
from torch import nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import ContextSide, TextSide, TextTower, create_dual_encoder
from avalanche_peftcl.testing import toy_backbone
from tests.models.backbones import test_dual_encoder as dual
from tests.models.backbones import test_open_clip as clip

try:
    import open_clip
except ImportError:  # an extra
    open_clip = None
pytestmark = pytest.mark.skipif(open_clip is None, reason="open_clip_torch is not installed")

LONG = 9  # tokens of a text of the bare tower
WORDS = {"the": 3, "big": 4, "cat": 5, "dog": 6, "a": 7, "zebra": 8, "7": 9}


def without_start(texts):
    """Tokenize as SigLIP does: nothing begins a text, 1 ends and fills it."""
    ids = [[WORDS[word] for word in text.split()] for text in texts]
    return torch.tensor([row + [1] * (LONG - len(row)) for row in ids])


def bare(**options):
    torch.manual_seed(0)
    sizes = {"context_length": LONG, "vocab_size": 12, "width": 16, "heads": 2, "layers": 2}
    tower = open_clip.transformer.TextTransformer(**sizes, output_dim=12, **options)
    for p in tower.parameters():
        p.data.normal_(std=0.3)
    return tower


@pytest.fixture(params=["openai", "bert", "siglip"])
def tower(request, tmp_path):
    """A tower, two names, the words in front of them, and the ids of these words."""
    if request.param == "siglip":
        made = TextTower(bare(no_causal_mask=True, pool_type="last"), without_start)
        return made, ["cat", "dog"], "the big", [3, 4]
    if request.param == "bert":
        made = create_dual_encoder(**dual.write(tmp_path)[0]).text
        return made, ["cat", "dog"], "a photo a", [5, 8, 5]
    clip.write(tmp_path / "model", clip.config())
    made = clip.create_open_clip(f"local-dir:{tmp_path / 'model'}").text
    tokens = made.tokens(["a photo of a"])[0]
    return made, ["cat", "golden retriever"], "a photo of a", tokens[1:5].tolist()


def table(tower):
    return next(m for m in tower.module.modules() if isinstance(m, nn.Embedding))


def test_the_vectors_of_words_are_these_words(tower):
    """The end of a text, padding and positions are where they are with real words."""
    made, names, words, ids = tower
    context = table(made).weight[ids].detach()
    assert made.width == context.shape[1]
    expected = made.encode(names, [f"{words} {{}}"])
    torch.testing.assert_close(made.encode_context(context, names), expected, atol=1e-6, rtol=0)
    shifted = made.encode_context(context + torch.randn_like(context), names)
    assert (shifted - expected).abs().max() > 1e-3
    torch.testing.assert_close(made.encode(names), made.encode(names, ["{}"]))


def test_gradients_flow_to_the_vectors_alone(tower):
    made, names, _, ids = tower
    context = table(made).weight[ids].detach().clone().requires_grad_()
    along = torch.randn(len(names), made.encode(names).shape[1])
    value = (made.encode_context(context, names) * along).sum()
    value.backward()
    assert all(p.grad is None for p in made.module.parameters())
    assert (context.grad.abs().amax(dim=1) > 0).all()
    slope, size = context.grad.norm(), 1e-3
    step = context.grad / slope  # along it, where rounding is small beside the slope
    with torch.no_grad():
        ahead, behind = (
            (made.encode_context(context + sign * size * step, names) * along).sum()
            for sign in (1, -1)
        )
    torch.testing.assert_close((ahead - behind) / (2 * size), slope, atol=0, rtol=2e-2)


def test_names_are_encoded_as_before_afterwards(tower):
    made, names, _, ids = tower
    before = made.encode(names)
    made.encode_context(torch.randn(len(ids), made.width), names)
    made._known.clear()
    assert torch.equal(made.encode(names), before)
    assert not table(made)._forward_hooks


def test_what_a_text_has_no_room_for_is_refused(tower):
    made, names, _, _ = tower
    with pytest.raises(ConfigError, match=r"vectors of context and the name '.*' are longer than"):
        made.encode_context(torch.randn(200, made.width), names)
    with pytest.raises(ConfigError, match=f"width {made.width + 1} stand for no words of a "):
        made.encode_context(torch.randn(2, made.width + 1), names)
    with pytest.raises(ConfigError, match="class names must be words"):
        made.encode_context(torch.randn(2, made.width), [" "])
    long = " ".join([names[0]] * 100)
    if not isinstance(made.module, type(bare())) or made.tokenize is not without_start:
        with pytest.raises(ConfigError, match="take a smaller n_context, or shorter words"):
            made.encode_context(torch.randn(1, made.width), [names[0], long])


def test_padding_is_left_out_where_nothing_sees_it(tmp_path):
    made = create_dual_encoder(**dual.write(tmp_path)[0]).text
    seen = []
    made.module.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    made.encode_context(torch.randn(2, 16), ["cat", "a dog"])
    assert seen == [(2, 6)]
    assert isinstance(made.module.transformer, transformers.BertModel)


def test_who_offers_it(tmp_path):
    backbone = create_dual_encoder(**dual.write(tmp_path)[0])
    assert isinstance(backbone, ContextSide)
    assert backbone.text_width == 16
    context = torch.randn(2, 16)
    texts = backbone.encode_context(context, ["cat"])
    assert torch.equal(texts, backbone.text.encode_context(context, ["cat"]))
    alone = create_dual_encoder(dual.NAME, img_size=dual.SIZE, out_features=dual.WIDTH)
    assert alone.text_width == 0
    with pytest.raises(ConfigError, match="was built without its text side"):
        alone.encode_context(context, ["cat"])
    assert not isinstance(toy_backbone(), ContextSide)
    assert isinstance(alone, TextSide)
