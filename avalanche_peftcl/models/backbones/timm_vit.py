"""Any plain vision transformer of timm as a frozen backbone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.models.backbones.timm_api import (
    VisionTransformer,
    create_model,
    data_config,
    pretrained_config,
)
from avalanche_peftcl.models.backbones.timm_names import (
    architecture_of,
    current_name,
    label_sets,
    place_of,
)
from avalanche_peftcl.models.backbones.vit import ViTBackbone, not_plain
from avalanche_peftcl.models.backbones.weight_files import load_checkpoint
from avalanche_peftcl.registry.schema import Schema
from avalanche_peftcl.registry.wording import clip, say

Normalize = Literal["data_config", "none"]
Side = Annotated[int, Field(ge=1, le=8192)]
_OURS = ("model_name", "pretrained", "checkpoint", "normalize", "crop_pct", "interpolation")
_SHOWN = 300  # letters of another library's error
_RESAMPLED = ("img_size", "patch_size")  # pretrained weights are made to fit these


def create_backbone(
    model_name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    img_size: Side | None = None,
    normalize: Normalize = "data_config",
    crop_pct: Annotated[float, Field(ge=0.1, le=1)] | None = None,
    interpolation: Literal["bicubic", "bilinear"] | None = None,
    patch_size: Annotated[int, Field(ge=1, le=1024)] | None = None,
    embed_dim: Annotated[int, Field(ge=1, le=8192)] | None = None,
    depth: Annotated[int, Field(ge=1, le=256)] | None = None,
    num_heads: Annotated[int, Field(ge=1, le=256)] | None = None,
    mlp_ratio: Annotated[float, Field(ge=0.01, le=64)] | None = None,
    qkv_bias: bool | None = None,
    proj_bias: bool | None = None,
    qk_norm: bool | None = None,
    init_values: Annotated[float, Field(ge=0, le=1e3)] | None = None,
    class_token: bool | None = None,
    reg_tokens: Annotated[int, Field(ge=0, le=1024)] | None = None,
    no_embed_class: bool | None = None,
    pre_norm: bool | None = None,
    final_norm: bool | None = None,
    fc_norm: bool | None = None,
    global_pool: Literal["token", "avg", "max", "avgmax", "map"] | None = None,
    norm_layer: Literal["layernorm", "rmsnorm"] | None = None,
    act_layer: Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"] | None = None,
) -> ViTBackbone:
    """Build any plain timm ViT as a frozen backbone.

    Plain is a network of pre-norm blocks one after the other, whose passes here are the network's
    own to rounding; what is not is refused. Images always have 3 channels.

    Args:
        model_name: Name in timm's registry, for example ``"vit_base_patch16_224"``, with the tag of
            its weights if there are several: ``"vit_base_patch16_224.augreg_in21k"``. Or, as timm
            takes it, a repository that holds a model of timm's, ``"hf-hub:OWNER/NAME"``, or a
            folder, ``"local-dir:FOLDER"``: its ``config.json`` says which model.
        pretrained: Take the weights of that name, repository (both are downloaded) or folder;
            otherwise they are random. They have to fit: only ``img_size`` and ``patch_size`` may be
            others than the model's, and ``global_pool`` where nothing but the pooling changes.
        checkpoint: A file of weights, see :func:`.weight_files.load_checkpoint`. Every weight must
            be there and fit; only the file's classifier is left out.
        img_size: Side of the square input in pixels, a multiple of the patch size; the position
            embedding is resampled. ``None`` takes the model's own.
        normalize: ``"data_config"`` follows the model's data config; ``"none"`` feeds [0, 1].
        crop_pct: Share of the resized image that the central test crop keeps; 1 for images that
            are cut tightly, such as CIFAR's. ``None`` takes the model's own.
        interpolation: How images are resized; ``None`` takes the model's own.
        patch_size: Side of a patch in pixels. This and all that follow: ``None``, the model's own.
        embed_dim: Width ``D`` of a token, a multiple of ``num_heads``.
        depth: Number ``L`` of blocks.
        num_heads: Heads ``H`` of each attention.
        mlp_ratio: Width of the MLP's hidden layer over ``embed_dim``.
        qkv_bias: Whether queries, keys and values have a bias.
        proj_bias: Whether the other linear maps of a block have a bias.
        qk_norm: Whether queries and keys are normalised.
        init_values: Start of the scale on each residual; ``None``, the model's own or none.
        class_token: Whether there is a CLS token.
        reg_tokens: Number of register tokens.
        no_embed_class: Whether CLS and registers have no position embedding.
        pre_norm: Whether the tokens are normalised before the first block.
        final_norm: Whether there is a norm at the end.
        fc_norm: Whether that norm comes after the pooling.
        global_pool: How tokens become one feature.
        norm_layer: Kind of the norms.
        act_layer: Activation of the MLPs.

    Returns:
        The frozen backbone in eval mode.

    Raises:
        ConfigError: Unknown name, not a plain ViT, an option out of range, options that do not go
            together or not with the pretrained weights, or both ``pretrained`` and ``checkpoint``.
        CheckpointError: The download failed, or the file or folder is missing, unreadable or does
            not fit.
    """
    given = {k: v for k, v in locals().items() if v is not None}
    given = Schema.of(create_backbone, given=frozenset(), title="backbone").check(given)
    if pretrained and checkpoint is not None:
        raise ConfigError("pretrained=True and checkpoint= exclude each other; give one of them")
    place = place_of(model_name)
    if place is None:
        model_name = called = current_name(model_name)
    else:
        model_name, called = ":".join(place), architecture_of(model_name)
    architecture = {k: v for k, v in given.items() if k not in _OURS}
    if pretrained and place is not None:
        vit = _create_filled(model_name, called, architecture)
    elif pretrained:  # before anything is downloaded
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            check_fit(model_name, _create(model_name, architecture), architecture)
        try:
            vit = create_model(model_name, pretrained=True, num_classes=0, **architecture)
        except Exception as error:  # a download can fail in any way
            raise CheckpointError(
                f"the weights of {model_name!r} could not be downloaded "
                f"({say(error)}); download them elsewhere and give the file as "
                "checkpoint="
            ) from error
    else:
        vit = _create(model_name, architecture)
        if checkpoint is not None:
            load_checkpoint(vit, checkpoint)
    input_config = _input_config(vit, normalize)
    changes: dict[str, Any] = {"crop_pct": crop_pct, "interpolation": interpolation}
    input_config = replace(input_config, **{k: v for k, v in changes.items() if v is not None})
    if place is not None:
        told = model_name if pretrained and place[0] == "hf-hub" else called
    else:
        told = _with_tag(vit, model_name) if pretrained else model_name
    backbone = ViTBackbone(vit, input_config, model_name=told)
    if not pretrained and checkpoint is None:
        backbone.pretrained_on = ()
    elif place is None or checkpoint is not None:  # a file is taken for timm's of that name
        backbone.pretrained_on = label_sets(called)
    return backbone


def _create_filled(
    model_name: str, called: str, architecture: Mapping[str, Any]
) -> VisionTransformer:
    """Build a plain ViT with the weights of a repository or folder, of which every one fits.

    Args:
        model_name: The place, with its source.
        called: The model's name in timm's registry.
        architecture: The options to build it with.

    Raises:
        CheckpointError: If they cannot be fetched or read, or do not fit.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        _create(model_name, architecture)  # what is refused is refused before a download
    try:  # with the classifier that was saved: without it timm lets other weights be missing
        vit: VisionTransformer = create_model(model_name, pretrained=True, **architecture)
    except Exception as error:  # a download and a file can fail in any way
        options = ", ".join(f"{k}={v!r}" for k, v in architecture.items())
        raise CheckpointError(
            f"the weights of {model_name!r} cannot be loaded"
            f"{f' with {options}' if options else ''} ({clip(say(error), _SHOWN)}); give them as "
            f"a file: checkpoint=..., with model_name={called!r}"
            f"{', or leave these options out' if options else ''}"
        ) from error
    vit.reset_classifier(0)
    return vit


def _create(model_name: str, architecture: Mapping[str, Any]) -> VisionTransformer:
    """Build a plain ViT with random weights.

    Raises:
        ConfigError: Whatever timm raises; or it is not plain; or its size does not divide.
    """
    told = ", ".join(f"{k}={v!r}" for k, v in architecture.items()) or "its own options"
    try:
        vit = create_model(model_name, num_classes=0, **architecture)
    except Exception as error:  # assertions, wrong arguments, a division by zero, memory, ...
        said = say(error) if str(error) else "these options do not go together"
        raise ConfigError(f"timm cannot build {model_name!r} with {told}: {said}") from error
    if reason := not_plain(vit):
        raise ConfigError(
            f"{model_name!r} is a {type(vit).__name__}, not a plain vision transformer: {reason}"
        )
    height, patch = vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0]
    stem = next(m for m in vit.patch_embed.modules() if isinstance(m, torch.nn.Conv2d))
    if (channels := stem.in_channels) != 3:
        raise ConfigError(f"{model_name!r} takes images of {channels} channels, not of 3")
    if len(set(vit.patch_embed.img_size)) > 1:
        raise ConfigError(
            f"{model_name!r} takes images of {vit.patch_embed.img_size}, which are not square; "
            "give img_size"
        )
    chosen = architecture.keys() & set(_RESAMPLED)
    if chosen and (height < patch or height % patch):  # timm's own sizes are as timm wants them
        raise ConfigError(f"img_size={height} is not a multiple of the patch size {patch}")
    return vit


def check_fit(model_name: str, vit: VisionTransformer, architecture: Mapping[str, Any]) -> None:
    """Refuse pretrained weights that would leave a part of ``vit`` random, which timm does not say.

    Args:
        model_name: Whose weights are to be loaded.
        vit: The network as it is to be; it may be on the meta device.
        architecture: The options that it was built with.

    Raises:
        ConfigError: If it has other weights than the model of that name, those of its pooling
            aside.
    """
    changed = [name for name in architecture if name not in _RESAMPLED]
    if not changed:
        return
    theirs, own = _create(model_name, {}).state_dict(), vit.state_dict()
    resampled = ("pos_embed", "patch_embed.proj.weight")
    differ = [
        k
        for k, v in own.items()
        if k not in theirs or (k not in resampled and theirs[k].shape != v.shape)
    ]
    differ += [k for k in theirs if k not in own and not k.startswith("attn_pool.")]
    if differ:
        raise ConfigError(
            f"the pretrained weights of {model_name!r} do not fit with "
            f"{', '.join(f'{k}={architecture[k]!r}' for k in changed)}: {len(differ)} weights "
            f"differ, such as {differ[0]}; leave these options out, or pretrained"
        )


def _input_config(vit: VisionTransformer, normalize: Normalize) -> InputConfig:
    config = data_config(vit)
    given = ("mean", "std") if normalize == "data_config" else ()
    shape: dict[str, Any] = {name: tuple(config[name]) for name in given}  # JSON has lists
    return InputConfig(
        img_size=vit.patch_embed.img_size[0],
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        **shape,
    )


def _with_tag(vit: VisionTransformer, model_name: str) -> str:
    """Return the model's name with the tag that timm takes where none is given."""
    tag = pretrained_config(vit).get("tag")
    return f"{model_name}.{tag}" if tag and "." not in model_name else model_name
