"""Builders of Avalanche's own metrics, so that a configuration can name them."""

from typing import Any

from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics

from avalanche_peftcl.errors import ConfigError


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
    wanted = {
        "minibatch": minibatch,
        "epoch": epoch,
        "epoch_running": epoch_running,
        "experience": experience,
        "stream": stream,
    }
    _check_any("loss", wanted)
    return list(loss_metrics(**wanted))


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
    wanted = {
        "minibatch": minibatch,
        "epoch": epoch,
        "epoch_running": epoch_running,
        "experience": experience,
        "stream": stream,
    }
    _check_any("accuracy", wanted)
    return list(accuracy_metrics(**wanted))


def _check_any(name: str, wanted: dict[str, bool]) -> None:
    if not any(wanted.values()):
        raise ConfigError(f"metric {name!r} emits nothing; set one of {', '.join(wanted)} to true")
