"""The optimizers that a configuration can name."""

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from avalanche.training.plugins import LRSchedulerPlugin
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from avalanche_peftcl.errors import ConfigError, ConfigWarning

OptimizerName = Literal["sgd", "adam", "adamw"]


def make_optimizer(
    name: OptimizerName, model: nn.Module, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return an optimizer over the parameters of ``model`` that train.

    Args:
        name: Which one.
        model: Holds the parameters.
        lr: Learning rate.
        momentum: Of SGD; of Adam and AdamW the first beta.
        weight_decay: Added to the gradient (SGD, Adam) or taken off the weights (AdamW).

    Raises:
        ConfigError: If there is no such optimizer, or nothing trains.

    Example:
        >>> sgd = make_optimizer("sgd", nn.Linear(2, 2), lr=0.1, momentum=0.9, weight_decay=0.0)
        >>> sgd.param_groups[0]["lr"]
        0.1
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError(
            "no parameter trains: neither of the module nor of the head; take another of them, or "
            "the strategy 'nearest_class_mean', of which nothing does"
        )
    if name == "sgd":
        return torch.optim.SGD(trainable, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name not in ("adam", "adamw"):
        raise ConfigError(f"optimizer must be sgd, adam or adamw, not {name!r}")
    adam = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return adam(trainable, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)


def annealing(
    optimizer: torch.optim.Optimizer,
    plugins: Iterable[Any],
    *,
    anneal: bool | None,
    train_epochs: int,
) -> list[LRSchedulerPlugin]:
    """Return the plugin that lets the learning rate fall to 0 over each experience's epochs.

    One schedule acts: where a plugin of the user's holds a scheduler of ``optimizer``, none is
    returned.

    Args:
        optimizer: Whose learning rates fall, as a cosine.
        plugins: The user's.
        anneal: ``None`` is yes unless there is such a plugin; ``True`` beside one warns.
        train_epochs: Epochs an experience.

    Returns:
        One plugin, or none.
    """
    if anneal is False or train_epochs < 1:
        return []
    theirs = [type(plugin).__name__ for plugin in plugins if _schedules(plugin, optimizer)]
    if theirs:
        if anneal:
            warnings.warn(
                f"{' and '.join(theirs)} sets the learning rate, so anneal=True does nothing; "
                "leave out one of them",
                ConfigWarning,
                stacklevel=3,
            )
        return []
    schedule = CosineAnnealingLR(optimizer, T_max=train_epochs)
    return [LRSchedulerPlugin(schedule, reset_scheduler=True, reset_lr=True)]


def _schedules(plugin: Any, optimizer: torch.optim.Optimizer) -> bool:
    held = getattr(plugin, "__dict__", {}).values()
    return any(isinstance(x, LRScheduler) and x.optimizer is optimizer for x in held)
