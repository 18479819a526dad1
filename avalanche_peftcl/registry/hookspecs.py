"""The hooks of avalanche_peftcl; each is called once, without arguments, and offers components.

A plugin package is an installed distribution with one entry point in group ``avalanche_peftcl``
that names a module with one or more of these functions, each decorated with
:data:`avalanche_peftcl.hookimpl`::

    [project.entry-points.avalanche_peftcl]
    my_package = "my_package.components"

The keyword arguments of a component's builder are its options, their annotations the types that
are allowed. What a run hands in is passed to the arguments of that name, where the builder has
them. Each docstring below says what that is, what is returned, and holds an implementation that
can be pasted. A component may be given as an import path, which keeps the listing quick.
"""

from collections.abc import Iterable

import pluggy

from avalanche_peftcl.registry.component import Component

GROUP = "avalanche_peftcl"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def peftcl_backbones() -> Iterable[Component]:
    """Offer frozen networks.

    Handed in: nothing.

    Returned: an :class:`avalanche_peftcl.models.Backbone`; its ``input_config`` says what images
    it expects, and the benchmark prepares them so. It may have a text side
    (:class:`avalanche_peftcl.models.TextSide`): ``has_text``, ``encode_text(names, templates)`` and
    ``logit_scale``, in the space that its ``pool`` returns; heads that begin with the names of
    classes need one. Of those with vectors that train in front of the names it is a
    :class:`avalanche_peftcl.models.ContextSide`.

    Example:
        >>> from avalanche_peftcl import Component, hookimpl
        >>> from avalanche_peftcl.models import Backbone, create_backbone
        >>> def shallow_vit(*, depth: int = 2) -> Backbone:
        ...     return create_backbone("vit_tiny_patch16_224", img_size=32, depth=depth)
        >>> @hookimpl
        ... def peftcl_backbones():
        ...     yield Component("shallow_vit", shallow_vit, source="arXiv 2010.11929")
        >>> shallow_vit(depth=1).input_config.img_size
        32
    """
    return ()


@hookspec
def peftcl_modules() -> Iterable[Component]:
    """Offer PEFT modules.

    Handed in: ``backbone``, the frozen network.

    Returned: an :class:`avalanche_peftcl.models.Branch`, one adapted pass through it. Decorated
    with :func:`avalanche_peftcl.models.exportable`, it can be exported.

    Example:
        >>> import torch
        >>> from avalanche_peftcl import Component, hookimpl
        >>> from avalanche_peftcl.models import Backbone, Branch, create_backbone, exportable
        >>> class Shift(Branch):
        ...     def __init__(self, depth, embed_dim):
        ...         super().__init__()
        ...         self.shift = torch.nn.Parameter(torch.zeros(depth, embed_dim))
        ...
        ...     def step(self, backbone, index, hidden, *, context=None):
        ...         return hidden + backbone.feed(index, hidden) + self.shift[index]
        >>> @exportable
        ... def build_shift(*, backbone: Backbone) -> Shift:
        ...     return Shift(backbone.depth, backbone.embed_dim)
        >>> @hookimpl
        ... def peftcl_modules():
        ...     yield Component("shift", build_shift, source="BitFit, arXiv 2106.10199")
        >>> vit = create_backbone("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> build_shift(backbone=vit).shift.shape
        torch.Size([2, 192])
    """
    return ()


@hookspec
def peftcl_heads() -> Iterable[Component]:
    """Offer heads, which turn features into a logit a row.

    Handed in: ``in_features``, the width of a feature, which the network knows; ``backbone``, the
    frozen network, whose text side a head may read.

    Returned: an :class:`avalanche_peftcl.models.Head`, whose docstring has one that is fitted in
    closed form.

    Example:
        >>> import torch
        >>> from avalanche_peftcl import Component, hookimpl
        >>> from avalanche_peftcl.models import Head, exportable
        >>> class DistanceHead(Head):
        ...     row_tensors = ("centres",)
        ...
        ...     def __init__(self, in_features, *, scale):
        ...         super().__init__(in_features)
        ...         self.scale = scale
        ...         self.centres = torch.nn.Parameter(torch.zeros(0, in_features))
        ...
        ...     def forward(self, features):
        ...         return -self.scale * torch.cdist(features, self.centres)
        >>> @exportable
        ... def build_distance(*, in_features: int, scale: float = 1.0) -> DistanceHead:
        ...     return DistanceHead(in_features, scale=scale)
        >>> @hookimpl
        ... def peftcl_heads():
        ...     yield Component("distance", build_distance, source="arXiv 1703.05175")
        >>> head = build_distance(in_features=4, scale=2.0)
        >>> head.grow(3)
        >>> head(torch.zeros(5, 4)).shape
        torch.Size([5, 3])
    """
    return ()


@hookspec
def peftcl_benchmarks() -> Iterable[Component]:
    """Offer streams of experiences.

    Handed in: ``input_config``, what the backbone expects of an image, and ``backbone`` itself. An
    option ``seed`` is the run's, unless the configuration names one.

    Returned: an Avalanche benchmark; :func:`avalanche_peftcl.benchmarks.make_benchmark` makes one
    of labelled images.

    Example:
        >>> import numpy as np
        >>> from avalanche_peftcl import Component, hookimpl, takes
        >>> from avalanche_peftcl.benchmarks import ImageArray, StreamOptions, make_benchmark
        >>> from avalanche_peftcl.models import InputConfig
        >>> @takes(StreamOptions)
        ... def greys(*, per_class: int = 2, options: StreamOptions):
        ...     labels = np.repeat(np.arange(4), per_class)
        ...     pixels = np.broadcast_to(60 * labels[:, None, None], (len(labels), 8, 8))
        ...     images = ImageArray(pixels.astype(np.uint8), labels)
        ...     return make_benchmark(images, images, **vars(options))
        >>> @hookimpl
        ... def peftcl_benchmarks():
        ...     yield Component("greys", greys, source="drawn here")
        >>> made = greys(input_config=InputConfig(img_size=8), n_experiences=2)
        >>> len(made.train_stream)
        2
    """
    return ()


@hookspec
def peftcl_strategies() -> Iterable[Component]:
    """Offer methods.

    Handed in: ``backbone``; ``module`` and ``head``, where the configuration names one; ``device``;
    ``plugins``, those of the configuration; ``evaluator``, without which no run is measured.
    ``head`` is a function from the width of the features to a head. A key of a configuration that
    the builder has no argument for is refused.

    Returned: an Avalanche strategy; :class:`avalanche_peftcl.training.PEFTTemplate` is one that
    trains what is trainable, and no more.

    Example:
        >>> import torch
        >>> from avalanche_peftcl import Component, hookimpl, takes
        >>> from avalanche_peftcl.models import Backbone, Branch, HeadBuilder, PEFTModel
        >>> from avalanche_peftcl.training import PEFTTemplate, TrainingOptions
        >>> @takes(TrainingOptions)
        ... def probe(
        ...     *, backbone: Backbone, head: HeadBuilder | None = None, options: TrainingOptions
        ... ):
        ...     model = PEFTModel(backbone, Branch(), head and head(backbone.embed_dim))
        ...     optimizer = torch.optim.SGD(model.head.parameters(), **options.rates())
        ...     return PEFTTemplate(model=model, optimizer=optimizer, **options.template())
        >>> @hookimpl
        ... def peftcl_strategies():
        ...     yield Component("probe", probe, source="arXiv 1610.01644")
        >>> from avalanche_peftcl.models import create_backbone
        >>> vit = create_backbone("vit_tiny_patch16_224", img_size=32, depth=1)
        >>> probe(backbone=vit, lr=0.1).optimizer.defaults["lr"]
        0.1
    """
    return ()


@hookspec
def peftcl_strategy_plugins() -> Iterable[Component]:
    """Offer Avalanche plugins.

    Handed in: nothing.

    Returned: what has some of Avalanche's callbacks, such as a ``SupervisedPlugin``.

    Example:
        >>> from avalanche.core import SupervisedPlugin
        >>> from avalanche_peftcl import Component, hookimpl
        >>> class FewerEpochsPlugin(SupervisedPlugin):
        ...     def __init__(self, *, later_epochs: int = 1) -> None:
        ...         super().__init__()
        ...         self.later_epochs = later_epochs
        ...
        ...     def before_training_exp(self, strategy, **kwargs):
        ...         if strategy.clock.train_exp_counter:
        ...             strategy.train_epochs = self.later_epochs
        >>> @hookimpl
        ... def peftcl_strategy_plugins():
        ...     yield Component("fewer_epochs", FewerEpochsPlugin, source="none")
    """
    return ()


@hookspec
def peftcl_metrics() -> Iterable[Component]:
    """Offer plugin metrics.

    Handed in: nothing.

    Returned: an Avalanche ``PluginMetric`` or a list of them. Its values are kept for every
    experience. What is no single number, such as a curve, its ``summary()`` may return: a dict of
    what JSON can hold, which the record keeps by the metric's class, under ``metric_summaries``.
    Images that it runs through the network while an experience is trained would count among the
    passes of the method: ``evaluation.uncounted_passes()`` is a context, or decorator, without.

    Example:
        >>> from avalanche.evaluation import PluginMetric
        >>> from avalanche.evaluation.metric_results import MetricValue
        >>> from avalanche_peftcl import Component, hookimpl
        >>> class ExperiencesMetric(PluginMetric):
        ...     def reset(self): ...
        ...     def result(self): ...
        ...     def summary(self):
        ...         return {"unit": "experiences"}
        ...     def after_training_exp(self, strategy):
        ...         n = strategy.experience.current_experience + 1
        ...         return [MetricValue(self, "Experiences", n, strategy.clock.train_iterations)]
        >>> @hookimpl
        ... def peftcl_metrics():
        ...     yield Component("experiences", ExperiencesMetric, source="none")
    """
    return ()


@hookspec
def peftcl_loggers() -> Iterable[Component]:
    """Offer loggers.

    Handed in: ``output``, the run's folder; ``resume``, whether it goes on from a checkpoint;
    ``settings``, the configuration with all defaults; ``listed``, the names in the folder that the
    record of the earlier run lists as its own. Remove no others; what a logger makes while it is
    built is listed by the new record.

    Returned: an Avalanche ``BaseLogger``.

    Example:
        >>> from pathlib import Path
        >>> from avalanche.logging import TextLogger
        >>> from avalanche_peftcl import Component, hookimpl
        >>> def plain_text(*, output: Path, resume: bool, name: str = "log.txt") -> TextLogger:
        ...     return TextLogger((output / name).open("a" if resume else "w"))
        >>> @hookimpl
        ... def peftcl_loggers():
        ...     yield Component("plain_text", plain_text, source="Avalanche TextLogger")
    """
    return ()
