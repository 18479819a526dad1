"""Names of layers inside a vision transformer, as peft wants them."""

from collections.abc import Iterable, Sequence

from torch import nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.backbones.vit import ViTBackbone, as_vit


def layer_names(
    backbone: Backbone, target_modules: Iterable[str], blocks: Sequence[int]
) -> list[str]:
    """Return the full names of layers in some blocks, as peft wants them.

    Args:
        backbone: The network.
        target_modules: Ends of names inside a block, such as ``"qkv"`` or ``"mlp.fc1"``.
        blocks: Which blocks, from 0.

    Raises:
        ConfigError: If a block has no layer of such a name.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> layer_names(backbone, ["qkv", "fc1"], [0, 2])
        ['blocks.0.attn.qkv', 'blocks.0.mlp.fc1', 'blocks.2.attn.qkv', 'blocks.2.mlp.fc1']
    """
    found: list[str] = []
    vit = as_vit(backbone, "peft")
    targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    for index in blocks:
        names = [name for name, _ in vit.blocks[index].named_modules()]
        for target in targets:
            fitting = ending_in(names, target)
            if not fitting:
                raise ConfigError(
                    f"block {index} has no layer {target!r}; target_modules names layers inside a "
                    f"block: {layers_of_a_block(vit)}"
                )
            found += [f"blocks.{index}.{name}" for name in fitting]
    if not found:
        raise ConfigError(
            f"target_modules is empty; name layers of a block: {layers_of_a_block(vit)}"
        )
    return list(dict.fromkeys(found))


def ending_in(names: Iterable[str], target: str) -> list[str]:
    """Return the names of layers that end in a target, whole parts of them.

    Example:
        >>> ending_in(["attn.qkv", "mlp.fc1", "mlp.myfc1"], "fc1")
        ['mlp.fc1']
    """
    return [name for name in names if target and f".{name}".endswith(f".{target}")]


def layers_of_a_block(backbone: ViTBackbone) -> str:
    """Return the names of the linear layers of a block, for messages."""
    layers = backbone.blocks[0].named_modules()
    return ", ".join(name for name, module in layers if isinstance(module, nn.Linear))
