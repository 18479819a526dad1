"""The only file that imports open_clip, and only when it is asked for something of it."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.models.backbones.text_tower import Tokenize
from avalanche_peftcl.registry.wording import clip, say

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
_POOLERS = {"mean": "mean_pooler", "max": "max_pooler", "cls": "cls_last_hidden_state_pooler"}
_LONGEST = 300  # letters of a foreign error in a message
_PLAIN_TOWER: dict[str, Any] = {  # what timm's clip networks have no room for is off
    "attentional_pool": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "no_ln_pre": False,
    "pool_type": "tok",
    "ls_init_value": None,
    "norm_kwargs": None,
    "act_kwargs": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}


def open_clip() -> Any:
    """Return the library.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ConfigError(
            f"images and texts need open_clip, which cannot be imported ({say(error)}); "
            "pip install avalanche-peftcl[clip]"
        ) from error
    return open_clip


def model_names() -> list[str]:
    """Return the names of all models that open_clip knows."""
    return cast(list[str], open_clip().list_models())


def model_config(model_name: str) -> dict[str, Any] | None:
    """Return the configuration of a model of that name, ``None`` if there is none."""
    return cast(dict[str, Any] | None, open_clip().get_model_config(model_name))


def tags(model_name: str) -> list[str]:
    """Return the tags of the published weights of a model."""
    return cast(list[str], open_clip().list_pretrained_tags_by_model(model_name))


def tag_config(model_name: str, tag: str) -> dict[str, Any]:
    """Return what open_clip knows of published weights."""
    return cast(dict[str, Any], open_clip().get_pretrained_cfg(model_name, tag))


def download(config: Mapping[str, Any], name: str) -> Path:
    """Return the file of published weights, downloaded if it is not there.

    Raises:
        CheckpointError: If that failed.
    """
    try:
        return Path(open_clip().download_pretrained(config))
    except Exception as error:  # a download can fail in any way
        raise CheckpointError(
            f"the weights of {name!r} could not be downloaded ({_said(error)}); download them "
            "elsewhere and give the file as checkpoint="
        ) from error


def preprocessing(overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Return what open_clip does to an image, where ``overlay`` says no other."""
    transform = open_clip().transform
    merged = transform.merge_preprocess_dict(transform.PreprocessCfg(), dict(overlay))
    return cast(dict[str, Any], merged)


def build(config: Mapping[str, Any], name: str) -> Any:
    """Build a model with random weights: ``visual``, ``text`` and ``logit_scale``.

    Args:
        config: As open_clip writes it; nothing that it says of weights is followed.
        name: What it is called in a message.

    Raises:
        ConfigError: Whatever open_clip raises.
    """
    whole = deepcopy(dict(config))
    whole.pop("custom_text", None)
    if "multimodal_cfg" in whole:
        raise ConfigError(f"{name!r} is a captioner; take a model of two towers, such as ViT-B-16")
    for tower, option in (("vision_cfg", "timm_model_name"), ("text_cfg", "hf_model_name")):
        if (part := whole.get(tower, {})).get(option):
            part[option.replace("name", "pretrained")] = False
    try:
        return open_clip().CustomTextCLIP(**whole)
    except Exception as error:  # a wrong key, a missing one, a network that is not there
        raise ConfigError(f"open_clip cannot build {name!r}: {_said(error)}") from error


def converted(model: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return published weights under the names of a model that :func:`build` made."""
    convert = open_clip().convert.convert_state_dict
    state = convert(model, state)
    if "positional_embedding" in state:  # the text tower's, beside the image tower
        state = open_clip().model.convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    extra = {"input_resolution", "context_length", "vocab_size", "logit_bias"}
    extra.add("text.transformer.embeddings.position_ids")
    state = {k: v for k, v in state.items() if k in own or k not in extra}
    for key in ("logit_scale", "logit_bias"):
        if key in state and key in own and state[key].numel() == own[key].numel():
            state[key] = state[key].reshape(own[key].shape)
    return state


def plain_tower(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options by which timm builds the image tower of OpenAI's layout.

    Raises:
        ConfigError: If timm has no network for it.
    """
    given = dict(config["vision_cfg"])
    tower = asdict(open_clip().model.CLIPVisionCfg(**given))
    other = [k for k, plain in _PLAIN_TOWER.items() if k in tower and tower[k] != plain]
    if isinstance(tower["layers"], list | tuple) or other:
        why = f"has {', '.join(other)}" if other else "is no vision transformer"
        raise ConfigError(
            f"the image tower of {name!r} {why}, which modules here do not run on; take a model "
            "such as ViT-B-16-quickgelu, ViT-B-16 or ViT-B-16-SigLIP"
        )
    kind = "vit_base_patch16_clip_quickgelu_224" if config.get("quick_gelu") else None
    return {
        "model_name": kind or "vit_base_patch16_clip_224",
        "img_size": tower["image_size"],
        "patch_size": tower["patch_size"],
        "embed_dim": tower["width"],
        "depth": tower["layers"],
        "num_heads": tower["width"] // tower["head_width"],
        "mlp_ratio": tower["mlp_ratio"],
        "num_classes": config["embed_dim"],
    }


def text_encoder(folder: Path, *, out_features: int, pooler: str) -> nn.Module:
    """Build a text tower of transformers with random weights and a linear map behind it.

    Raises:
        CheckpointError: If the folder does not say how.
    """
    try:
        encoder = open_clip().hf_model.HFTextEncoder(
            str(folder),
            output_dim=out_features,
            proj_type="linear",
            pooler_type=_POOLERS[pooler],
            pretrained=False,
        )
    except ConfigError:
        raise
    except Exception as error:  # of transformers, of a file that is not there
        raise CheckpointError(
            f"no text tower can be built of the folder {folder}: {_said(error)}"
        ) from error
    return cast(nn.Module, encoder)


def check_tokenizer(*folders: str | Path) -> Path:
    """Return the first of some folders that holds a tokenizer of transformers.

    Raises:
        CheckpointError: If none does.
    """
    for folder in map(Path, folders):
        if any((folder / file).is_file() for file in _TOKENIZER):
            return folder
    raise CheckpointError(f"{folders[0]} holds no tokenizer, such as {_TOKENIZER[0]}")


def tokenizer(source: str | Path, what: str, **options: Any) -> Tokenize:
    """Return a tokenizer of transformers, from a folder or by its name on the hub.

    Raises:
        CheckpointError: If it is not there.
    """
    try:
        return cast(Tokenize, open_clip().tokenizer.HFTokenizer(str(source), **options))
    except ConfigError:
        raise
    except Exception as error:  # of transformers, of the network
        raise CheckpointError(
            f"the tokenizer of {what!r} cannot be had from {str(source)!r}: {_said(error)}"
        ) from error


def own_tokenizer(model_name: str, context_length: int, **options: Any) -> Tokenize:
    """Return the tokenizer that open_clip has for a model by its name, OpenAI's in most cases.

    Raises:
        CheckpointError: If it is not there.
    """
    try:
        made = open_clip().get_tokenizer(model_name, context_length=context_length, **options)
    except Exception as error:  # a download
        raise CheckpointError(
            f"the tokenizer of {model_name!r} cannot be had: {_said(error)}"
        ) from error
    return cast(Tokenize, made)


def _said(error: BaseException) -> str:
    return clip(" ".join(say(error).split()), _LONGEST)
