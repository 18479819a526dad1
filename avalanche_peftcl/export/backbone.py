"""The frozen network of an exported one: built as its file says, with weights the caller allows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_peftcl.errors import CheckpointError, PEFTCLError
from avalanche_peftcl.export.file import ExportInfo
from avalanche_peftcl.models.backbones.allocation import AllocationLimit
from avalanche_peftcl.registry import discover
from avalanche_peftcl.registry.wording import join

_TIMES, _SPARE = 4, 2**22  # entries that building may ask for, by those that fill the network
_LARGEST = 2**31  # of a backbone whose weights are not in the file
WAY_OUT = (
    "export the run with --with-backbone where those weights are, or hand in the network: "
    "avalanche_peftcl.load(..., backbone=...)"
)
_CHECKPOINT = "give the file: load(..., checkpoint=...), peftcl predict --checkpoint FILE"
_ASK = {
    "checkpoint": f"are those of a file, where the run was; {_CHECKPOINT}",
    "pretrained": (
        "are a download, which no file sets off; allow it: load(..., pretrained=True), peftcl "
        f"predict --pretrained; or {_CHECKPOINT}"
    ),
}


def build_backbone(
    path: Path,
    info: ExportInfo,
    state: Mapping[str, Tensor],
    allowed: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build the backbone.

    Args:
        path: The file, for messages.
        info: What it says.
        state: The backbone's weights, if the file has them.
        allowed: Where else they may come from, ``checkpoint`` or ``pretrained``; ``None`` leaves
            weights that are not in the file random.

    Raises:
        CheckpointError: If it cannot be built here, or nobody has said where to get its weights.
    """
    package, _, _ = info.backbone.name.rpartition("/")
    options = dict(info.backbone.options)
    try:
        registry = discover(only=[package])
        there = registry.options("backbone", info.backbone.name)
        if state or allowed is None:
            options |= {"pretrained": False} if "pretrained" in there else {}
        else:
            options |= _source(info, there, allowed)
        bounds = limited(state, f"the backbone of {path}")
        with torch.random.fork_rng(devices=[]), bounds:
            torch.manual_seed(info.seed)
            backbone: nn.Module = registry.build("backbone", info.backbone.name, options)
        if state:
            backbone.load_state_dict(dict(state))
    except (PEFTCLError, RuntimeError) as error:
        raise CheckpointError(
            f"the backbone of {path} cannot be built here: {error}; {WAY_OUT}"
        ) from error
    return backbone.requires_grad_(False).eval()


def limited(held: Mapping[str, Tensor], what: str) -> AllocationLimit:
    """Return a limit to what may be allocated for ``what``, which ``held`` is to fill."""
    entries = sum(value.numel() for value in held.values())
    return AllocationLimit(_TIMES * entries + _SPARE if held else _LARGEST, what)


def _source(
    info: ExportInfo, there: Mapping[str, Any], allowed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options by which the caller lets the backbone have weights, if it needs any."""
    files = [name for name in info.left_out if name.startswith("checkpoint")]
    if len(files) > 1:
        raise CheckpointError(
            f"the weights of {info.backbone.name!r} are those of several files ({join(files)}); in "
            "Python, export_run(..., with_backbone=True, backbone=...) puts them into one"
        )
    if allowed["checkpoint"] is not None and "checkpoint" in there:
        own = {"checkpoint": allowed["checkpoint"], "pretrained": False}
        return {name: value for name, value in own.items() if name in there}
    needed = _needed(info, there)
    for name in needed:
        if not allowed.get(name):
            reason = _ASK.get(name, f"come from what its option {name!r} names")
            raise CheckpointError(f"the weights of {info.backbone.name!r} {reason}")
    return {name: allowed[name] for name in needed}


def _needed(info: ExportInfo, there: Mapping[str, Any]) -> list[str]:
    """Return the options that were left out, but those that the builder sets by itself."""
    return [name for name in info.left_out if not (name in there and there[name].default)]


def needs_weights(info: ExportInfo) -> bool:
    """Return whether the backbone cannot be built with what the installed packages bring."""
    package, _, _ = info.backbone.name.rpartition("/")
    there = discover(only=[package]).options("backbone", info.backbone.name)
    return not info.backbone_included and bool(_needed(info, there))
