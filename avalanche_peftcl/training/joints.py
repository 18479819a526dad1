"""What a plugin finds on a strategy, and all that it may offer beside its callbacks, to paste.

Who asks for it: :class:`.PluginOffers` and :class:`.checkpoints.joints.Remembers`.

>>> import torch
>>> from avalanche.core import SupervisedPlugin
>>> from avalanche_peftcl.testing import toy_backbone, toy_benchmark
>>> from avalanche_peftcl.training import add_loss
>>> from avalanche_peftcl.training.naive import build_naive
>>> class SmallFeatures(SupervisedPlugin):
...     remembers = ("n_steps", "mean")  # what a checkpoint keeps
...
...     def __init__(self, weight):
...         super().__init__()
...         self.weight = weight
...         self.n_steps, self.mean = 0, torch.zeros(())
...
...     def before_backward(self, strategy, **kwargs):
...         length = strategy.mb_features[-1].square().mean()
...         add_loss(strategy, "small_features", self.weight * length)
...         self.n_steps += 1
...         self.mean += (length.detach() - self.mean) / self.n_steps
...
...     @property
...     def stored_floats(self):  # memory that counts among the costs of the method
...         return 1
...
...     def summary(self):  # for the record, under "plugins"
...         return {"mean": float(self.mean)}
...
...     def headline(self):  # shown after each experience
...         return f"features of mean square {float(self.mean):.1f}"
>>> plugin = SmallFeatures(0.1)
>>> strategy = build_naive(backbone=toy_backbone(), train_epochs=1, plugins=[plugin])
>>> _ = strategy.train(toy_benchmark().train_stream[0])
>>> plugin.n_steps, plugin.headline()
(1, 'features of mean square 1.0')
"""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import ClassRows, Drift, Head


@dataclass(frozen=True)
class Features:
    """A minibatch of a :func:`.feature_pass`.

    Attributes:
        features: What a :class:`~avalanche_peftcl.models.DynamicModel` classifies, ``(B, D)``; what
            any other network returns.
        targets: Class of each image, ``(B,)``.
        task_labels: Task label of each image, ``(B,)``; ``None`` where the benchmark gives none.
        classes: The network's rows; ``None`` where it has none.
    """

    features: Tensor
    targets: Tensor
    task_labels: Tensor | None
    classes: ClassRows | None

    @property
    def rows(self) -> Tensor:
        """Head row of each image, ``(B,)``.

        Raises:
            ConfigError: If the network has no rows.
        """
        if self.classes is None:
            raise ConfigError("only the heads of a DynamicModel have rows; use targets instead")
        return self.classes.index(self.targets, self.task_labels)


@runtime_checkable
class Tuning(Protocol):
    """A strategy such as :class:`.PEFTTemplate`; Avalanche's own have none of these.

    Attributes:
        mb_features: Features of the current minibatch, each ``(B, D)``; the last is classified.
        mb_row_logits: Its logits by head row, ``(B, R)``; ``None`` for a network without rows.
        mb_rows: Head row of each target, ``(B,)``; ``None`` outside training.
        mb_losses: Weighted terms of the loss by name; see :func:`.add_loss`.
    """

    mb_features: tuple[Tensor, ...]
    mb_row_logits: Tensor | None
    mb_rows: Tensor | None
    mb_losses: dict[str, Tensor]

    @property
    def network(self) -> nn.Module:
        """The model, unwrapped."""

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the network runs."""


@runtime_checkable
class Embeds(Protocol):
    """A strategy that knows features from elsewhere too, such as :class:`.ClosedForm`."""

    def embed(self, images: Tensor) -> Tensor:
        """Return what the network's ``embed`` returns, to the bit; features as they are."""


@runtime_checkable
class ReadsTexts(Protocol):
    """A strategy that trains on texts beside images, such as :class:`.Contrastive`."""

    def read_texts(self, targets: Tensor) -> None:
        """Run the texts of some targets through what trains of the text side, if anything does."""


@runtime_checkable
class MovesHeads(Protocol):
    """A plugin that moves what fitted heads hold when features have moved.

    :class:`.HeadPlugin` calls it when an experience was trained and all plugins before itself have
    done what they do then, just before the heads observe the experience's images.
    """

    def move_heads(
        self, strategy: Any, *, trial: Collection[Head] | None = None, num_workers: int = 0
    ) -> Sequence[Features]:
        """Move them; a second call for the same experience does nothing.

        Args:
            strategy: Which trains.
            trial: Of an evaluation inside the experience: the heads that are to move for its time,
                and are taken back by who calls. Nothing else moves, or is remembered.
            num_workers: Of the loader.

        Returns:
            What the network makes now of all images of the experience, if it was read for that, so
            that nobody reads it again; else nothing.
        """


@runtime_checkable
class KeepsFeatures(Protocol):
    """A plugin that keeps statistics of features, which move as those of fitted heads do."""

    def move_features(self, drift: Drift) -> None:
        """Move them to where the features of old images are now."""


def move_heads(
    strategy: Any, *, trial: Collection[Head] | None = None, num_workers: int = 0
) -> Sequence[Features]:
    """Let the plugins of a strategy move what was fitted, those that :class:`MovesHeads`.

    Args:
        strategy: Which trains.
        trial: See there.
        num_workers: Of the loader.

    Returns:
        What one of them has read, see there.
    """
    known: Sequence[Features] = ()
    for plugin in strategy.plugins:
        if isinstance(plugin, MovesHeads):
            known = plugin.move_heads(strategy, trial=trial, num_workers=num_workers) or known
    return known
