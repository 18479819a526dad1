import hashlib
from importlib.resources import files

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.backbones.glyph import vit_glyph

ASSETS = files("avalanche_peftcl") / "assets"


def random_init(seed: int) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return vit_glyph(pretrained=False)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scikit-learn's digits in [0, 1], 32 pixels, bright on dark: 80 % to learn, 20 % to test."""
    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    images = F.interpolate(images, (32, 32), mode="bicubic").clamp(0, 1).expand(-1, 3, -1, -1)
    learn, test = train_test_split(
        range(len(images)), test_size=0.2, stratify=data.target, random_state=0
    )
    labels = torch.from_numpy(data.target)
    return images[learn], labels[learn], images[test], labels[test]


@torch.no_grad()
def nearest_class_mean(backbone: Backbone, data: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """Accuracy of the nearest class mean by cosine."""
    images, labels, test_images, test_labels = data
    mean = torch.tensor(backbone.input_config.mean)[:, None, None]
    std = torch.tensor(backbone.input_config.std)[:, None, None]

    def features(x: Tensor) -> Tensor:
        return F.normalize(torch.cat([backbone((p - mean) / std) for p in x.split(256)]), dim=1)

    learnt = features(images)
    means = torch.stack([learnt[labels == c].mean(0) for c in range(10)])
    guess = (features(test_images) @ F.normalize(means, dim=1).T).argmax(1)
    return (guess == test_labels).double().mean().item()


@pytest.fixture(scope="module")
def pretrained(digits) -> float:
    return nearest_class_mean(vit_glyph(), digits)


def test_it_passes_for_no_network_of_timm():
    assert vit_glyph().model_name is None


def test_it_is_pretrained(digits, pretrained):
    at_random = nearest_class_mean(random_init(0), digits)
    assert pretrained > 0.94, f"nearest class mean on digits: {pretrained:.3f}"
    assert pretrained > at_random + 0.4, f"{pretrained:.3f} against {at_random:.3f}"


def test_polarity_costs_little(digits, pretrained):
    images, labels, test_images, test_labels = digits
    dark = nearest_class_mean(vit_glyph(), (1 - images, labels, 1 - test_images, test_labels))
    assert dark > pretrained - 0.05


def test_weights_are_float32_and_frozen():
    backbone = vit_glyph()
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in backbone.parameters())
    assert (backbone.depth, backbone.embed_dim, backbone.num_tokens) == (6, 96, 17)


def test_two_builds_are_equal_and_random_ones_are_not():
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(vit_glyph()(images), vit_glyph()(images))
    assert not torch.allclose(random_init(0)(images), random_init(1)(images))


def test_input_config():
    config = vit_glyph().input_config
    assert (config.img_size, config.mean, config.std) == (32, (0.5,) * 3, (0.5,) * 3)
    assert config.crop_pct == 1.0
    assert vit_glyph(normalize="none").input_config.mean == (0.0, 0.0, 0.0)


def test_other_sizes_resample_the_position_embedding():
    backbone = vit_glyph(img_size=48)
    assert backbone.num_tokens == 1 + 6 * 6
    assert backbone(torch.zeros(1, 3, 48, 48)).shape == (1, 96)
    assert backbone.input_config.img_size == 48


@pytest.mark.parametrize("img_size", [0, 4, 30])
def test_impossible_size_is_refused(img_size):
    with pytest.raises(ConfigError, match=f"img_size={img_size}; give a positive multiple of 8"):
        vit_glyph(img_size=img_size)


def test_asset_is_small_and_has_its_card():
    assert len((ASSETS / "vit_glyph.safetensors").read_bytes()) < 3_000_000
    card = (ASSETS / "vit_glyph.md").read_text(encoding="utf-8")
    for part in ("Data", "Licence", "Recipe", "Intended use"):
        assert f"## {part}" in card
    digest = hashlib.sha256((ASSETS / "vit_glyph.safetensors").read_bytes()).hexdigest()
    assert digest in card
