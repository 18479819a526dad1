"""Two towers that were trained apart, a linear map behind each: locked-image tuning."""

import math
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.models.backbones import open_clip_api as api
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.models.backbones.image_text import ImageTextBackbone
from avalanche_peftcl.models.backbones.text_tower import Later, TextTower
from avalanche_peftcl.models.backbones.timm_vit import Side, create_backbone
from avalanche_peftcl.models.backbones.weight_files import load_strictly, read_state_dict
from avalanche_peftcl.registry.ranges import FeatureWidth
from avalanche_peftcl.registry.schema import Schema

_SCALE = 1 / 0.07  # of a model that is random: where CLIP's training starts
_FILES = ("checkpoint", "checkpoint_text", "checkpoint_projections")
_PROJECTIONS = {"visual_projection.weight", "text_projection.weight", "logit_scale"}
_UNUSED = ("pooler.", "embeddings.position_ids")  # of a file of a text tower


def create_dual_encoder(
    model_name: str,
    *,
    out_features: FeatureWidth,
    checkpoint: str | Path | None = None,
    checkpoint_text: str | Path | None = None,
    checkpoint_projections: str | Path | None = None,
    img_size: Side | None = None,
    pooler: Literal["mean", "max", "cls"] = "mean",
    context_length: Annotated[int, Field(ge=2, le=8192)] = 77,
    interpolation: Literal["bicubic", "bilinear"] | None = None,
    resize_mode: Literal["shortest", "squash"] = "shortest",
) -> ImageTextBackbone:
    r"""Build a vision transformer and a text tower with linear maps to one space.

    .. math:: \exp(s) \cos(V f(x), T g(t))

    Args:
        model_name: The image tower, a name in timm's registry such as ``"deit_tiny_patch16_224"``.
        out_features: ``E``, width of the joint space.
        checkpoint: A file of weights of the image tower. The three are given together; without them
            the network is random and has no text side.
        checkpoint_text: A folder of transformers with the text tower: ``config.json``,
            ``model.safetensors`` and the tokenizer's files.
        checkpoint_projections: A safetensors file with ``visual_projection.weight`` ``(E, D)``,
            ``text_projection.weight`` and ``logit_scale``, the natural logarithm :math:`s`.
        img_size: Side of the square input in pixels; the position embedding is resampled.
        pooler: How the last tokens of the text tower become one feature.
        context_length: Tokens at which a text is cut.
        interpolation: How images are resized; ``None`` takes the image tower's own.
        resize_mode: ``"shortest"`` side, or both sides (``"squash"``).

    Returns:
        The frozen backbone in eval mode.

    Raises:
        ConfigError: open_clip, whose text tower it is, is not installed; an unknown name, an option
            out of range, or one of the three places alone.
        CheckpointError: Weights or the tokenizer are missing, unreadable or do not fit.

    Source:
        Zhai et al., LiT, arXiv 2111.07991. Differs: both towers are frozen, two maps were trained.

    Example:
        >>> import torch
        >>> options = {"img_size": 32, "out_features": 64}
        >>> backbone = create_dual_encoder("vit_tiny_patch16_224", **options)
        >>> backbone(torch.zeros(2, 3, 32, 32)).shape, backbone.has_text
        (torch.Size([2, 64]), False)
    """
    given = {k: v for k, v in locals().items() if v is not None}
    Schema.of(create_dual_encoder, given=frozenset(), title="backbone").check(given)
    places = [name for name in _FILES if name in given]
    if places and len(places) < len(_FILES):
        raise ConfigError(
            f"{', '.join(name for name in _FILES if name not in places)} is missing: the weights "
            f"of both towers and of the maps are given together, by {', '.join(_FILES)}"
        )
    image = create_backbone(
        model_name,
        checkpoint=checkpoint,
        img_size=img_size,
        crop_pct=1.0,
        interpolation=interpolation,
    )
    projection = nn.Linear(image.embed_dim, out_features, bias=False)
    text, scale = None, _SCALE
    if checkpoint_text is not None and checkpoint_projections is not None:
        path = Path(checkpoint_projections)
        maps = {k: v.float() for k, v in read_state_dict(path).items()}
        if maps.keys() != _PROJECTIONS:
            raise CheckpointError(
                f"{path} does not hold {', '.join(sorted(_PROJECTIONS))} and nothing else"
            )
        load_strictly(projection, {"weight": maps["visual_projection.weight"]}, path)
        scale = math.exp(float(maps["logit_scale"]))
        folder = Path(checkpoint_text)
        encoder = api.text_encoder(folder, out_features=out_features, pooler=pooler)
        file = folder / "model.safetensors"
        state = {
            f"transformer.{k}": v.float() if v.is_floating_point() else v
            for k, v in read_state_dict(file).items()
            if not k.startswith(_UNUSED)
        }
        load_strictly(encoder, state | {"proj.weight": maps["text_projection.weight"]}, file)
        api.check_tokenizer(folder)
        make = partial(api.tokenizer, folder, str(folder), context_length=context_length)
        text = TextTower(encoder, Later(make), masked=True)
    config = image.input_config
    backbone = ImageTextBackbone(
        image.vit,
        projection,
        InputConfig(
            img_size=config.img_size,
            mean=config.mean,
            std=config.std,
            interpolation=config.interpolation,
            resize_mode=resize_mode,
        ),
        out_features=out_features,
        logit_scale=scale,
        text=text,
    )
    backbone.pretrained_on = image.pretrained_on
    return backbone
