"""The bundled small ViT, pretrained on letters and symbols, so that runs work offline."""

from importlib.resources import as_file, files

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.timm_vit import Normalize, create_backbone
from avalanche_peftcl.models.backbones.vit import ViTBackbone

PATCH_SIZE = 8


def vit_glyph(
    *, img_size: int = 32, pretrained: bool = True, normalize: Normalize = "data_config"
) -> ViTBackbone:
    """Build the bundled ViT: 6 blocks of width 96, 3 heads, patches of 8 pixels.

    It has learnt letters and symbols, printed and handwritten, and never a digit;
    ``assets/vit_glyph.md`` states data, recipe and licence.

    Args:
        img_size: Side of the square input in pixels; other than 32, the position embedding is
            resampled.
        pretrained: Load the bundled weights; ``False`` leaves the random initialisation.
        normalize: ``"data_config"`` maps [0, 1] to [-1, 1] as in training; ``"none"`` feeds [0, 1].

    Returns:
        The frozen backbone in eval mode.

    Raises:
        ConfigError: If ``img_size`` is not a positive multiple of the patch size of 8.
        CheckpointError: If the weights are not in the installed package.

    Example:
        >>> import torch
        >>> backbone = vit_glyph()
        >>> backbone(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 96])
    """
    if img_size < PATCH_SIZE or img_size % PATCH_SIZE:
        raise ConfigError(
            f"vit_glyph cannot take img_size={img_size}; "
            f"give a positive multiple of {PATCH_SIZE}, 32 is what it was trained at"
        )
    with as_file(files("avalanche_peftcl") / "assets" / "vit_glyph.safetensors") as weights:
        backbone = create_backbone(
            "vit_tiny_patch16_224.augreg_in21k",  # for mean and standard deviation
            checkpoint=weights if pretrained else None,
            img_size=img_size,
            normalize=normalize,
            patch_size=PATCH_SIZE,
            embed_dim=96,
            depth=6,
            num_heads=3,
            crop_pct=1.0,
        )
    backbone.model_name = None  # timm has no such network
    if pretrained:
        backbone.pretrained_on = None  # glyphs, of which there are no such labels
    return backbone
