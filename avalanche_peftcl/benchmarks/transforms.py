"""Image transforms that follow from what a backbone expects of its input."""

from typing import Any, Literal

from PIL import Image
from torchvision import transforms as tv
from torchvision.transforms.functional import to_pil_image

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbone import InputConfig

Augment = Literal["random_resized_crop", "none"]


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
            tv.Resize(size, _interpolation(input_config)),
            tv.CenterCrop(input_config.img_size),
            *_to_tensor(input_config),
        ]
    )


def train_transform(
    input_config: InputConfig,
    *,
    augment: Augment = "random_resized_crop",
    crop_scale: tuple[float, float] = (0.05, 1.0),
) -> tv.Compose:
    """Return the transform of training images.

    Args:
        input_config: What the backbone expects.
        augment: ``"random_resized_crop"`` cuts a random part (aspect ratio 3/4 to 4/3), resizes it
            and mirrors it with probability 1/2; ``"none"`` is :func:`eval_transform`, without
            mirroring: right for digits and letters.
        crop_scale: Smallest and largest share of the area that a random crop keeps, in (0, 1].

    Returns:
        A transform from any image that :func:`to_rgb` takes to ``(3, img_size, img_size)``.

    Raises:
        ConfigError: If ``augment`` is unknown or ``crop_scale`` is not
            ``0 < smallest <= largest <= 1``.

    Source:
        Liu et al., "Parameter-Efficient Fine-Tuning for Continual Learning: A Neural Tangent
        Kernel Perspective", arXiv 2407.17120. Released code: Programmergg/NTK-CL at 24de712.
        Differs: size, interpolation, test crop (there 224 of 256 pixels) and normalisation (there
        none) follow the backbone.
    """
    if augment == "none":
        return eval_transform(input_config)
    if augment != "random_resized_crop":
        raise ConfigError(f"augment={augment!r} is not one of 'random_resized_crop', 'none'")
    if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ConfigError(f"crop_scale={crop_scale} is not 0 < smallest <= largest <= 1")
    return tv.Compose(
        [
            to_rgb,
            tv.RandomResizedCrop(
                input_config.img_size,
                scale=tuple(crop_scale),
                ratio=(3 / 4, 4 / 3),
                interpolation=_interpolation(input_config),
            ),
            tv.RandomHorizontalFlip(),
            *_to_tensor(input_config),
        ]
    )


def _interpolation(input_config: InputConfig) -> tv.InterpolationMode:
    if input_config.interpolation not in ("bicubic", "bilinear"):
        raise ConfigError(
            f"interpolation={input_config.interpolation!r} is not one of 'bicubic', 'bilinear'"
        )
    return tv.InterpolationMode(input_config.interpolation)


def _to_tensor(input_config: InputConfig) -> list[Any]:
    mean, std = input_config.mean, input_config.std
    plain = not any(mean) and all(value == 1 for value in std)
    return [tv.ToTensor()] if plain else [tv.ToTensor(), tv.Normalize(mean, std)]
