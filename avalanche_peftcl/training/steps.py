"""The host's epochs, minibatch by minibatch: precision, accumulated steps, named losses."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.device import check_device, check_doubles
from avalanche_peftcl.models.precision import MixedPrecision, Precision, resolve_precision
from avalanche_peftcl.training.cursor import Cursor
from avalanche_peftcl.training.divergence import FiniteWatch
from avalanche_peftcl.training.losses import LossMeans, NamedLosses, sum_of


class SteppedTemplate(SupervisedTemplate):
    """Part of :class:`.PEFTTemplate`: how an epoch becomes steps of the optimizer.

    Args:
        device: As in Avalanche.
        max_grad_norm: See :class:`.PEFTTemplate`.
        accumulation_steps: See there.
        mixed_precision: See there.
        host: Avalanche's further arguments.
    """

    remembers: tuple[str, ...] = ("_scaler", "_stop_training", "_loss_means")
    """What a checkpoint keeps of the strategy beside model, optimizer and plugins. A subclass names
    what it adds."""

    def __init__(
        self,
        *,
        device: str | torch.device,
        max_grad_norm: float | None,
        accumulation_steps: int,
        mixed_precision: MixedPrecision,
        **host: Any,
    ) -> None:
        precision = resolve_precision(mixed_precision, device)
        if accumulation_steps < 1:
            raise ConfigError(f"accumulation_steps must be at least 1, not {accumulation_steps}")
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ConfigError(f"max_grad_norm must be positive, not {max_grad_norm}")
        device = check_device(device)
        check_doubles(host["model"], device)
        super().__init__(device=device, **host)
        self._stop_training: bool
        self.max_grad_norm = max_grad_norm
        self.accumulation_steps = accumulation_steps
        self.mixed_precision: Precision = precision
        """What was asked for; of ``"auto"`` what it means on the device."""
        self.mb_losses: dict[str, Tensor] = NamedLosses()
        """Weighted terms of the current minibatch's loss beside the criterion, by name.

        They are added in the order in which they are put in: those of the forward pass before the
        plugins' ``before_backward``, those put in there after it.
        """
        self.loss_share = 1.0
        """Weight of the current minibatch's loss in its step, 1 unless steps are accumulated."""
        self.cursor = Cursor(self.device)
        """Hands out the minibatches, and knows the way back into an experience."""
        kind = torch.device(self.device).type
        self._scaler = torch.amp.GradScaler(kind, enabled=precision == "fp16")
        self._loss_means = LossMeans()
        self._watch = FiniteWatch()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model runs."""
        dtype = torch.float16 if self.mixed_precision == "fp16" else torch.bfloat16
        return torch.autocast(
            torch.device(self.device).type, dtype=dtype, enabled=self.mixed_precision != "no"
        )

    # --- training ------------------------------------------------------------------------------

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """Run the host's epochs, or those that are left where a run goes on."""
        for _ in self.cursor.epochs(self.train_epochs):
            self._before_training_epoch(**kwargs)
            if self._stop_training and not self.cursor.goes_on:
                self._stop_training = False
                break
            self.training_epoch(**kwargs)
            self._after_training_epoch(**kwargs)

    def training_epoch(self, **kwargs: Any) -> None:
        """Run the host's epoch; a step is taken each ``accumulation_steps`` minibatches."""
        n_batches, done = len(self.dataloader), 0
        self._watch.begin_epoch()
        self._loss_means.begin_epoch()
        for i, minibatch in self.cursor.minibatches(self.dataloader):
            if self._stop_training:
                break
            self.mbatch = minibatch
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            first = i - i % self.accumulation_steps
            size = min(self.accumulation_steps, n_batches - first)
            if i == first:
                self.optimizer.zero_grad()
            self._compute_loss(**kwargs)
            self.loss_share = 1 / size
            self.backward()
            self._after_backward(**kwargs)
            stepped = i == first + size - 1
            if stepped:
                self._scaler.unscale_(self.optimizer)
                self._before_update(**kwargs)
                self.optimizer_step()
                self._after_update(**kwargs)
            self._after_step()
            self._after_training_iteration(**kwargs)
            done = i + 1
            if self.cursor.due(stepped=stepped):  # a checkpoint of what diverged helps nobody
                self._watch.check_training(self, iteration=done)
            self.cursor.advance(done, stepped=stepped)
        self._watch.check_training(self, iteration=done)

    def _compute_loss(self, **kwargs: Any) -> None:
        """Run the minibatch through the model, and sum the criterion and the named terms."""
        self.loss, self.mb_losses = self._make_empty_loss(), NamedLosses()
        self._before_forward(**kwargs)
        self.mb_output = self.forward()
        self._after_forward(**kwargs)
        self.loss = self.loss + self.criterion()
        there = len(self.mb_losses)
        self.loss = sum_of(self.loss, self.mb_losses, start=0)
        self._before_backward(**kwargs)
        self.loss = sum_of(self.loss, self.mb_losses, start=there)
        self._loss_means.add(self.mb_losses)
        self._watch.loss(self.loss)

    def backward(self) -> None:
        """Add this minibatch's share to the gradient."""
        loss = self._scaler.scale(self.loss * self.loss_share)
        loss.backward(retain_graph=self.retain_graph)

    def optimizer_step(self) -> None:
        """Clip the gradient if asked to, then update the weights."""
        if self.max_grad_norm is not None:
            parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
            nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def _after_step(self) -> None:
        """Do what is left of a minibatch before metrics see it."""

    def _after_training_epoch(self, **kwargs: Any) -> None:
        self._loss_means.publish(self)
        super()._after_training_epoch(**kwargs)

    # --- evaluation ----------------------------------------------------------------------------

    def _before_eval_exp(self, **kwargs: Any) -> None:
        self._watch.begin_eval()
        super()._before_eval_exp(**kwargs)

    def _after_eval_forward(self, **kwargs: Any) -> None:
        self._watch.logits(self.mb_output)
        super()._after_eval_forward(**kwargs)

    def _after_eval_exp(self, **kwargs: Any) -> None:
        self._watch.check_eval(self)
        super()._after_eval_exp(**kwargs)
