"""A tiny frozen ViT and a tiny stream of coloured noise, for whatever needs no learning.

Class means of the frozen features tell the colours apart (94 to 100 %): an accuracy on them shows
that the parts fit together, not that anything was learnt. That is what :func:`.blind_backbone` and
:func:`.learnable_benchmark` are for. Recorded numbers are of these toys as they are.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_peftcl.benchmarks import ImageArray, make_benchmark
from avalanche_peftcl.models import (
    Backbone,
    ImageTextBackbone,
    InputConfig,
    TextTower,
    create_backbone,
)


def toy_backbone(**changes: Any) -> Backbone:
    """Return a frozen ViT with random weights: 3 blocks, 32 dimensions, 17 tokens.

    Args:
        **changes: Arguments of :func:`~avalanche_peftcl.models.create_backbone` to replace.
    """
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_backbone("vit_tiny_patch16_224", **(options | changes))


def toy_image_text(vit: Any = None, *, out_features: int = 24, seed: int = 0) -> ImageTextBackbone:
    """Return a network of images and texts with random weights; a text is the sum of its letters.

    Args:
        vit: Its image tower, a :class:`~avalanche_peftcl.models.ViTBackbone`; ``None`` takes
            :func:`toy_backbone`.
        out_features: Width of the space of images and texts.
        seed: Of the text side and the projection.

    Example:
        >>> toy_image_text().encode_text(["cat", "dog"]).shape
        torch.Size([2, 24])
    """
    tower = toy_backbone() if vit is None else vit
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = nn.Linear(tower.embed_dim, out_features, bias=False)
        letters = nn.EmbeddingBag(256, out_features, mode="sum", padding_idx=0)
    return ImageTextBackbone(
        tower.vit,
        projection,
        replace(tower.input_config, crop_pct=1.0),
        out_features=out_features,
        logit_scale=20.0,
        text=TextTower(letters, _letters),
    )


def _letters(texts: list[str]) -> Tensor:
    """Return the bytes of texts, ``(B, n)``, all of one length."""
    coded = [text.encode() for text in texts]
    width = max(map(len, coded))
    return torch.tensor([list(text.ljust(width, b"\0")) for text in coded])


def toy_images(n_classes: int = 6, per_class: int = 6, *, seed: int = 0) -> ImageArray:
    """Return noise around one colour a class, uint8 images of 16 by 16 pixels.

    Args:
        n_classes: Number of classes, up to any.
        per_class: Images a class.
        seed: Seed of the noise; the colours are always the same.
    """
    labels = np.arange(n_classes).repeat(per_class)
    colours = np.random.default_rng(99).integers(40, 216, (n_classes, 1, 1, 3))
    noise = np.random.default_rng(seed).integers(-30, 31, (len(labels), 16, 16, 3))
    return ImageArray((colours[labels] + noise).astype(np.uint8), labels.tolist())


def toy_benchmark(
    scenario: str = "class",
    *,
    classes_per_experience: tuple[int, ...] = (2, 2, 2),
    per_class: int = 6,
    **options: Any,
) -> Any:
    """Return a benchmark of :func:`toy_images`, as many test images as half the training ones.

    Args:
        scenario: ``"class"``, ``"task"``, ``"domain"`` (three domains) or ``"online"``.
        classes_per_experience: Sizes of the experiences; in ``"domain"`` their sum counts.
        per_class: Training images a class.
        **options: Further arguments of :func:`~avalanche_peftcl.benchmarks.make_benchmark`.
    """
    n = sum(classes_per_experience)
    train, test = toy_images(n, per_class), toy_images(n, max(3, per_class // 2), seed=1)
    if scenario == "domain":
        options |= {
            "train_domains": [i % 3 for i in range(len(train))],
            "test_domains": [i % 3 for i in range(len(test))],
        }
    else:
        options["classes_per_experience"] = classes_per_experience
    defaults = {"augment": "none", "class_order": list(range(n))}
    return make_benchmark(
        train,
        test,
        input_config=InputConfig(img_size=16),
        scenario=scenario,
        **(defaults | options),
    )
