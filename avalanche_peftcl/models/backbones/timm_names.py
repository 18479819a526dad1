"""What timm calls a model today, and nothing but names of its registry."""

import re
import warnings
from difflib import get_close_matches

from avalanche_peftcl.errors import BackboneWarning, ConfigError
from avalanche_peftcl.models.backbones.timm_api import given_up_names, model_names, weight_names
from avalanche_peftcl.registry.wording import clip

_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")
_LONGEST = 200  # of a name in a message


def current_name(model_name: str) -> str:
    """Return the name of a model in timm's registry, the tag of its weights included if given.

    A name that timm has given up is followed to the one that it stands for, with the same weights,
    as timm does; that is told.

    Args:
        model_name: For example ``"vit_base_patch16_224.augreg_in21k"``.

    Raises:
        ConfigError: If it is no such name: unknown, of a model that timm has removed, or a place
            to fetch a model from (``hf-hub:...``, ``local-dir:...``, a path, an address).

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
            "'vit_base_patch16_224.augreg_in21k'; weights from elsewhere are given as a file: "
            "checkpoint=..."
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
