"""Small images in files, a network of images and texts, and how it is trained here."""

import json

import numpy as np
import torch
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from PIL import Image

from avalanche_peftcl.benchmarks import make_benchmark
from avalanche_peftcl.models import build_adapters
from avalanche_peftcl.testing import toy_image_text, toy_images
from avalanche_peftcl.testing.stage import Kept as Kept
from avalanche_peftcl.training.naive import build_naive

NAMES = ["cat", "dog", "gnu", "owl", "bat", "cow"]


def picture(path, seed):
    """Write an image of 16 by 16 pixels: noise around a colour."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 216, (1, 1, 3)) + draw.integers(0, 40, (16, 16, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def folders(root, names, *, n=5, test="test"):
    """Write n images of each class; the folder with them."""
    for i, name in enumerate(names):
        for k in range(n):
            picture(root / test / name / f"{k}.png", 100 * i + k)
    return root


def captioned(root, captions):
    """Write an image for each name, and the file of captions."""
    for i, name in enumerate(captions):
        picture(root / name, i)
    path = root / "captions.json"
    path.write_text(json.dumps(captions))
    return path


def pixels(paths):
    """Return images as the toy takes them, without any transform of the package."""
    arrays = [np.asarray(Image.open(path), dtype=np.float32) / 255 for path in paths]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2) * 2 - 1


@torch.no_grad()
def seen(embed, images):
    """Return embeddings on unit norm, as NumPy has them."""
    z = embed(images).double().numpy()
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def benchmark(scenario="class", **options):
    """Return three experiences, of two classes or of a domain each."""
    train, test = toy_images(), toy_images(6, 8, seed=1)
    if scenario == "domain":
        options |= {
            f"{k}_domains": [i % 3 for i in range(len(v))]
            for k, v in (("train", train), ("test", test))
        }
    else:
        options |= {"classes_per_experience": [2, 2, 2]}
    return make_benchmark(
        train,
        test,
        input_config=toy_image_text().input_config,
        scenario=scenario,
        class_names=NAMES,
        augment="none",
        class_order=range(6),
        **options,
    )


def strategy(*metrics, loggers=(), backbone=None, **options):
    """Return one that moves its embeddings, and far."""
    torch.manual_seed(0)
    backbone = backbone or toy_image_text()
    defaults = {"lr": 0.3, "train_epochs": 2, "train_mb_size": 4, "mixed_precision": "no"}
    defaults["module"] = build_adapters(backbone=backbone, r=4, dropout=0.2)
    return build_naive(
        backbone=backbone,
        evaluator=EvaluationPlugin(*metrics, loggers=[*loggers] or [BaseLogger()]),
        **(defaults | options),
    )


def told(kept):
    """Return values by name, in the order in which loggers heard of them."""
    found = {}
    for name, value, _ in kept.told:
        found.setdefault(name, []).append(value)
    return found
