"""How many floats a strategy keeps beside the backbone, in all and part by part."""

from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from avalanche_peftcl.registry.offers import HostPluginOffers, ModelOffers, PluginOffers

_HOST = "avalanche.training.plugins."


def stored_floats(strategy: Any) -> int:
    """Count the floats that a strategy has to keep besides the backbone.

    Args:
        strategy: Any Avalanche strategy.

    Returns:
        Elements of the floating-point tensors in the state dict of ``strategy.model``, each tensor
        once, without those of ``strategy.model.backbone`` if there is one; plus ``stored_floats``
        of every plugin that tells it. Of Avalanche's plugins, which do not: the numbers of the
        images in a memory, as the network gets them; weights that EWC keeps and their importances,
        of what trains; the earlier network of LwF, counted like the model.

    Example:
        >>> from types import SimpleNamespace
        >>> stored_floats(SimpleNamespace(model=nn.Linear(3, 2), plugins=[]))
        8
    """
    return sum(stored_by_part(strategy).values())


def stored_by_part(strategy: Any) -> dict[str, int]:
    """Return what :func:`stored_floats` counts, by part of the model and by plugin's class.

    Args:
        strategy: Any Avalanche strategy.

    Example:
        >>> from types import SimpleNamespace
        >>> network = nn.ModuleDict({"branch": nn.Linear(3, 2), "head": nn.Linear(2, 1)})
        >>> stored_by_part(SimpleNamespace(model=network, plugins=[]))
        {'branch': 8, 'head': 3}
    """
    model = strategy.model
    backbone = ModelOffers.of(model).backbone
    seen = set(_floats(backbone).values()) if isinstance(backbone, nn.Module) else set()
    found: dict[str, int] = {}
    for name, tensor in _floats(model).items():
        if tensor not in seen:
            seen.add(tensor)
            part = name.partition(".")[0]
            found[part] = found.get(part, 0) + tensor.numel()
    for plugin in strategy.plugins:
        if kept := int(PluginOffers.of(plugin).stored_floats) or _kept_by_host(plugin, model):
            name = type(plugin).__name__
            found[name] = found.get(name, 0) + kept
    return found


def _kept_by_host(plugin: Any, model: nn.Module) -> int:
    """Return how many floats one of Avalanche's plugins keeps, 0 of any other."""
    if not any(kind.__module__.startswith(_HOST) for kind in type(plugin).__mro__):
        return 0  # what a stranger calls so may be something else
    told, kept = HostPluginOffers.of(plugin), 0
    if told.storage_policy is not None and len(memory := told.storage_policy.buffer):
        kept += len(memory) * memory.eval()[0][0].numel()  # test transforms draw nothing
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    for by_experience in (told.saved_params or {}, told.importances or {}):
        for weights in by_experience.values():
            kept += sum(int(w.data.numel()) for name, w in weights.items() if name in trained)
    if told.lwf is not None and told.lwf.prev_model is not None:
        kept += stored_floats(SimpleNamespace(model=told.lwf.prev_model, plugins=[]))
    return kept


def _floats(module: nn.Module) -> dict[str, Tensor]:
    """Return the floating-point tensors of a module; tensors are alike by identity."""
    return {
        name: value
        for name, value in module.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
