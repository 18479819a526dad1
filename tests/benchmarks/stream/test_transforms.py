from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv

from avalanche_peftcl.benchmarks import eval_transform, train_transform
from avalanche_peftcl.benchmarks.stream.transforms import to_rgb
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.models.backbones.images import read_image


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK"])
def test_every_8_bit_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (9, 7), (255, 255, 255)).convert(mode)
    x = eval_transform(InputConfig(img_size=6))(image)
    assert x.shape == (3, 6, 6)
    torch.testing.assert_close(x, torch.ones(3, 6, 6))


def test_arrays_and_tensors_are_taken_too() -> None:
    assert to_rgb(torch.zeros(3, 4, 5, dtype=torch.uint8)).size == (5, 4)
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    for image in (
        pixels,
        torch.from_numpy(pixels).permute(2, 0, 1),
        (pixels + 0.5) / 255,
        torch.from_numpy((pixels + 0.5) / 255).permute(2, 0, 1).float(),
    ):
        np.testing.assert_array_equal(np.asarray(to_rgb(image)), pixels)
    np.testing.assert_array_equal(np.asarray(to_rgb(pixels[..., 0]))[..., 1], pixels[..., 0])


BLACK_ON_NOTHING = Image.new("LA", (2, 2), (0, 0))
BLACK_ON_NOTHING.putpixel((0, 0), (0, 255))
BLACK_ON_NOTHING.putpixel((1, 0), (0, 102))
HALF = 255 - 102


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa"])
def test_what_is_transparent_lies_on_white(mode: str, tmp_path: Path) -> None:
    image = BLACK_ON_NOTHING.convert("RGBA" if mode.startswith("RGB") else "LA")
    image.save(tmp_path / "a.png")
    for rgb in (to_rgb(image.convert(mode)), read_image(tmp_path / "a.png")):
        assert rgb.mode == "RGB"
        expected = np.repeat([0, HALF, 255, 255], 3).reshape(2, 2, 3)
        np.testing.assert_array_equal(np.asarray(rgb), expected)


def test_one_transparent_colour_lies_on_white_too(tmp_path: Path) -> None:
    grey = Image.fromarray(np.array([[0, 7], [9, 9]], np.uint8))
    grey.save(tmp_path / "grey.png", transparency=7)
    np.testing.assert_array_equal(
        np.asarray(read_image(tmp_path / "grey.png"))[..., 0], [[0, 255], [9, 9]]
    )
    palette = grey.convert("P")
    palette.info["transparency"] = 0
    np.testing.assert_array_equal(np.asarray(to_rgb(palette))[..., 0], [[255, 7], [9, 9]])
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "rgb.png", transparency=(1, 2, 3))
    assert read_image(tmp_path / "rgb.png").getpixel((0, 0)) == (255, 255, 255)


def test_opaque_pixels_stay_as_they_are() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    noise[..., 3] = 255
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(noise))), noise[..., :3])


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (
            Image.fromarray(np.full((4, 4), 60000, np.uint16)),
            r"mode 'I;16'\); convert it to 8 bits",
        ),
        (Image.new("I", (4, 4)), "more than 8 bits a channel"),
        (Image.new("F", (4, 4)), "more than 8 bits a channel"),
        (np.zeros((4, 4), np.uint16), "an array of uint16, not of uint8"),
        (np.zeros((4, 4, 3), np.int64), "an array of int64, not of uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.int16), r"an array of torch\.int16, not of uint8"),
        (np.full((4, 4, 3), 255.0), r"of floating point numbers in \[0, 1\]"),
        (torch.full((3, 4, 4), float("nan")), r"of floating point numbers in \[0, 1\]"),
        (np.zeros((4, 4, 7), np.uint8), "cannot be used"),
        ([[0, 1], [1, 0]], "cannot be used"),
    ],
)
def test_what_would_turn_white_is_refused_for_every_data_set(image: Any, said: str) -> None:
    for transform in (eval_transform(InputConfig(2)), train_transform(InputConfig(2))):
        with pytest.raises(DataError, match=said):
            transform(image)


def test_a_file_that_is_decoded_late_is_refused_too(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-30])
    with Image.open(tmp_path / "a.png") as late, pytest.raises(DataError, match="cannot be used"):
        to_rgb(late)


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


RISING = Image.fromarray(np.tile(np.arange(0, 240, 6, dtype=np.uint8), (30, 1)))  # to the right


def is_mirrored(x: torch.Tensor) -> bool:
    assert x[0, 4, 0] != x[0, 4, -1]
    return bool(x[0, 4, 0] > x[0, 4, -1])


@pytest.mark.parametrize("augment", ["random_resized_crop", "none"])
@pytest.mark.parametrize("mirror", [True, False, None])
def test_crops_and_mirroring_are_apart(augment: Any, mirror: bool | None) -> None:
    torch.manual_seed(0)
    transform = train_transform(InputConfig(8), augment=augment, mirror=mirror)
    drawn = [transform(RISING) for _ in range(40)]
    mirrors = augment != "none" if mirror is None else mirror
    assert {is_mirrored(x) for x in drawn} == ({True, False} if mirrors else {False})
    seen = {tuple((x.flip(2) if is_mirrored(x) else x).flatten().tolist()) for x in drawn}
    if augment == "none":
        assert seen == {tuple(eval_transform(InputConfig(8))(RISING).flatten().tolist())}
    else:
        assert len(seen) > 30


def test_crops_are_drawn_as_before_there_was_the_option() -> None:
    image = Image.effect_noise((20, 30), 50).convert("RGB")
    before = tv.Compose(
        [
            tv.RandomResizedCrop(8, (0.3, 1.0), (3 / 4, 4 / 3), tv.InterpolationMode.BICUBIC),
            tv.RandomHorizontalFlip(),
            tv.ToTensor(),
        ]
    )
    for mirror in (None, True):
        now = train_transform(InputConfig(8), crop_scale=(0.3, 1.0), mirror=mirror)
        for seed in range(5):
            torch.manual_seed(seed)
            x = now(image)
            torch.manual_seed(seed)
            assert torch.equal(x, before(image))


@pytest.mark.parametrize("crop_scale", [(0.0, 1.0), (0.6, 0.5), (0.5, 1.1)])
def test_impossible_crop_is_refused(crop_scale: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="0 < smallest <= largest <= 1"):
        train_transform(InputConfig(8), crop_scale=crop_scale)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment='flip' is not one of .*'none'"):
        train_transform(InputConfig(8), augment="flip")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"interpolation='cubic' is not one of 'bicubic'"):
        InputConfig(8, interpolation="cubic")
