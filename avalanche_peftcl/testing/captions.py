"""Captioned toys: images told apart by a pattern, and a text tower that knows a word for each."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_peftcl.benchmarks import CaptionedImages, ImageArray, make_captioned
from avalanche_peftcl.models import Backbone, ImageTextBackbone, InputConfig, TextTower
from avalanche_peftcl.testing.learnable import (
    blind_backbone,
    learnable_images,
    seeing_backbone,
)

_WIDTH = 16
_WORDS = ("bee", "cat", "dog", "fox", "gnu", "hen", "owl")


class _Words(nn.Module):
    """The sum of a vector a word."""

    def __init__(self) -> None:
        super().__init__()
        self.vectors = nn.Embedding(len(_WORDS) + 1, _WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        summed: Tensor = self.vectors(tokens).sum(dim=1)
        return summed


def captioned_backbone(seed: int = 0, *, blind: bool = True) -> Backbone:
    """Return :func:`.blind_backbone` with a random map to 16 dimensions and a text side.

    It knows seven words, one for each pattern; of all others the first stands for all.

    Args:
        seed: Seed of the weights.
        blind: Whether the frozen network shows nothing of the pattern.

    Example:
        >>> backbone = captioned_backbone()
        >>> backbone.encode_text(["a bee", "a cat"]).shape
        torch.Size([2, 16])
    """
    made: Any = blind_backbone(seed) if blind else seeing_backbone(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection, words = nn.Linear(32, _WIDTH, bias=False), _Words()
    with torch.no_grad():
        words.vectors.weight[0] *= 0.1
        words.vectors.weight[1:] = torch.linalg.qr(words.vectors.weight[1:].T)[0].T

    def tokenize(texts: list[str]) -> Tensor:
        known = {word: i + 1 for i, word in enumerate(_WORDS)}
        rows = [[known.get(word, 0) for word in text.split()] for text in texts]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    return ImageTextBackbone(
        made.vit,
        projection,
        InputConfig(img_size=16),
        out_features=_WIDTH,
        logit_scale=10.0,
        text=TextTower(words, tokenize),
    )


def captioned_benchmark(
    sizes: tuple[int, ...] = (6, 7), *, per_word: int = 8, seed: int = 0, **options: Any
) -> Any:
    """Return a stream of captioned images of patterns; each test image has a word of its own.

    Args:
        sizes: Words of each experience, up to 7; the first has the first words, the next goes on
            with those that follow, and from the first again.
        per_word: Training images a word, each with two captions.
        seed: Seed of the images.
        **options: Further arguments of :func:`~avalanche_peftcl.benchmarks.make_captioned`.
    """
    first = [sum(sizes[:e]) for e in range(len(sizes))]

    def captioned(each: int, start: int) -> CaptionedImages:
        images, labels, told = [], [], []
        for e, size in enumerate(sizes):
            drawn = learnable_images(len(_WORDS), each, seed=start + 2 * e)
            for word in [(first[e] + i) % len(_WORDS) for i in range(size)]:
                images.append(drawn.images[word * each : (word + 1) * each])
                labels += [e] * each
                told += [(f"a {_WORDS[word]}", f"one small {_WORDS[word]}")] * each
        return CaptionedImages(ImageArray(np.concatenate(images), labels), told)

    start = 2 * len(sizes) * seed
    return make_captioned(
        captioned(per_word, start),
        captioned(1, start + 1),
        names=[f"words {e + 1}" for e in range(len(sizes))],
        input_config=InputConfig(img_size=16),
        **({"augment": "none"} | options),
    )
