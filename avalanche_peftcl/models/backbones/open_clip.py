"""Any two-tower model of open_clip whose image tower is a plain vision transformer."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.models.backbones import open_clip_api as api
from avalanche_peftcl.models.backbones.backbone import RESIZE_MODES, InputConfig
from avalanche_peftcl.models.backbones.image_text import ImageTextBackbone
from avalanche_peftcl.models.backbones.image_tower import fit_positions, linear_behind, set_size
from avalanche_peftcl.models.backbones.text_tower import Later, TextTower, Tokenize
from avalanche_peftcl.models.backbones.timm_api import convert_weights, create_model
from avalanche_peftcl.models.backbones.vit import not_plain
from avalanche_peftcl.models.backbones.weight_files import load_strictly, read_state_dict
from avalanche_peftcl.registry.schema import Schema
from avalanche_peftcl.registry.wording import did_you_mean, join

FOLDER = "local-dir:"
_CONFIG = "open_clip_config.json"
_WEIGHTS = (  # the files that open_clip writes, in the order in which it looks for them
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
Side = Annotated[int, Field(ge=1, le=8192)]


@dataclass(frozen=True)
class _Source:
    """What is built, and of what weights."""

    name: str
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any]
    weights: Path | None
    tokenize: Tokenize


def create_open_clip(
    model_name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    img_size: Side | None = None,
    interpolation: Literal["bicubic", "bilinear"] | None = None,
    resize_mode: Literal["shortest", "squash"] | None = None,
) -> ImageTextBackbone:
    """Build a model of images and texts of open_clip as a frozen backbone.

    The image tower becomes a vision transformer of timm: it is one already (SigLIP and whatever has
    a ``timm_model_name``), or timm has the same network for it (OpenAI's CLIP and those of its
    layout). Others are refused: captioners, ResNets, ConvNeXts. Both towers are frozen.

    Args:
        model_name: Name in open_clip, for example ``"ViT-B-16-quickgelu"``, with the tag of its
            weights where they are downloaded, or where those of the name expect different images:
            ``"ViT-B-16-quickgelu.openai"``. Or
            ``"local-dir:FOLDER"``, a folder with ``open_clip_config.json``, the weights and, of a
            text tower of transformers, the tokenizer's files; the folder is relative to the working
            directory, and a relative ``hf_model_name`` to the folder.
        pretrained: Download the weights of that name and tag.
        checkpoint: A file of weights of the whole model instead, safetensors or a torch file, which
            is read with ``weights_only=True``. Every weight must be there and fit.
        img_size: Side of the square input in pixels; the position embedding is resampled after the
            weights were loaded. ``None`` takes the model's own.
        interpolation: How images are resized; ``None`` takes the model's own.
        resize_mode: ``"shortest"`` side, or both sides (``"squash"``); ``None`` takes the model's
            own.

    Returns:
        The frozen backbone in eval mode. Without weights it is random.

    Raises:
        ConfigError: open_clip is not installed; an unknown name or tag, a tower that cannot be
            used, an option out of range, or weights from two places.
        CheckpointError: The weights, the folder or what the text tower is built of are missing,
            unreadable or do not fit.

    Source:
        Library open_clip_torch 3.3, https://github.com/mlfoundations/open_clip.
        Differs: image towers of OpenAI's layout are timm's, equal to rounding; a folder without
        weights is refused where open_clip draws random ones, and weights of another activation
        where it warns; a bias of logits is left out.
    """
    given = {k: v for k, v in locals().items() if v is not None}
    Schema.of(create_open_clip, given=frozenset(), title="backbone").check(given)
    if pretrained and checkpoint is not None:
        raise ConfigError("pretrained=True and checkpoint= exclude each other; give one of them")
    api.open_clip()
    if model_name.startswith(FOLDER):
        if pretrained:
            raise ConfigError("the weights of a folder are in it; leave out pretrained")
        source = _of_folder(Path(model_name.removeprefix(FOLDER)), checkpoint)
    else:
        source = _of_name(model_name, pretrained, checkpoint)
    return _build(source, img_size, {"interpolation": interpolation, "resize_mode": resize_mode})


def _build(
    source: _Source, img_size: int | None, changes: Mapping[str, str | None]
) -> ImageTextBackbone:
    model = api.build(source.config, source.name)
    state: dict[str, Tensor] = model.state_dict()
    if source.weights is not None:
        state = api.converted(model, _without_prefix(read_state_dict(source.weights)))
    where = source.weights or "the model"
    parts = {name: _below(f"{name}.", state) for name in ("visual", "text")}
    rest = [k for k in state if not k.startswith(("visual.", "text."))]
    if further := [k for k in rest if k not in ("logit_scale", "logit_bias")]:
        raise CheckpointError(f"{where} does not fit the model: unexpected {join(further, most=3)}")
    if "logit_scale" not in state:
        raise CheckpointError(f"{where} does not fit the model: it has no logit_scale")
    if source.config["vision_cfg"].get("timm_model_name"):
        vit, projection = _of_timm(model.visual, parts["visual"], where, source.name)
    else:
        vit, projection = _of_openai(source, parts["visual"], where)
    own_size = source.config["vision_cfg"].get("image_size", 224)
    own_size = own_size if isinstance(own_size, int) else own_size[0]
    set_size(vit, img_size or own_size)
    load_strictly(model.text, parts["text"], where)
    pre = api.preprocessing(source.preprocess)
    pre |= {k: v for k, v in changes.items() if v is not None}
    if pre["resize_mode"] not in RESIZE_MODES:
        raise ConfigError(
            f"{source.name!r} resizes images by {pre['resize_mode']!r}, with a border, which there "
            f"is not here; choose resize_mode, one of {', '.join(map(repr, RESIZE_MODES))}"
        )
    return ImageTextBackbone(
        vit,
        projection,
        InputConfig(
            img_size=img_size or own_size,
            mean=tuple(pre["mean"]),
            std=tuple(pre["std"]),
            interpolation="bilinear" if pre["interpolation"] == "bilinear" else "bicubic",
            resize_mode=pre["resize_mode"],
        ),
        out_features=int(source.config["embed_dim"]),
        logit_scale=math.exp(float(state["logit_scale"])),
        text=TextTower(
            model.text, source.tokenize, masked=bool(source.config["text_cfg"].get("hf_model_name"))
        ),
        model_name=None if source.name.startswith(FOLDER) else source.name,
    )


# --- the image tower ---------------------------------------------------------------------------


def _of_timm(
    visual: Any, state: Mapping[str, Tensor], where: Path | str, name: str
) -> tuple[Any, nn.Module]:
    """Return the transformer and what stands behind it, with their weights."""
    vit = visual.trunk
    if reason := not_plain(vit):
        raise ConfigError(
            f"the image tower of {name!r} is a {type(vit).__name__}, no plain vision transformer: "
            f"{reason}; take a model such as ViT-B-16-SigLIP"
        )
    fit_positions(vit, state.get("trunk.pos_embed"))
    load_strictly(visual, state, where)
    return vit, nn.Sequential(linear_behind(vit), visual.head)


def _of_openai(
    source: _Source, state: Mapping[str, Tensor], where: Path | str
) -> tuple[Any, nn.Module]:
    """Return timm's network for OpenAI's layout and its projection, with these weights."""
    options = api.plain_tower(source.config, source.name)
    positions = state.get("positional_embedding")
    vit = create_model(**options)
    fit_positions(vit, None if positions is None else positions[None])
    try:
        renamed = convert_weights({f"visual.{k}": v for k, v in state.items()}, vit)
    except Exception as error:  # a converter of timm's fails in its own way
        raise CheckpointError(f"{where} does not fit the model: {error}") from error
    load_strictly(vit, renamed, where)
    head = linear_behind(vit)
    projection = nn.Linear(head.in_features, head.out_features, bias=False)  # there is no bias
    projection.weight = head.weight
    return vit, projection


# --- where it comes from -----------------------------------------------------------------------


def _of_name(model_name: str, pretrained: bool, checkpoint: str | Path | None) -> _Source:
    base, _, tag = model_name.partition(".")
    config = api.model_config(base) if ":" not in base else None
    if config is None:
        near = did_you_mean(base, api.model_names())
        raise ConfigError(
            f"open_clip has no model {base[:200]!r}{near}; see open_clip.list_models(), or give a "
            f"folder: {FOLDER}FOLDER"
        )
    known = api.tags(base)
    if (tag or pretrained) and tag not in known:
        said = f"no weights {tag!r} of {base!r}" if tag else f"several weights of {base!r}, or none"
        way = f"name those you mean: {base}.TAG, of {', '.join(known)}" if known else "give a file"
        raise ConfigError(f"open_clip has {said}; {way}")
    weights = None if checkpoint is None else Path(checkpoint)
    ways = [api.tag_config(base, each) for each in ([tag] if tag else known)]
    images = [{k: v for k, v in api.preprocessing(way).items() if k != "size"} for way in ways]
    preprocess: dict[str, Any] = ways[0] if ways else {}
    quick = bool(config.get("quick_gelu"))
    if tag and bool(preprocess.get("quick_gelu")) != quick:
        other = base.removesuffix("-quickgelu") if quick else f"{base}-quickgelu"
        raise ConfigError(
            f"the weights {tag!r} are of a model {'without' if quick else 'with'} QuickGELU, "
            f"{base!r} is one {'with' if quick else 'without'}; take {other}.{tag}"
        )
    if any(each != images[0] for each in images[1:]):
        if weights is not None:
            raise ConfigError(
                f"open_clip has weights of {base!r} that expect other images than others do; name "
                f"those that the file is like: {base}.TAG, of {', '.join(known)}"
            )
        preprocess = {}
    if pretrained:
        weights = api.download(preprocess, model_name)
    text = config["text_cfg"]
    if _is_foreign(text):
        tokenize = _later(text, text.get("hf_tokenizer_name") or text["hf_model_name"], model_name)
    else:
        tokenize = Later(partial(api.own_tokenizer, base, text.get("context_length", 77)))
    return _Source(model_name, config, preprocess, weights, tokenize)


def _of_folder(folder: Path, checkpoint: str | Path | None) -> _Source:
    path, name = folder / _CONFIG, f"{FOLDER}{folder}"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        config = told["model_cfg"]
        vision, text = dict(config["vision_cfg"]), dict(config["text_cfg"])
    except OSError as error:
        raise CheckpointError(f"{folder} has no {_CONFIG} that can be read") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} does not say how a model is built: model_cfg, with vision_cfg and text_cfg"
        ) from error
    if vision.get("timm_model_name") and "timm_pool" not in vision:
        raise ConfigError(
            f"{path} does not say how the image tower pools, and open_clip would take the mean of "
            "its tokens; write timm_pool in vision_cfg, 'token' where the class token is read"
        )
    weights = Path(checkpoint) if checkpoint is not None else None
    if weights is None:
        weights = next((folder / file for file in _WEIGHTS if (folder / file).is_file()), None)
    if weights is None:
        raise CheckpointError(f"{folder} holds no weights, such as {_WEIGHTS[0]}")
    if text.get("hf_model_name") is not None:
        inside = folder / text["hf_model_name"]
        text["hf_model_name"] = str(inside) if inside.is_dir() else text["hf_model_name"]
    if _is_foreign(text):
        tokenize = _later(
            text, api.check_tokenizer(folder, text.get("hf_model_name") or folder), name
        )
    else:
        tokenize = Later(partial(api.own_tokenizer, "ViT-B-16", text.get("context_length", 77)))
    config = config | {"vision_cfg": vision, "text_cfg": text}
    return _Source(name, config, told.get("preprocess_cfg") or {}, weights, tokenize)


def _is_foreign(text: Mapping[str, Any]) -> bool:
    """Whether the text tower reads tokens of transformers, also where the file leaves it out."""
    return bool(text.get("hf_tokenizer_name") or text.get("hf_model_name"))


def _later(text: Mapping[str, Any], source: str | Path, name: str) -> Later:
    options = {"context_length": text.get("context_length", 77)}
    options |= {
        "tokenizer_mode": text.get("tokenizer_mode"),
        **(text.get("tokenizer_kwargs") or {}),
    }
    return Later(partial(api.tokenizer, source, name, **options))


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what training on several devices puts in front of every name; all in float32."""
    whole = all(k.startswith("module.") for k in state)
    taken = _below("module.", state) if whole else state
    return {k: v.float() if v.is_floating_point() else v for k, v in taken.items()}
