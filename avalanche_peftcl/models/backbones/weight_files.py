"""Weights from a file into a timm ViT, whatever training code wrote around them."""

import argparse
import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from avalanche_peftcl.errors import BackboneWarning, CheckpointError
from avalanche_peftcl.models.backbones.timm_api import (
    VisionTransformer,
    convert_weights,
    pretrained_config,
)
from avalanche_peftcl.registry.wording import clip, join, say

_SHOWN = 3  # names in a message
_ANCHOR = "blocks.0.norm1.weight"  # every plain ViT has it
_TIMM_PREFIXES = ("visual.trunk.", "module.visual.trunk.")  # timm takes these off itself


def load_checkpoint(vit: VisionTransformer, path: str | Path) -> None:
    """Load a weights file into ``vit``; position embedding and patch size are resampled.

    Taken off is what training code puts around or in front, if the file holds one network:
    dictionaries (``{"model": ..., "optimizer": ...}``) and prefixes of the names (``module.``,
    ``_orig_mod.``, ``backbone.``, ...); that is told. Everything is cast to float32 first.

    Args:
        vit: The network, changed in place.
        path: A ``.safetensors`` file, or a torch file, which is read with ``weights_only=True``.

    Raises:
        CheckpointError: The file is missing or unreadable, holds several networks, or weights are
            missing, unexpected or of another shape. Those of the classifier are left out.

    Source:
        Names of published weights are converted by timm's own ``checkpoint_filter_fn``. Differs:
        what is resampled is float32 first, which in half precision moves logits by about 1e-4.
    """
    path = Path(path)
    state = {
        k: v.float() if v.is_floating_point() else v
        for k, v in _without_prefix(read_state_dict(path), path).items()
    }
    try:
        state = convert_weights(state, vit)
    except Exception as error:  # a converter of timm's fails in its own way
        raise CheckpointError(
            f"{path} does not fit {type(vit).__name__}: {clip(say(error), 200)}"
        ) from error
    classifier = pretrained_config(vit).get("classifier") or "head"
    left_out = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    left_out += () if vit.attn_pool is not None else ("attn_pool",)  # the pooling it has not
    heads = tuple(f"{name}." for name in left_out)
    own = vit.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.startswith(heads)}
    load_strictly(vit, state, path)


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load weights into a network, of which every one is there and fits.

    Args:
        network: Changed in place.
        state: The weights by their names in it.
        path: Where they are from, for messages.

    Raises:
        CheckpointError: If weights are missing, unexpected or of another shape.
    """
    own = network.state_dict()
    wrong = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
            for k in sorted(own.keys() & state.keys())
            if own[k].shape != state[k].shape
        ],
    }
    if own and len(wrong["missing"]) == len(own):
        raise CheckpointError(
            f"{path} does not fit the model: none of its {len(state)} names is one of the model's "
            f"{len(own)} ({_first(list(state))}; here {_first(list(own))}); rename them, or take "
            "the model that these weights are of"
        )
    if any(wrong.values()):
        told = "; ".join(f"{len(v)} {k}: {_first(v)}" for k, v in wrong.items() if v)
        raise CheckpointError(f"{path} does not fit the model: {told}")
    network.load_state_dict(state)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors without executing anything in it, without dictionaries around them.

    Raises:
        CheckpointError: If the file is missing, unreadable, or does not hold one mapping of names
            to tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with _namespaces():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile and pickle each raise their own kind
        raise CheckpointError(
            f"{path} cannot be read as weights: {clip(say(error), 200)}; where you trust it, save "
            "its state dict alone"
        ) from error
    found = dict(_state_dicts(content))
    fitting = {k: v for k, v in found.items() if any(_is_anchor(name) for name in v)}
    found = found if "" in found else fitting or found
    if not found:
        raise CheckpointError(f"{path} holds no state dict (a mapping of names to tensors)")
    if len(found) > 1:
        raise CheckpointError(
            f"{path} holds several networks, under {_first(sorted(found))}; save the one you mean "
            "alone: torch.save(torch.load(...)[...], ...)"
        )
    ((place, state),) = found.items()
    if place:
        _tell(f"{path}: the weights are those under {place!r}")
    return state


def _state_dicts(content: Any, place: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping of names to tensors, however deep, with the keys that lead to it."""
    if not isinstance(content, Mapping) or not content:
        return
    if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        yield place, dict(content)
        return
    for key, value in content.items():
        if isinstance(key, str):
            yield from _state_dicts(value, f"{place}.{key}" if place else key)


def _without_prefix(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Take off what stands in front of every name of the one network in ``state``."""
    prefixes = sorted(name.removesuffix(_ANCHOR) for name in state if _is_anchor(name))
    if not prefixes or prefixes == [""] or set(prefixes) & set(_TIMM_PREFIXES):
        return state
    if len(prefixes) > 1:
        named = [prefix or "(nothing)" for prefix in prefixes]
        raise CheckpointError(
            f"{path} holds several networks, with {_first(named)} in front of the names; save the "
            "one you mean alone"
        )
    prefix = prefixes[0]
    taken = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    others = [k for k in state if not k.startswith(prefix)]
    more = f"; left out {len(others)} others: {_first(others)}" if others else ""
    _tell(f"{path}: {prefix!r} is taken off the names of {len(taken)} weights{more}")
    return taken


def _is_anchor(name: str) -> bool:
    return name == _ANCHOR or name.endswith(f".{_ANCHOR}")


@contextlib.contextmanager
def _namespaces() -> Iterator[None]:
    """Let torch read the arguments that training scripts save beside weights; they hold no code."""
    allow = getattr(torch.serialization, "safe_globals", None)  # since torch 2.5
    with allow([argparse.Namespace]) if allow else contextlib.nullcontext():
        yield


def _tell(message: str) -> None:
    warnings.warn(message, BackboneWarning, stacklevel=5)


def _first(names: list[str]) -> str:
    return join(names, most=_SHOWN)
