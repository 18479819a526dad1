"""Projection sites of a layer that a tuner of peft has replaced, one rule a kind of tuner."""

from collections.abc import Iterator
from typing import Any

from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.models.projection.sites import ProjectionSite, entries, linear_sites

ADAPTER = "default"
"""The name that peft gives to the one adapter in a layer."""


def tuner_sites(layer: Any) -> Iterator[ProjectionSite]:
    """Return the sites of a tuned layer, without names; frozen parameters may be among them.

    Args:
        layer: A layer of peft; of a kind without a rule only the own layer's bias has a site.

    Example:
        >>> import peft
        >>> config = peft.LoraConfig(r=2, target_modules=["0"])
        >>> tuned = peft.inject_adapter_in_model(config, nn.Sequential(nn.Linear(4, 3)))
        >>> [tuple(site.parameter.shape) for site in tuner_sites(tuned[0])]
        [(2, 4), (3, 2)]
    """
    if isinstance(layer.base_layer, nn.Linear):
        yield from linear_sites("", layer.base_layer)
    for kind, rule in _RULES:
        if isinstance(layer, kind):
            yield from rule(layer)
            return


def _lora_sites(layer: Any) -> Iterator[ProjectionSite]:
    """A against the layer's input, B against its own."""
    down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    if not isinstance(down, nn.Linear) or not isinstance(up, nn.Linear):  # convolutions, blocks
        return
    yield ProjectionSite("", down.weight, layer)
    if layer.lora_magnitude_vector:  # DoRA shows B the columns of A too, which are no features
        yield ProjectionSite("", up.weight, layer, features=down.forward)
    else:
        yield from linear_sites("", up)


def _adalora_sites(layer: Any) -> Iterator[ProjectionSite]:
    """A against the layer's input x, E entry by entry against A x, B against E A x."""
    down, scale, up = (part[ADAPTER] for part in (layer.lora_A, layer.lora_E, layer.lora_B))

    def below(x: Tensor) -> Tensor:
        return F.linear(x, down)

    yield ProjectionSite("", down, layer)
    yield ProjectionSite("", scale, layer, view=entries, features=below)
    yield ProjectionSite("", up, layer, features=lambda x: below(x) * scale[:, 0])


def _ia3_sites(layer: Any) -> Iterator[ProjectionSite]:
    """The factors entry by entry against what they multiply: the layer's input, or its output."""
    place = {} if layer.is_feedforward else {"features": layer.base_layer.forward}
    yield ProjectionSite("", layer.ia3_l[ADAPTER], layer, view=entries, **place)


# AdaLoRA's layers are LoRA's to Python: the first rule that fits counts
_RULES = ((AdaLoraLayer, _adalora_sites), (LoraLayer, _lora_sites), (IA3Layer, _ia3_sites))
