"""A tiny frozen ViT that is blind to what tells its images apart, until a few parameters learn."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_peftcl.benchmarks import ImageArray, make_benchmark
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Backbone, InputConfig
from avalanche_peftcl.testing.toys import toy_backbone

MAX_CLASSES = 7  # patterns, and the channels of a token that hold one
_DIM, _PATCH, _HEADS = 32, 4, 4
_SEEN = _DIM - MAX_CLASSES - 1  # channels that the frozen weights read and write
_HIDDEN = slice(_SEEN, _DIM - 1)  # those that hold the pattern; the last one holds nothing
_TINTS = ((-0.06, 0.0, 0.06), (0.06, -0.06, 0.0), (0.0, 0.06, -0.06))


def blind_backbone(seed: int = 0) -> Backbone:
    """Return a frozen random ViT that carries the pattern of an image, and shows none of it.

    Its sizes are those of :func:`.toy_backbone`. The pattern of :func:`learnable_images` lies in 7
    of the 32 channels of every patch token. Values, keys and MLPs have no weight on them, and
    nothing writes to them, so the pooled feature holds nothing of the pattern. Queries do see it:
    in one dimension a head, in which the keys of all tokens are zero. So a few parameters bring it
    out in any of the ways that there are: adapters copy it to channels that are read, LoRA gives
    values a weight on it, prefix keys and prompts are attended to by those tokens that have it.

    For tests that something inside the network learns. Of six classes, 24 images each, over five
    seeds of network and images (chance is 0.17; :func:`.toy_backbone` gets 1.00 of all of these):

    ==================================  ============
    frozen features, on test images     accuracy
    ==================================  ============
    class means, cosine                 0.12 to 0.18
    ridge regression, best of five      0.17 to 0.22
    ==================================  ============

    Args:
        seed: Seed of the weights.

    Example:
        >>> blind_backbone()(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 32])
    """
    return _build(seed, blind=True)


def seeing_backbone(seed: int = 0) -> Backbone:
    """Return the network of :func:`blind_backbone` with weights of values and MLPs on the pattern.

    For tests of classifiers on frozen features: these tell the classes apart without error.

    Args:
        seed: Seed of the weights.
    """
    return _build(seed, blind=False)


def _build(seed: int, *, blind: bool) -> Backbone:
    backbone = toy_backbone()
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def seen(*shape: int, dim: int = 0) -> Tensor:
        """Draw weights that write to the seen channels; their sum stays, so norms shift nothing."""
        values = draw(*shape)
        values.narrow(dim, _SEEN, _DIM - _SEEN).zero_()
        part = values.narrow(dim, 0, _SEEN)
        part -= part.mean(dim=dim, keepdim=True)
        return values

    pixels = 3 * _PATCH**2
    patterns = torch.from_numpy(_patterns()).float()  # (pixels, 7)
    embed = 0.1 * seen(_DIM, pixels)
    embed -= embed @ patterns @ patterns.T
    embed[_HIDDEN] = 24 * (patterns - patterns.mean(dim=1, keepdim=True)).T
    vit: Any = backbone.vit
    with torch.no_grad():
        vit.patch_embed.proj.weight.copy_(embed.view(_DIM, 3, _PATCH, _PATCH))
        vit.patch_embed.proj.bias.zero_()
        for tokens in (vit.cls_token, vit.pos_embed):
            tokens.copy_(0.3 * seen(*tokens.shape, dim=2))
        for block in vit.blocks:
            queries, keys, values = (draw(_DIM, _DIM) / _DIM**0.5 for _ in range(3))
            keys[:, _HIDDEN] = keys[:, -1] = 0.0
            values[:, _HIDDEN] *= not blind
            queries[:, _SEEN:] = 0.0
            for row in range(0, _DIM, _DIM // _HEADS):  # the dimension of each head for patterns
                queries[row] = keys[row] = 0.0
                queries[row, _HIDDEN] = 2 * draw(MAX_CLASSES)
                keys[row, -1] = 4.0  # which no token has, but a prompt may
            block.attn.qkv.weight.copy_(torch.cat([queries, keys, values]))
            block.attn.proj.weight.copy_(0.5 * seen(_DIM, _DIM) / _DIM**0.5)
            width = len(block.mlp.fc1.weight)
            block.mlp.fc1.weight.copy_(draw(width, _DIM) / _DIM**0.5)
            block.mlp.fc1.weight[:, _HIDDEN] *= not blind
            block.mlp.fc2.weight.copy_(0.5 * seen(_DIM, width) / width**0.5)
            for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
                layer.bias.zero_()
    return backbone


def learnable_images(
    n_classes: int = 4, per_class: int = 12, *, seed: int = 0, domains: int = 1
) -> ImageArray:
    """Return images told apart by a pattern in every patch, uint8, 16 by 16 pixels.

    Noise and a tint of its own lie over each image, and beside these a tint that all images of a
    domain share; none of them says anything of the class.

    Args:
        n_classes: Number of classes, up to 7.
        per_class: Images a class.
        seed: Seed of tints and noise; the patterns are always the same.
        domains: Image ``i`` is of domain ``i % domains``, up to 3.

    Raises:
        ConfigError: If there are more classes or domains than patterns and tints.
    """
    if not (1 <= n_classes <= MAX_CLASSES and 1 <= domains <= len(_TINTS)):
        raise ConfigError(
            f"there are 1 to {MAX_CLASSES} patterns and 1 to {len(_TINTS)} tints, "
            f"not n_classes={n_classes} and domains={domains}"
        )
    rng = np.random.default_rng(seed)
    labels = np.arange(n_classes).repeat(per_class)
    codes = np.eye(MAX_CLASSES) - 1 / MAX_CLASSES  # equally long, and of sum 0
    patches = 0.5 * (codes @ _patterns().T).reshape(-1, 3, _PATCH, _PATCH).transpose(0, 2, 3, 1)
    images = 0.5 + np.tile(patches, (1, 4, 4, 1))[labels]  # (n, 16, 16, 3)
    images += rng.uniform(-0.1, 0.1, (len(labels), 1, 1, 3))
    images += rng.uniform(-0.08, 0.08, images.shape)
    if domains > 1:
        images += np.array(_TINTS)[np.arange(len(labels)) % domains][:, None, None]
    return ImageArray((255 * images).round().astype(np.uint8), labels.tolist())


def learnable_benchmark(
    scenario: str = "class",
    *,
    classes_per_experience: tuple[int, ...] = (2, 2),
    per_class: int = 16,
    test_per_class: int = 8,
    seed: int = 0,
    **options: Any,
) -> Any:
    """Return a benchmark of :func:`learnable_images`, for :func:`blind_backbone`.

    A few parameters learn each scenario in seconds; :class:`.StrategyContract` asks for it.

    Args:
        scenario: ``"class"``, ``"task"``, ``"domain"`` (as many domains as experiences in the
            others) or ``"online"``.
        classes_per_experience: Sizes of the experiences; in ``"domain"`` their sum counts.
        per_class: Training images a class; in ``"domain"`` of a class in a domain.
        test_per_class: Test images, likewise.
        seed: Seed of the images.
        **options: Further arguments of :func:`~avalanche_peftcl.benchmarks.make_benchmark`.
    """
    n, domains = sum(classes_per_experience), 1
    if scenario == "domain":
        domains = len(classes_per_experience)
        options |= {
            "train_domains": [i % domains for i in range(n * per_class * domains)],
            "test_domains": [i % domains for i in range(n * test_per_class * domains)],
        }
    else:
        options["classes_per_experience"] = classes_per_experience
    defaults = {"augment": "none", "class_order": list(range(n))}
    return make_benchmark(
        learnable_images(n, per_class * domains, seed=2 * seed, domains=domains),
        learnable_images(n, test_per_class * domains, seed=2 * seed + 1, domains=domains),
        input_config=InputConfig(img_size=16),
        scenario=scenario,
        **(defaults | options),
    )


def _patterns() -> np.ndarray:
    """Return orthonormal patterns of a patch that no tint looks like, ``(3 * 4 * 4, 7)``."""
    drawn = np.random.default_rng(7).normal(size=(3, _PATCH**2, MAX_CLASSES))
    flat = (drawn - drawn.mean(axis=1, keepdims=True)).reshape(-1, MAX_CLASSES)
    return np.linalg.qr(flat)[0]
