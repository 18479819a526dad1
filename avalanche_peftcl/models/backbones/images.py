"""From an image file to what a backbone expects; no Avalanche."""

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision import transforms as tv
from torchvision.transforms.functional import to_pil_image

from avalanche_peftcl.errors import DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
"""What Pillow may take a file for, whatever its name: formats that are decoded in this process."""
MAX_PIXELS = 2**27
_TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")  # modes of Pillow with an alpha channel


def read_image(path: Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Read an image file as RGB of 8 bits a channel, as :func:`to_rgb` makes it.

    Args:
        path: A file of one of :data:`FORMATS`, known by its content, open or not.
        name: What messages call it; ``None``, its path.

    Returns:
        The decoded image, of several the first.

    Raises:
        DataError: If the file is missing, is of another format, cannot be decoded, or has more than
            8 bits a channel or :data:`MAX_PIXELS` pixels.
    """
    name = str(path) if name is None else name
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return _rgb(image, name)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{name} cannot be decoded as an image: it is none of {', '.join(FORMATS)}; convert it "
            "or take it out"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{name} has more than {MAX_PIXELS:,} pixels; make it smaller or take it out"
        ) from error
    except Exception as error:  # every decoder of Pillow raises its own kinds
        raise DataError(
            f"{name} cannot be decoded as an image ({error}); replace it or take it out"
        ) from error


def to_rgb(image: Any) -> Image.Image:
    """Return ``image`` as an RGB image of 8 bits a channel; every transform begins with it.

    Args:
        image: A PIL image (grey, 1-bit, palette, RGB, ...), an array ``(H, W)`` or ``(H, W, 3)``,
            or a tensor ``(3, H, W)``: ``uint8``, or floating point numbers in [0, 1].

    Returns:
        The PIL image; grey values are repeated in the three channels, what is transparent lies on
        white.

    Raises:
        DataError: If the image cannot be decoded, or has more than 8 bits a channel: how these
            map to 8 only its owner knows.

    Example:
        >>> to_rgb(Image.new("1", (2, 3), 1)).getpixel((0, 0))
        (255, 255, 255)
        >>> to_rgb(Image.new("LA", (2, 3), (0, 51))).getpixel((0, 0))
        (204, 204, 204)
    """
    name = "an image of the data set"
    try:
        return _rgb(image if isinstance(image, Image.Image) else _to_pil(image, name), name)
    except DataError:
        raise
    except Exception as error:  # of a lazy file, of torchvision
        raise DataError(f"{name} cannot be used ({error}); replace it or take it out") from error


def _to_pil(values: Any, name: str) -> Image.Image:
    """Return an array or tensor as a PIL image."""
    given = values.dtype
    if isinstance(values, np.ndarray) and given.kind == "f":
        values = torch.tensor(values)
        values = values.permute(2, 0, 1) if values.ndim == 3 else values
    if isinstance(values, torch.Tensor) and values.is_floating_point():
        fits = bool(((values >= 0) & (values <= 1)).all())
    else:
        fits = given in (torch.uint8, np.uint8)
    if not fits:
        raise DataError(
            f"{name} is an array of {given}, not of uint8 or of floating point numbers in [0, 1]; "
            "convert it to 8 bits"
        )
    image: Image.Image = to_pil_image(values)
    return image


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Return an image as RGB, on white; ``name`` says which in a message."""
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"{name} has more than 8 bits a channel (mode {image.mode!r}); convert it to 8 bits"
        )
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def eval_transform(input_config: InputConfig) -> tv.Compose:
    """Return the transform for evaluation: resize, central crop, tensor, normalise.

    Args:
        input_config: What the backbone expects. The shorter side, or both, are resized to
            ``round(img_size / crop_pct)`` pixels; the crop has ``img_size``.

    Returns:
        A transform from any image that :func:`to_rgb` takes to ``(3, img_size, img_size)``.

    Example:
        >>> eval_transform(InputConfig(img_size=8))(Image.new("L", (20, 10))).shape
        torch.Size([3, 8, 8])
    """
    size = round(input_config.img_size / input_config.crop_pct)
    return tv.Compose(
        [
            to_rgb,
            tv.Resize(
                (size, size) if input_config.resize_mode == "squash" else size,
                interpolation(input_config),
            ),
            tv.CenterCrop(input_config.img_size),
            *to_tensor(input_config),
        ]
    )


def interpolation(input_config: InputConfig) -> tv.InterpolationMode:
    """Return torchvision's name of the interpolation that the backbone expects."""
    return tv.InterpolationMode(input_config.interpolation)


def to_tensor(input_config: InputConfig) -> list[Any]:
    """Return the last steps of every transform: tensor in [0, 1], normalise."""
    mean, std = input_config.mean, input_config.std
    plain = not any(mean) and all(value == 1 for value in std)
    return [tv.ToTensor()] if plain else [tv.ToTensor(), tv.Normalize(mean, std)]
