"""What images and texts ask of a vision transformer of timm: its size, and the map behind it."""

import math
from typing import Any

from torch import Tensor, nn

from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.models.backbones.timm_api import VisionTransformer


def set_size(vit: VisionTransformer, img_size: int) -> None:
    """Let a network take square images of another size: its position embedding is resampled.

    Args:
        vit: Changed in place; its weights are loaded.
        img_size: Side in pixels.

    Raises:
        ConfigError: If it is no multiple of the patch size.
    """
    patch = int(vit.patch_embed.patch_size[0])
    if img_size < patch or img_size % patch:
        raise ConfigError(f"img_size={img_size} is not a multiple of the patch size {patch}")
    if tuple(vit.patch_embed.img_size) != (img_size, img_size):
        vit.set_input_size(img_size)


def fit_positions(vit: VisionTransformer, positions: Tensor | None) -> None:
    """Give a network the size of position embeddings that are to be loaded, so that they are exact.

    Args:
        vit: Changed in place.
        positions: ``(1, N, D)``; ``None`` changes nothing.

    Raises:
        CheckpointError: If they are of no square.
    """
    if positions is None or vit.pos_embed is None or positions.shape == vit.pos_embed.shape:
        return
    prefix = 0 if vit.no_embed_class else int(vit.num_prefix_tokens)
    patches = int(positions.shape[1]) - prefix if positions.ndim == 3 else -1
    side = math.isqrt(max(patches, 0))
    if side < 1 or side**2 != patches:
        raise CheckpointError(
            f"a position embedding of shape {tuple(positions.shape)} is of no square of patches"
        )
    set_size(vit, side * int(vit.patch_embed.patch_size[0]))


def linear_behind(vit: VisionTransformer) -> Any:
    """Take off the map behind the pooling, an identity where there is none, and return it."""
    head, vit.head = vit.head, nn.Identity()
    return head
