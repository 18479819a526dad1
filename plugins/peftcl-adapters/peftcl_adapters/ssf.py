"""SSF: a learnt scale and shift behind every operation of the frozen blocks."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Backbone, Branch, ViTBackbone, exportable, view_of

_OPERATIONS = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


class ScaleShift(nn.Module):
    r"""A scale and a shift of each channel, :math:`\gamma \odot x + \beta`, 1 and 0 at the start.

    Args:
        width: ``D``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(..., D)``."""
        return self.scale * x + self.shift


class SSFBranch(Branch):
    """A pass with a :class:`ScaleShift` behind norms and linear maps of each block, and the norm.

    They act in a view of the network that shares its weights. To copy a branch, copy the model
    that holds it together with its backbone.

    Args:
        backbone: The frozen network; it is not changed.

    Raises:
        ConfigError: If its blocks are not timm's, or lack one of the operations.

    Source:
        Lian et al., SSF, NeurIPS 2022, arXiv 2210.08823; in APER, IJCV 2024. Differs: none behind
        the embedding, which all passes share; it starts as the identity, where a small draw around
        it is known to us from memory.
    """

    shares_start = False
    _view: ViTBackbone

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        if not isinstance(backbone, ViTBackbone):
            raise ConfigError(
                f"SSF finds operations by their names in timm's vision transformers, which a "
                f"{type(backbone).__name__} is none of; use an adapter with this backbone"
            )
        self.shifts = nn.ModuleDict()
        view = view_of(backbone, self._put)
        object.__setattr__(self, "_view", view)  # no child: its weights are the backbone's

    def network(self, backbone: Backbone) -> Backbone:
        """Return the view with scales and shifts, whatever ``backbone`` is."""
        return self._view

    def _put(self, vit: nn.Module) -> None:
        for name in _names(vit):
            path, _, leaf = name.rpartition(".")
            owner, layer = vit.get_submodule(path), vit.get_submodule(name)
            shift = self.shifts[name.replace(".", "_")] = ScaleShift(_width(name, layer))
            setattr(owner, leaf, nn.Sequential(layer, shift))


def _names(vit: nn.Module) -> Iterator[str]:
    for block, _ in vit.get_submodule("blocks").named_children():
        yield from (f"blocks.{block}.{operation}" for operation in _OPERATIONS)
    yield "norm"


def _width(name: str, layer: nn.Module) -> int:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    if isinstance(layer, nn.LayerNorm):
        return int(layer.normalized_shape[-1])
    raise ConfigError(
        f"SSF needs a linear map or a LayerNorm at {name}, and there is a {type(layer).__name__}; "
        "use an adapter with this backbone"
    )


@exportable
def build_ssf(*, backbone: Backbone) -> SSFBranch:
    """Build a :class:`SSFBranch` that fits ``backbone``.

    Args:
        backbone: The frozen network.

    Raises:
        ConfigError: If its blocks are not timm's, or lack one of the operations.
    """
    return SSFBranch(backbone)
