import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from avalanche_peftcl.benchmarks import eval_transform, train_transform
from avalanche_peftcl.benchmarks.transforms import to_rgb
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbone import InputConfig


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_every_8_bit_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode)
    x = eval_transform(InputConfig(img_size=6))(image)
    assert x.shape == (3, 6, 6)
    torch.testing.assert_close(x, torch.ones(3, 6, 6))


def test_tensors_are_taken_too() -> None:
    assert to_rgb(torch.zeros(3, 4, 5, dtype=torch.uint8)).size == (5, 4)


def test_evaluation_resizes_crops_and_normalises() -> None:
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    config = InputConfig(16, mean, std, "bilinear", crop_pct=0.8)
    image = Image.effect_noise((40, 30), 50).convert("RGB")
    expected = tv.CenterCrop(16)(tv.Resize(20, tv.InterpolationMode.BILINEAR)(image))
    expected = (tv.ToTensor()(expected) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    torch.testing.assert_close(eval_transform(config)(image), expected)


def test_no_augmentation_is_the_transform_of_evaluation() -> None:
    config, image = InputConfig(8), Image.effect_noise((20, 20), 50)
    assert torch.equal(
        train_transform(config, augment="none")(image), eval_transform(config)(image)
    )


def test_augmentation_varies_within_the_size() -> None:
    augment = train_transform(InputConfig(8), crop_scale=(0.1, 0.5))
    image = Image.effect_noise((20, 30), 50)
    first, second = augment(image), augment(image)
    assert first.shape == (3, 8, 8)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("crop_scale", [(0.0, 1.0), (0.6, 0.5), (0.5, 1.1)])
def test_impossible_crop_is_refused(crop_scale: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="0 < smallest <= largest <= 1"):
        train_transform(InputConfig(8), crop_scale=crop_scale)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment='flip' is not one of .*'none'"):
        train_transform(InputConfig(8), augment="flip")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"interpolation='cubic' is not one of 'bicubic'"):
        eval_transform(InputConfig(8, interpolation="cubic"))
