"""The options that every strategy takes from a configuration, written once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

from avalanche_peftcl.models.block_features import FeatureKind
from avalanche_peftcl.models.precision import MixedPrecision
from avalanche_peftcl.registry.ranges import (
    Epochs,
    GradNorm,
    LearningRate,
    MinibatchSize,
    Momentum,
    Steps,
    WeightDecay,
)
from avalanche_peftcl.training.arguments import PluginOrder, TemplateArguments
from avalanche_peftcl.training.local_loss import LossOver


@dataclass(frozen=True, kw_only=True)
class StrategyOptions:
    """Options of a strategy of which nothing trains, and what a run hands in.

    Attributes:
        device: Where to compute; of the run.
        plugins: The user's Avalanche plugins; of the run.
        evaluator: Avalanche's evaluation plugin; of the run.
        plugin_order: Whether ``plugins`` act ``"before"`` the strategy's own or ``"after"`` them.
        eval_mb_size: Images a test minibatch.
        mixed_precision: ``"no"``: float32; ``"bf16"``, ``"fp16"``: autocast; ``"auto"``: bf16 where
            the device has units for it.
    """

    device: str = "cpu"
    plugins: Sequence[Any] = ()
    evaluator: Any = None
    plugin_order: PluginOrder = "before"
    eval_mb_size: MinibatchSize = 64
    mixed_precision: MixedPrecision = "auto"

    def template(self) -> TemplateArguments:
        """Return those of the options that are arguments of :class:`.PEFTTemplate`.

        Example:
            >>> sorted(StrategyOptions().template())
            ['device', 'eval_mb_size', 'evaluator', 'mixed_precision', 'plugin_order', 'plugins']
        """
        names = TemplateArguments.__annotations__
        held = {name: value for name, value in vars(self).items() if name in names}
        return cast(TemplateArguments, held)


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """What a head reads; a builder takes them beside those of its strategy.

    Attributes:
        features: Of the adapted pass: ``"pooled"``, ``"blocks"`` for all blocks, or block numbers
            from 0, see :func:`~avalanche_peftcl.models.block_features`.
        frozen_section: The same of the frozen network beside it; ``None`` for nothing.
    """

    features: FeatureKind = "pooled"
    frozen_section: FeatureKind | None = None

    def read(self) -> "Read":
        """Return them as arguments of :class:`~avalanche_peftcl.models.PEFTModel`."""
        return Read(features=self.features, frozen_section=self.frozen_section)


class Read(TypedDict):
    """What a head reads."""

    features: FeatureKind
    frozen_section: FeatureKind | None


class Rates(TypedDict):
    """What an optimizer is built with."""

    lr: float
    momentum: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(StrategyOptions):
    """Options of a strategy that trains by gradient descent.

    What a strategy wants otherwise it says in a subclass::

        @dataclass(frozen=True, kw_only=True)
        class Options(TrainingOptions):
            lr: LearningRate = 0.1

        @takes(Options)
        def build_mine(*, backbone: Backbone, alpha: Weight = 1.0, options: Options) -> Mine:
            model = PEFTModel(backbone, Branch())
            optimizer = torch.optim.SGD(model.head.parameters(), **options.rates())
            return Mine(model=model, optimizer=optimizer, alpha=alpha, **options.template())

    Attributes:
        loss: Classes that the loss compares: all ``"seen"``, or ``"local"`` to the experience.
        lr: Learning rate.
        momentum: Of SGD; of Adam the first beta.
        weight_decay: Added to the gradient, or taken off the weights.
        train_mb_size: Images a training minibatch.
        train_epochs: Epochs an experience.
        max_grad_norm: Clip the gradient's norm to this before each step.
        accumulation_steps: Minibatches whose gradients are averaged for one step.
    """

    loss: LossOver = "seen"
    lr: LearningRate = 0.025
    momentum: Momentum = 0.9
    weight_decay: WeightDecay = 5e-4
    train_mb_size: MinibatchSize = 16
    train_epochs: Epochs = 20
    max_grad_norm: GradNorm | None = None
    accumulation_steps: Steps = 1

    def rates(self) -> Rates:
        """Return ``lr``, ``momentum`` and ``weight_decay``."""
        return Rates(lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
