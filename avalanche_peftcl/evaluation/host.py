"""Builders of Avalanche's own metrics, so that a configuration can name them."""

from collections.abc import Sequence
from typing import Any

from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics

from avalanche_peftcl.errors import ConfigError

_WHEN = ("minibatch", "epoch", "epoch_running", "experience", "stream")


def loss(
    *,
    minibatch: bool = True,
    epoch: bool = False,
    epoch_running: bool = False,
    experience: bool = True,
    stream: bool = True,
) -> list[Any]:
    """Emit the loss.

    Args:
        minibatch: Of each training minibatch.
        epoch: Mean over each training epoch.
        epoch_running: Mean over the epoch so far, after each minibatch.
        experience: Mean over each test experience.
        stream: Mean over all test images seen.

    Returns:
        Avalanche's metrics.

    Raises:
        ConfigError: If none is wanted.

    Source:
        Avalanche's ``loss_metrics``.

    Example:
        >>> [str(metric) for metric in loss(experience=False, stream=False)]
        ['Loss_MB']
    """
    flags = (minibatch, epoch, epoch_running, experience, stream)
    return list(loss_metrics(**_wanted("loss", flags)))


def accuracy(
    *,
    minibatch: bool = False,
    epoch: bool = True,
    epoch_running: bool = False,
    experience: bool = True,
    stream: bool = True,
) -> list[Any]:
    """Emit the accuracy, as a fraction.

    Args:
        minibatch: Of each training minibatch.
        epoch: Over each training epoch.
        epoch_running: Over the epoch so far, after each minibatch.
        experience: On each test experience.
        stream: On all test images seen.

    Returns:
        Avalanche's metrics.

    Raises:
        ConfigError: If none is wanted.

    Source:
        Avalanche's ``accuracy_metrics``.

    Example:
        >>> [str(metric) for metric in accuracy(experience=False, stream=False)]
        ['Top1_Acc_Epoch']
    """
    flags = (minibatch, epoch, epoch_running, experience, stream)
    return list(accuracy_metrics(**_wanted("accuracy", flags)))


def _wanted(name: str, flags: Sequence[bool]) -> dict[str, bool]:
    """Return the flags by Avalanche's names."""
    if not any(flags):
        raise ConfigError(f"metric {name!r} emits nothing; set one of {', '.join(_WHEN)} to true")
    return dict(zip(_WHEN, flags, strict=True))
