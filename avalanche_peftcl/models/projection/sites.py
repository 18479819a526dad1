"""Where a PEFT module's parameters meet features: the places that a projection has to know."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


def rows(parameter: Tensor) -> Tensor:
    """Return the weight of a linear layer as one group of rows: ``(O, D)`` to ``(1, O, D)``."""
    return parameter[None]


def column(parameter: Tensor) -> Tensor:
    """Return a bias or a scale as rows of one entry each: ``(O,)`` to ``(1, O, 1)``."""
    return parameter.view(1, -1, 1)


def entries(parameter: Tensor) -> Tensor:
    """Return a factor that acts entry by entry, each its own group: ``(D,)`` to ``(D, 1, 1)``."""
    return parameter.view(-1, 1, 1)


def same(features: Tensor) -> Tensor:
    """Return ``features`` as they are."""
    return features


def ones(features: Tensor) -> Tensor:
    """Return a 1 a row, what a bias is multiplied by: ``(..., D)`` to ``(..., 1)``."""
    return features.new_ones(*features.shape[:-1], 1)


@dataclass(frozen=True, slots=True, eq=False)
class ProjectionSite:
    r"""A parameter, and the place whose features span the directions it must not move along.

    With :math:`W_g` the groups of the parameter's view and :math:`x_g` those of a feature row, what
    the network computes of old features stays as it is if

    .. math:: \Delta W_g\, x_g = 0 \quad \text{for every group } g \text{ and old row } x

    Args:
        name: Name of the parameter, as in ``named_parameters``; sites of one parameter that
            concern different axes add a suffix behind a colon.
        parameter: The parameter.
        place: A module whose first input has, or gives, the features.
        view: Returns the parameter, or a tensor of its shape, as ``(G, R, D)`` without copying:
            ``G`` groups of ``R`` rows in the features' space.
        features: Turns the input of ``place`` into ``(..., G * D)`` rows.

    Source:
        Qiao et al., arXiv 2405.13383, eqs. (9) to (14), one condition for all kinds.
        Differs: biases, scales, value tokens and entry-wise factors have sites too.

    Example:
        >>> layer = nn.Linear(4, 2, bias=False)
        >>> (site,) = linear_sites("down", layer)
        >>> site.name, site.view(site.parameter).shape
        ('down.weight', torch.Size([1, 2, 4]))
    """

    name: str
    parameter: Tensor
    place: nn.Module
    view: Callable[[Tensor], Tensor] = rows
    features: Callable[[Tensor], Tensor] = same


@runtime_checkable
class Sited(Protocol):
    """A module that states what must hold for its output on old features to stay.

    Example:
        >>> class Doubling(nn.Linear):
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        ...
        ...     def projection_sites(self):
        ...         yield ProjectionSite("weight", self.weight, self)
        >>> [site.name for site in projection_sites(nn.Sequential(Doubling(3, 2, bias=False)))]
        ['0.weight']
    """

    def projection_sites(self) -> Iterable[ProjectionSite]:
        """Return the sites, each named as its parameter is in this module."""


class Probe(nn.Module):
    """A place inside a computation; what is shown to it costs nothing unless somebody listens.

    Example:
        >>> import torch
        >>> probe = Probe()
        >>> probe.listening
        False
        >>> handle = probe.register_forward_pre_hook(lambda module, args: print(args[0].shape))
        >>> if probe.listening:
        ...     _ = probe(torch.zeros(2, 3))
        torch.Size([2, 3])
        >>> handle.remove()
    """

    @property
    def listening(self) -> bool:
        """Whether a hook waits for features."""
        return bool(self._forward_pre_hooks)

    def forward(self, features: Tensor) -> Tensor:
        """Return ``features``."""
        return features


def linear_sites(name: str, layer: nn.Linear) -> Iterator[ProjectionSite]:
    """Return the sites of a linear layer: its weight, and its bias if it has one.

    Args:
        name: Name of the layer in the module that states the sites.
        layer: The layer; frozen parameters have no site.
    """
    if layer.weight.requires_grad:
        yield ProjectionSite(f"{name}.weight", layer.weight, layer)
    if layer.bias is not None and layer.bias.requires_grad:
        yield ProjectionSite(f"{name}.bias", layer.bias, layer, view=column, features=ones)


def projection_sites(model: nn.Module) -> list[ProjectionSite]:
    """Return the sites that the modules of ``model`` state, under the model's parameter names.

    They are those of its modules that are :class:`Sited`.

    Args:
        model: Any module.

    Returns:
        The sites in the order of ``model.named_modules()``.

    Example:
        >>> from avalanche_peftcl.models.modules.adapter import Adapter
        >>> [site.name for site in projection_sites(nn.Sequential(Adapter(8, r=2)))]
        ['0.down.weight', '0.down.bias', '0.up.weight', '0.up.bias']
    """
    found = []
    for name, module in model.named_modules():
        if isinstance(module, Sited):
            prefix = f"{name}." if name else ""
            found += [replace(site, name=prefix + site.name) for site in module.projection_sites()]
    return found


@contextmanager
def listen(
    sites: Iterable[ProjectionSite], consume: Callable[[ProjectionSite, Tensor], None]
) -> Iterator[None]:
    """Hand every site's features to ``consume`` while the model runs inside the context.

    Args:
        sites: Where to listen.
        consume: Called with the site and its features, ``(..., G * D)``, at each pass of its place.

    Example:
        >>> import torch
        >>> layer = nn.Linear(4, 2, bias=False)
        >>> with listen(linear_sites("0", layer), lambda site, x: print(site.name, x.shape)):
        ...     _ = layer(torch.zeros(3, 4))
        0.weight torch.Size([3, 4])
    """

    def hear(site: ProjectionSite, module: nn.Module, args: tuple[Any, ...]) -> None:
        consume(site, site.features(args[0]))

    handles = [site.place.register_forward_pre_hook(partial(hear, site)) for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def heads_of_keys(num_heads: int) -> Callable[[Tensor], Tensor]:
    """Return the view of ``(P, D)`` key tokens by head, ``(H, P, D / H)``."""
    return partial(_heads_of_keys, num_heads=num_heads)


def heads_of_values(num_heads: int) -> Callable[[Tensor], Tensor]:
    """Return the view of ``(P, D)`` value tokens by head, ``(H, D / H, P)``."""
    return partial(_heads_of_values, num_heads=num_heads)


def _heads_of_keys(tokens: Tensor, *, num_heads: int) -> Tensor:
    return tokens.view(len(tokens), num_heads, -1).transpose(0, 1)


def _heads_of_values(tokens: Tensor, *, num_heads: int) -> Tensor:
    return tokens.view(len(tokens), num_heads, -1).permute(1, 2, 0)
