"""Notice in training and evaluation that numbers are numbers no more, without slowing a step."""

import warnings
from typing import Any

import torch
from avalanche.core import BaseSGDPlugin
from torch import Tensor

from avalanche_peftcl.errors import DivergenceWarning, NotFiniteError
from avalanche_peftcl.functional.finite import all_finite, check_decided, undecided
from avalanche_peftcl.training.streams import number_of

_CHUNK = 1024  # losses of so many steps become one tensor
_FAR = 100.0  # a mean loss beyond so many times the first one is told


class FiniteWatch:
    """Keeps the losses of an epoch on the device, and looks at them once.

    With a gradient scaler steps whose gradients are infinite are left out on purpose: then only
    weights that are no numbers, or an epoch of nothing but such losses, is a divergence.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._steps: list[Tensor] = []
        self._undecided: Tensor | int = 0
        self._images = 0
        self._warned = False

    def begin_epoch(self) -> None:
        """Forget the losses of the last epoch."""
        self._losses, self._steps = [], []

    def loss(self, loss: Tensor) -> None:
        """Note the loss of a minibatch; nothing waits for the device."""
        self._steps.append(loss.detach().reshape(()))
        if len(self._steps) == _CHUNK:
            self._losses.append(torch.stack(self._steps))
            self._steps = []

    def check_training(self, strategy: Any, *, iteration: int) -> None:
        """Look at the losses of the epoch so far and at the weights that train.

        Args:
            strategy: The strategy, a :class:`.PEFTTemplate`.
            iteration: Minibatches of the epoch that are done, those of an earlier process too.

        Raises:
            NotFiniteError: If a loss or a weight is no finite number.

        Warns:
            DivergenceWarning: Once, if the mean loss is far above the first one of the epoch.
        """
        weights = [p for group in strategy.optimizer.param_groups for p in group["params"]]
        parts = self._losses + ([torch.stack(self._steps)] if self._steps else [])
        losses = torch.cat(parts).float() if parts else torch.zeros(1)
        fine, sound = losses.isfinite(), all_finite(weights).to(losses.device)
        enough = fine.any() if strategy.mixed_precision == "fp16" else fine.all()
        largest = losses.nan_to_num(0, 0, 0).mean()
        told = torch.stack([enough & sound, sound, fine.all(), largest, losses[0]]).tolist()
        goes_on, sound_weights, all_fine, mean, first = told  # read at once
        if not goes_on:
            skipped = iteration - len(losses)  # by an earlier process
            step = None if all_fine else skipped + int(fine.int().argmin()) + 1
            raise NotFiniteError(_message(strategy, step, in_weights=not sound_weights))
        if mean > _FAR * (1 + abs(first)) and not self._warned:
            self._warned = True
            warnings.warn(
                f"the mean loss in {_where(strategy)}, {mean:.3g}, is far above that of its first "
                f"minibatch, {first:.3g}: training diverges; {_ways(strategy)}",
                DivergenceWarning,
                stacklevel=2,
            )

    def begin_eval(self) -> None:
        """Forget the outputs for the last test experience."""
        self._undecided, self._images = 0, 0

    def logits(self, logits: Any) -> None:
        """Note the outputs of a minibatch; nothing waits for the device."""
        if torch.is_tensor(logits) and logits.ndim == 2 and logits.shape[1]:
            self._undecided = self._undecided + undecided(logits)
            self._images += len(logits)

    def check_eval(self, strategy: Any) -> None:
        """Look at the outputs for a test experience.

        Raises:
            NotFiniteError: If those of an image are no finite numbers.
        """
        number = int(strategy.experience.current_experience) + 1
        name = strategy.experience.origin_stream.name
        if torch.is_tensor(self._undecided):
            check_decided(self._undecided, self._images, f"experience {number} of stream {name}")


def _message(strategy: Any, step: int | None, *, in_weights: bool) -> str:
    if step is None:
        told = "the weights are not finite numbers"
    else:
        told = f"the loss is not a finite number from minibatch {step} on"
        told += ", nor are the weights" * in_weights
    # before the first update of all nothing but what goes in can be at fault
    clock = strategy.clock
    untouched = step == 1 and clock.train_iterations == clock.train_epoch_iterations
    ways = _ways(strategy, untouched=untouched)
    return f"training diverged in {_where(strategy)}: {told}; {ways}"


def _where(strategy: Any) -> str:
    number = number_of(strategy.experience)
    return f"experience {number}, epoch {int(strategy.clock.train_exp_epochs) + 1} (from 1)"


def _ways(strategy: Any, *, untouched: bool = False) -> str:
    """Return what a user can change."""
    ways = []
    terms = [type(plugin).__name__ for plugin in strategy.plugins if _adds_to_loss(plugin)]
    if terms:
        ways.append(f"lower the weight of what adds to the loss ({', '.join(terms)})")
    if strategy.mixed_precision != "no":
        ways.append(f"compute with mixed_precision no instead of {strategy.mixed_precision}")
    if untouched:
        ways.append("look at the images: no step was taken before")
    else:
        rates = [float(group["lr"]) for group in strategy.optimizer.param_groups]
        ways.append(f"lower lr (now {max(rates):g})")
    return ", or ".join(ways)


def _adds_to_loss(plugin: Any) -> bool:
    if not isinstance(plugin, BaseSGDPlugin):
        return False
    return type(plugin).before_backward is not BaseSGDPlugin.before_backward
