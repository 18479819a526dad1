"""Image transforms that follow from what a backbone expects of its input."""

from typing import Literal

from torchvision import transforms as tv

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.models.backbones.images import eval_transform as eval_transform
from avalanche_peftcl.models.backbones.images import interpolation, to_tensor
from avalanche_peftcl.models.backbones.images import to_rgb as to_rgb

Augment = Literal["random_resized_crop", "none"]


def train_transform(
    input_config: InputConfig,
    *,
    augment: Augment = "random_resized_crop",
    crop_scale: tuple[float, float] = (0.05, 1.0),
    mirror: bool | None = None,
) -> tv.Compose:
    """Return the transform of training images.

    Args:
        input_config: What the backbone expects.
        augment: ``"random_resized_crop"`` cuts a random part (aspect ratio 3/4 to 4/3) and resizes
            it; ``"none"`` takes what :func:`eval_transform` does.
        crop_scale: Smallest and largest share of the area that a random crop keeps, in (0, 1].
        mirror: Whether the result is mirrored, left to right, with probability 1/2. ``None``: with
            random crops it is, without them it is not. Digits, text and hands must not be.

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
        whole = eval_transform(input_config)
        return tv.Compose([*whole.transforms, tv.RandomHorizontalFlip()]) if mirror else whole
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
                interpolation=interpolation(input_config),
            ),
            *([] if mirror is False else [tv.RandomHorizontalFlip()]),
            *to_tensor(input_config),
        ]
    )
