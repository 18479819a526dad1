from pathlib import Path

import pytest
import torch

from avalanche_peftcl.testing import install_for_tests

HERE = Path(__file__).parents[1]
torch.set_num_threads(1)  # of toys a second thread takes longer than it saves


@pytest.fixture(autouse=True, scope="session")
def installed(tmp_path_factory):
    """What pyproject.toml says, as an installation would write it, in front of any other."""
    with pytest.MonkeyPatch.context() as patch:
        yield install_for_tests(HERE, tmp_path_factory.mktemp("installed"), patch)


def attention_by_hand(attention, x, keys, values):
    """Return what an attention gives one image, ``(N, D)``, head by head, with further keys."""
    q, k, v = attention.qkv(x).chunk(3, dim=1)
    k, v = torch.cat([keys, k]), torch.cat([values, v])
    width = x.shape[1] // attention.num_heads
    heads = []
    for h in range(attention.num_heads):
        own = slice(h * width, (h + 1) * width)
        weights = (q[:, own] @ k[:, own].T / width**0.5).softmax(dim=1)
        heads.append(weights @ v[:, own])
    return attention.proj(torch.cat(heads, dim=1))


@pytest.fixture
def feature_by_hand():
    """A pass of one image by timm's own layers, with keys and values of some blocks given."""

    def run(backbone, image, prefixes):
        tokens = backbone.embed(image[None])[0]
        none = tokens.new_zeros(0, tokens.shape[1])
        for index, block in enumerate(backbone.blocks):
            keys, values = prefixes.get(index, (none, none))
            tokens = tokens + attention_by_hand(block.attn, block.norm1(tokens), keys, values)
            tokens = tokens + block.mlp(block.norm2(tokens))
        return backbone.vit.norm(tokens)[0]

    return run
