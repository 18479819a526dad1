"""The four kinds of module that PEGP is about, by name."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.modules.attention_adapter import build_attention_adapters
from avalanche_peftcl.models.modules.lora import build_lora
from avalanche_peftcl.models.modules.prefix import build_prefix
from avalanche_peftcl.models.modules.prompt import build_prompt

_EARLIER = {"adapter": "attention_adapter"}  # names; files and records have them


def _named(given: Any) -> Any:
    return _EARLIER.get(given, given) if isinstance(given, str) else given


_Kind = Literal["attention_adapter", "lora", "prefix", "prompt"]
Kind = Annotated[_Kind, BeforeValidator(_named)]
KINDS: tuple[Kind, ...] = get_args(_Kind)


def build_module(
    peft: Kind, backbone: Backbone, *, r: int, length: int, blocks: list[int] | None
) -> Branch:
    """Build one of the four kinds of module with the defaults of its builder.

    Args:
        peft: Which kind, as ``peftcl list modules`` calls it. ``"adapter"``, the earlier name of
            ``"attention_adapter"``, is taken for that; module ``adapter`` is another one, beside
            the MLPs.
        backbone: The frozen network.
        r: Rank of an adapter or of LoRA.
        length: Number of prefix or prompt tokens.
        blocks: Which blocks have one; ``None``: the first five, of prompts the first.

    Raises:
        ConfigError: If there is no such kind, or ``blocks`` does not fit the network.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> type(build_module("prefix", backbone, r=5, length=10, blocks=None)).__name__
        'PrefixBranch'
    """
    match _named(peft):
        case "attention_adapter":
            return build_attention_adapters(backbone=backbone, r=r, blocks=blocks)
        case "lora":
            return build_lora(backbone=backbone, r=r, blocks=blocks)
        case "prefix":
            return build_prefix(backbone=backbone, length=length, blocks=blocks)
        case "prompt":
            return build_prompt(backbone=backbone, length=length, blocks=blocks)
        case _:
            raise ConfigError(f"peft must be one of {', '.join(KINDS)}, not {peft!r}")
