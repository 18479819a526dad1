"""Numbers measured once, run again: frozen DeiT-Tiny at 160 pixels, nearest class mean."""

import json

import pytest

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.runs.run import run


@pytest.mark.reproduces
@pytest.mark.parametrize(
    ("stream", "scenario", "n_experiences", "crop_pct", "expected"),
    [
        ("cifar10", "class", 5, 1.0, 0.660),
        ("tiny_imagenet", "class", 10, None, 0.750),
        ("pacs", "domain", None, None, 0.724),
    ],
)
def test_nearest_class_mean(
    shared_data, tmp_path, stream, scenario, n_experiences, crop_pct, expected
):
    config = RunConfig(
        output=tmp_path / "record",
        backbone={
            "name": "timm_vit",
            "model_name": "deit_tiny_patch16_224",
            "checkpoint": str(shared_data / "deit_tiny_patch16_224.fp16.safetensors"),
            "img_size": 160,
            "crop_pct": crop_pct,
        },
        benchmark={
            "name": "image_folder",
            "root": str(shared_data / stream),
            "scenario": scenario,
            "n_experiences": n_experiences,
            "augment": "none",
        },
        strategy={"name": "nearest_class_mean"},
    )
    last = run(config).metrics["accuracy"]["last_accuracy"]
    assert last == pytest.approx(expected, abs=0.015)


@pytest.mark.reproduces
@pytest.mark.parametrize(
    ("stream", "templates", "expected"),
    [
        ("cifar10", ["a photo of a {}."], 0.451),
        ("cifar10", None, 0.455),
        ("tiny_imagenet", ["a photo of a {}."], 0.447),
    ],
)
def test_zero_shot(shared_data, tmp_path, stream, templates, expected):
    """All 1,000 test images in float32: the figures of the shared encoder's own README."""
    pytest.importorskip("open_clip")
    kit = shared_data / "image_text"
    if not kit.is_dir():
        pytest.skip("the dual encoder is not among the shared data")
    config = RunConfig(
        output=tmp_path / "record",
        backbone={
            "name": "dual_encoder",
            "model_name": "deit_tiny_patch16_224",
            "out_features": 192,
            "img_size": 160,
            "resize_mode": "squash",
            "checkpoint": str(shared_data / "deit_tiny_patch16_224.fp16.safetensors"),
            "checkpoint_text": str(shared_data / "minilm_l6_v2"),
            "checkpoint_projections": str(kit / "lit_deit_tiny_minilm.safetensors"),
        },
        benchmark={
            "name": "image_folder",
            "root": str(shared_data / stream),
            "n_experiences": 1,
            "train_per_class": 1,
            "augment": "none",
        },
        head={
            "name": "zero_shot",
            "class_words": json.loads((kit / "class_names.json").read_text())[stream],
            "templates": templates,
        },
        strategy={"name": "closed_form", "mixed_precision": "no"},
    )
    record = run(config).record
    assert record.test_images == [1000]
    # an image whose two best classes are as good as equal may fall to either
    assert record.accuracy.last_accuracy == pytest.approx(expected, abs=0.0015)
