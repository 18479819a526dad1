"""From an image file to what a backbone expects; no Avalanche."""

from pathlib import Path
from typing import Any

from PIL import Image
from torchvision import transforms as tv
from torchvision.transforms.functional import to_pil_image

from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbone import InputConfig


def read_image(path: Path) -> Image.Image:
    """Read an image file as RGB of 8 bits a channel.

    Args:
        path: A file of any format that Pillow reads.

    Returns:
        The decoded image.

    Raises:
        DataError: If the file is missing, cannot be decoded, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{path} has more than 8 bits a channel (mode {image.mode!r}); "
                    "convert it to 8 bits"
                )
            return image.convert("RGB")
    except DataError:
        raise
    except Exception as error:  # every decoder of Pillow raises its own kinds
        raise DataError(
            f"{path} cannot be decoded as an image ({error}); replace it or take it out"
        ) from error


def to_rgb(image: Any) -> Image.Image:
    """Return ``image`` as an RGB image of 8 bits a channel.

    Args:
        image: A PIL image (grey, 1-bit, palette, RGB, ...), a ``uint8`` array ``(H, W)`` or
            ``(H, W, 3)``, or a tensor ``(3, H, W)``.

    Returns:
        The PIL image; grey values are repeated in the three channels, transparency is dropped.

    Example:
        >>> to_rgb(Image.new("1", (2, 3), 1)).getpixel((0, 0))
        (255, 255, 255)
    """
    return (image if isinstance(image, Image.Image) else to_pil_image(image)).convert("RGB")


def eval_transform(input_config: InputConfig) -> tv.Compose:
    """Return the transform for evaluation: resize, central crop, tensor, normalise.

    Args:
        input_config: What the backbone expects. The shorter side is resized to
            ``round(img_size / crop_pct)`` pixels; the crop has ``img_size``.

    Returns:
        A transform from any image that :func:`to_rgb` takes to ``(3, img_size, img_size)``.

    Raises:
        ConfigError: If the interpolation is neither ``"bicubic"`` nor ``"bilinear"``.

    Example:
        >>> eval_transform(InputConfig(img_size=8))(Image.new("L", (20, 10))).shape
        torch.Size([3, 8, 8])
    """
    size = round(input_config.img_size / input_config.crop_pct)
    return tv.Compose(
        [
            to_rgb,
            tv.Resize(size, interpolation(input_config)),
            tv.CenterCrop(input_config.img_size),
            *to_tensor(input_config),
        ]
    )


def interpolation(input_config: InputConfig) -> tv.InterpolationMode:
    """Return torchvision's name of the interpolation that the backbone expects."""
    if input_config.interpolation not in ("bicubic", "bilinear"):
        raise ConfigError(
            f"interpolation={input_config.interpolation!r} is not one of 'bicubic', 'bilinear'"
        )
    return tv.InterpolationMode(input_config.interpolation)


def to_tensor(input_config: InputConfig) -> list[Any]:
    """Return the last steps of every transform: tensor in [0, 1], normalise."""
    mean, std = input_config.mean, input_config.std
    plain = not any(mean) and all(value == 1 for value in std)
    return [tv.ToTensor()] if plain else [tv.ToTensor(), tv.Normalize(mean, std)]
