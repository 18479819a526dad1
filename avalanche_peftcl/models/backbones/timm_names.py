"""What timm calls a model today: a name of its registry, or a place that says which it holds."""

import re
import warnings
from difflib import get_close_matches

from avalanche_peftcl.errors import BackboneWarning, CheckpointError, ConfigError
from avalanche_peftcl.models.backbones.timm_api import (
    architecture_at,
    given_up_names,
    model_names,
    weight_names,
    weights_tag,
)
from avalanche_peftcl.registry.wording import clip, say

_LABELS = {"1k": "imagenet-1k", "12k": "imagenet-12k", "21k": "imagenet-21k", "22k": "imagenet-21k"}
_TAG = re.compile(r"(?<![a-z])in(1k|12k|21k|22k)(?![0-9])")  # in timm's names of weights
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_PLACE = re.compile(r"(hf[-_]hub|local-dir):(.+)", re.IGNORECASE)
_LONGEST = 200  # of a name in a message


def place_of(model_name: str) -> tuple[str, str] | None:
    """Return source and place of a model that lies elsewhere, ``None`` of a name in the registry.

    Example:
        >>> place_of("hf-hub:owner/name@main"), place_of("vit_tiny_patch16_224")
        (('hf-hub', 'owner/name@main'), None)
    """
    found = _PLACE.fullmatch(model_name)
    return (found[1].lower().replace("_", "-"), found[2]) if found else None


def architecture_of(model_name: str) -> str:
    """Return the name in timm's registry of the model at a place, by its ``config.json``.

    Args:
        model_name: ``"hf-hub:OWNER/NAME"``, of which the file is fetched, or
            ``"local-dir:FOLDER"``.

    Raises:
        CheckpointError: If there is no such file, or none that names a model of timm's.
    """
    shown = clip(model_name, _LONGEST)
    source, place = place_of(model_name) or ("", "")
    way_out = (
        "fetch the repository elsewhere and give its folder, local-dir:FOLDER, or its weights as "
        "a file, checkpoint=..., with the name of their model in timm's registry"
        if source == "hf-hub"
        else "it needs the config.json that timm's save_for_hf writes; weights alone are given as "
        "a file, checkpoint=..., with the name of their model in timm's registry"
    )
    try:
        return current_name(architecture_at(source, place))
    except Exception as error:  # a download, a file and what is in it fail in any way
        raise CheckpointError(
            f"model_name={shown!r} cannot be read ({clip(say(error), _LONGEST)}); {way_out}"
        ) from error


def label_sets(model_name: str) -> tuple[str, ...] | None:
    """Return the sets of labels that timm's weights of a name were trained on, if it says so.

    Args:
        model_name: Name in timm's registry, with the tag of the weights or without.

    Example:
        >>> label_sets("vit_base_patch16_224.augreg2_in21k_ft_in1k")
        ('imagenet-21k', 'imagenet-1k')
        >>> label_sets("vit_base_patch14_dinov2") is None
        True
    """
    found = _TAG.findall(weights_tag(model_name))
    return tuple(dict.fromkeys(_LABELS[each] for each in found)) or None


def current_name(model_name: str) -> str:
    """Return the name of a model in timm's registry, the tag of its weights included if given.

    A name that timm has given up is followed to the one that it stands for, with the same weights,
    as timm does; that is told.

    Args:
        model_name: For example ``"vit_base_patch16_224.augreg_in21k"``.

    Raises:
        ConfigError: If it is no such name: unknown, of a model that timm has removed, or a place
            (a path, an address, ``hf-hub:...``).

    Example:
        >>> current_name("deit_tiny_patch16_224")
        'deit_tiny_patch16_224'
        >>> import warnings
        >>> with warnings.catch_warnings(action="ignore"):
        ...     current_name("vit_base_patch16_224_in21k")
        'vit_base_patch16_224.augreg_in21k'
    """
    shown = clip(model_name, _LONGEST)
    if not _NAME.fullmatch(model_name):
        raise ConfigError(
            f"model_name={shown!r} is not the name of a model in timm's registry, such as "
            "'vit_base_patch16_224.augreg_in21k', nor hf-hub:OWNER/NAME or local-dir:FOLDER; "
            "weights from elsewhere are given as a file: checkpoint=..."
        )
    given_up = given_up_names()
    if model_name in given_up:
        current = given_up[model_name]
        if current is None:
            raise ConfigError(f"timm has removed the model {shown!r}; see timm.list_pretrained()")
        warnings.warn(
            f"timm calls {model_name!r} {current!r} today, the same weights; write that name",
            BackboneWarning,
            stacklevel=3,
        )
        return current
    base, _, tag = model_name.partition(".")
    if model_name not in (weight_names(base) if tag else model_names()):
        raise ConfigError(
            f"timm has no model {shown!r}{_near(model_name)}; see timm.list_pretrained()"
        )
    return model_name


def _near(name: str) -> str:
    """Say which names are spelt alike, and that the networks behind them are others."""
    base, _, tag = name.partition(".")
    tags = weight_names(base) if tag else []
    known = tags or [*model_names(), *given_up_names()]
    near = get_close_matches(name[:_LONGEST], known, n=3)
    if not near:
        return ""
    told = ", ".join(map(repr, near))
    return f". Spelt alike, but with other weights and so other results: {told}"
