"""Numbers measured once, run again: frozen DeiT-Tiny at 160 pixels, nearest class mean."""

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
