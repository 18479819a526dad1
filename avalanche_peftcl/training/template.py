"""What every strategy here needs from Avalanche and does not get."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from avalanche.models.dynamic_optimizers import update_optimizer
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import DynamicModel
from avalanche_peftcl.models.backbones.weights import check_weights
from avalanche_peftcl.models.device import check_device as check_device
from avalanche_peftcl.models.frozen import Frozen
from avalanche_peftcl.models.precision import MixedPrecision as MixedPrecision
from avalanche_peftcl.models.precision import Precision, resolve_precision
from avalanche_peftcl.training.cursor import Cursor
from avalanche_peftcl.training.divergence import FiniteWatch
from avalanche_peftcl.training.local_loss import LocalLoss
from avalanche_peftcl.training.streams import class_pairs, whole_experience
from avalanche_peftcl.training.validation import UndisturbedTraining


class PEFTTemplate(LocalLoss, UndisturbedTraining, SupervisedTemplate):
    """Avalanche's supervised template for a model of which few parameters train.

    Beside Avalanche's arguments, which keep their names:

    Args:
        model: Network. If it is a :class:`~avalanche_peftcl.models.DynamicModel`, its heads grow
            with the stream; any other model is adapted as Avalanche does.
        optimizer: Over any of the model's parameters; it is kept to those that train. ``None``
            where nothing trains.
        max_grad_norm: Clip the gradient's norm to this before each step.
        accumulation_steps: Minibatches whose gradients are averaged for one step.
        mixed_precision: ``"no"``: float32. ``"bf16"`` or ``"fp16"``: run forward and loss under
            autocast, with a gradient scaler for ``"fp16"``; logits are float32. ``"auto"``:
            ``"bf16"`` where the device has units for it, see
            :func:`~avalanche_peftcl.models.native_bfloat16`, else ``"no"``.

    Raises:
        ConfigError: If a device is not there, or one of the three arguments is out of range.
        NotFiniteError: If weights are not finite numbers, here or after an epoch; if a loss is
            none in training, or the outputs for an image in evaluation.

    Differs:
        from ``SupervisedTemplate``: only parameters with ``requires_grad`` are in the optimizer,
        in any number of groups; growing heads are followed by name; an evaluation inside training
        changes nothing of it, the random generators neither; three arguments more.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        criterion: Callable[..., Tensor] | None = None,
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[Any] | None = None,
        evaluator: Any = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        max_grad_norm: float | None = None,
        accumulation_steps: int = 1,
        mixed_precision: MixedPrecision = "no",
    ) -> None:
        precision = resolve_precision(mixed_precision, device)
        if accumulation_steps < 1:
            raise ConfigError(f"accumulation_steps must be at least 1, not {accumulation_steps}")
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ConfigError(f"max_grad_norm must be positive, not {max_grad_norm}")
        check_weights(model, f"the model, {type(model).__name__},")
        super().__init__(
            model=model,
            optimizer=torch.optim.SGD([nn.Parameter()]) if optimizer is None else optimizer,
            criterion=criterion or nn.CrossEntropyLoss(),
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=check_device(device),
            plugins=list(plugins or ()),
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
        )
        self.optimized_param_id: dict[str, nn.Parameter] | None
        self._stop_training: bool
        self.max_grad_norm = max_grad_norm
        self.accumulation_steps = accumulation_steps
        self.mixed_precision: Precision = precision
        """What was asked for; of ``"auto"`` what it means on the device."""
        self.mb_features: tuple[Tensor, ...] = ()
        """What :meth:`features` returned for the current minibatch."""
        self.mb_row_logits: Tensor | None = None
        """Logits of the current minibatch by head row, ``(B, R)``."""
        self.mb_rows: Tensor | None = None
        """Head rows of the current minibatch's targets, in training."""
        kind = torch.device(self.device).type
        self._scaler = torch.amp.GradScaler(kind, enabled=precision == "fp16")
        self.loss_share = 1.0
        """Weight of the current minibatch's loss in its step, 1 unless steps are accumulated."""
        self.current_rows: list[int] = []
        """Head rows of the classes in the current training experience."""
        self.cursor = Cursor(self.device)
        """Hands out the minibatches, and knows the way back into an experience."""
        self._watch = FiniteWatch()
        backbone = getattr(model, "backbone", None)
        self.frozen = Frozen([backbone] if isinstance(backbone, nn.Module) else [])
        """What no checkpoint needs to hold: the backbone as it was given."""

    # --- model and optimizer -------------------------------------------------------------------

    @property
    def grows(self) -> bool:
        """Whether the model's heads grow with the stream."""
        return isinstance(self.model, DynamicModel)

    @property
    def task_label_at_test(self) -> bool:
        """Whether predictions are restricted by the task labels of test images."""
        return self.grows and len(self.model.classes.task_labels) > 1

    def model_adaptation(self, model: Any = None) -> nn.Module:
        """Grow the heads for the current experience, then adapt as Avalanche does."""
        model = self.model if model is None else model
        if isinstance(model, DynamicModel) and self.is_training:
            pairs = class_pairs(whole_experience(self.experience))
            online = hasattr(self.experience, "access_task_boundaries")
            known_boundary = not online or self.experience.access_task_boundaries
            model.start_experience(pairs, fresh=known_boundary)
            self.current_rows = model.classes.add(pairs)
        adapted: nn.Module = super().model_adaptation(model)
        return adapted

    def make_optimizer(
        self, reset_optimizer_state: bool = False, remove_params: bool = True, **kwargs: Any
    ) -> None:
        """Point the optimizer at the parameters that train now, and at no others."""
        trainable = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        if self.optimized_param_id is None:
            kept = set(map(id, trainable.values()))
            for group in self.optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) in kept]
        try:
            self.optimized_param_id = update_optimizer(
                self.optimizer,
                trainable,
                self.optimized_param_id,
                reset_state=reset_optimizer_state,
                remove_params=remove_params and self.optimized_param_id is not None,
            )
        except AttributeError as error:
            raise ConfigError(
                "the optimizer's parameter groups do not say to which of them a new parameter "
                f"belongs ({error}); put all parameters of one module in one group"
            ) from error

    # --- one minibatch -------------------------------------------------------------------------

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the features that losses and plugins see; the last one is classified."""
        return (self.model.embed(images),)

    def forward(self) -> Tensor:
        """Return the logits by class, ``(B, C)``, in float32."""
        with self.autocast():
            if not self.grows:
                logits: Tensor = super().forward()
                return logits.float() if torch.is_tensor(logits) else logits
            self.mb_features = self.features(self.mb_x)
            self.mb_row_logits = self.model.classify(self.mb_features[-1]).float()
        if self.is_training:
            self.mb_rows = self.model.classes.index(self.mb_y, self._task_labels())
        by_class: Tensor = self.model.classes.scatter(self.mb_row_logits, self._task_labels())
        return by_class

    def _task_labels(self) -> Tensor | None:
        return self.mbatch[-1] if len(self.mbatch) > 2 else None

    def criterion(self) -> Tensor:
        """Return the loss over the classes that :attr:`loss_over` says; in evaluation over all."""
        with self.autocast():
            if self.is_training and self.loss_over == "local" and self.mb_row_logits is not None:
                return self.local_loss(self.mb_row_logits)
            loss: Tensor = super().criterion()
            return loss

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model runs."""
        dtype = torch.float16 if self.mixed_precision == "fp16" else torch.bfloat16
        return torch.autocast(
            torch.device(self.device).type, dtype=dtype, enabled=self.mixed_precision != "no"
        )

    # --- one step ------------------------------------------------------------------------------

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """Run the host's epochs, or those that are left where a run goes on."""
        for _ in self.cursor.epochs(self.train_epochs):
            self._before_training_epoch(**kwargs)
            if self._stop_training:
                self._stop_training = False
                break
            self.training_epoch(**kwargs)
            self._after_training_epoch(**kwargs)

    def training_epoch(self, **kwargs: Any) -> None:
        """Run the host's epoch; a step is taken each ``accumulation_steps`` minibatches."""
        n_batches, done = len(self.dataloader), 0
        self._watch.begin_epoch()
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
            self.loss = self._make_empty_loss()
            self._before_forward(**kwargs)
            self.mb_output = self.forward()
            self._after_forward(**kwargs)
            self.loss = self.loss + self.criterion()
            self._before_backward(**kwargs)
            self._watch.loss(self.loss)
            self.loss_share = 1 / size
            self.backward()
            self._after_backward(**kwargs)
            stepped = i == first + size - 1
            if stepped:
                self._scaler.unscale_(self.optimizer)
                self._before_update(**kwargs)
                self.optimizer_step()
                self._after_update(**kwargs)
            self._show_compared()
            self._after_training_iteration(**kwargs)
            done = i + 1
            if self.cursor.due(stepped=stepped):  # a checkpoint of what diverged helps nobody
                self._watch.check_training(self, iteration=done)
            self.cursor.advance(done, stepped=stepped)
        self._watch.check_training(self, iteration=done)

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

    # --- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what the strategy itself remembers.

        Model, optimizer and plugins are taken down beside it, see :class:`.StrategyState`. A
        subclass that remembers more adds it here and in :meth:`load_state_dict`.

        Returns:
            Mappings, lists, tuples, sets, numbers, text, ``None`` and tensors.
        """
        return {
            "current_rows": list(self.current_rows),
            "scaler": self._scaler.state_dict(),
            "stop": self._stop_training,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.current_rows = list(state["current_rows"])
        self._stop_training = state["stop"]
        if state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self._forget_minibatch()

    def _eval_cleanup(self) -> None:
        super()._eval_cleanup()
        self._forget_minibatch()

    def _forget_minibatch(self) -> None:
        self.mb_features, self.mb_row_logits, self.mb_rows = (), None, None
