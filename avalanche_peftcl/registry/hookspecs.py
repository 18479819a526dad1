"""The hooks of avalanche_peftcl; each is called once, without arguments, and offers components.

A plugin package is an installed distribution with one entry point in group ``avalanche_peftcl``
that names a module with one or more of these functions, each decorated with
:data:`avalanche_peftcl.hookimpl`.
"""

from collections.abc import Iterable

import pluggy

from avalanche_peftcl.registry.component import Component

GROUP = "avalanche_peftcl"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def peftcl_backbones() -> Iterable[Component]:
    """Offer frozen networks: ``build(**options) -> models.Backbone``."""
    return ()


@hookspec
def peftcl_modules() -> Iterable[Component]:
    """Offer PEFT modules: ``build(*, backbone, **options) -> models.Branch``."""
    return ()


@hookspec
def peftcl_heads() -> Iterable[Component]:
    """Offer heads: ``build(*, in_features, **options) -> models.Head``.

    The network that the head stands on hands in its width.
    """
    return ()


@hookspec
def peftcl_benchmarks() -> Iterable[Component]:
    """Offer streams: ``build(*, input_config, **options) -> Avalanche benchmark``."""
    return ()


@hookspec
def peftcl_strategies() -> Iterable[Component]:
    """Offer methods.

    ``build(*, backbone, module, head, device, plugins, evaluator, **options)`` returns an Avalanche
    strategy. Of the six things that a run hands in, name those in the signature that you need.
    ``head`` is a function from the width of features to a head; ``module`` and ``head`` are handed
    in where the configuration names one.
    """
    return ()


@hookspec
def peftcl_strategy_plugins() -> Iterable[Component]:
    """Offer Avalanche plugins: ``build(**options) -> SupervisedPlugin``."""
    return ()


@hookspec
def peftcl_metrics() -> Iterable[Component]:
    """Offer plugin metrics: ``build(**options) -> PluginMetric`` or a list of them."""
    return ()


@hookspec
def peftcl_loggers() -> Iterable[Component]:
    """Offer loggers: ``build(*, output, resume, settings, listed, **options) -> BaseLogger``.

    Of the four things that a run hands in, name those in the signature that you need: its folder,
    whether it goes on from a checkpoint, its settings with all defaults, and the names in the
    folder that the record of the earlier run lists as its own. Remove no others; what a logger
    makes while it is built is listed by the new record.
    """
    return ()
