"""What every strategy here needs from Avalanche and does not get."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.models.dynamic_optimizers import update_optimizer
from avalanche.training.plugins.evaluation import default_evaluator
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import DynamicModel
from avalanche_peftcl.models.backbones.kept_features import keeping_features
from avalanche_peftcl.models.backbones.weights import check_weights
from avalanche_peftcl.models.frozen import Frozen
from avalanche_peftcl.models.precision import MixedPrecision
from avalanche_peftcl.registry.offers import ModelOffers
from avalanche_peftcl.training.arguments import PluginOrder
from avalanche_peftcl.training.feature_pass import unwrapped
from avalanche_peftcl.training.local_loss import LocalLoss, LossOver
from avalanche_peftcl.training.losses import add_loss
from avalanche_peftcl.training.plugins.head import HeadPlugin
from avalanche_peftcl.training.steps import SteppedTemplate
from avalanche_peftcl.training.streams import (
    captions,
    class_names,
    class_pairs,
    knows_boundaries,
    whole_experience,
)
from avalanche_peftcl.training.validation import UndisturbedTraining


class PEFTTemplate(LocalLoss, UndisturbedTraining, SteppedTemplate):
    """Avalanche's supervised template for a model of which few parameters train.

    Beside Avalanche's arguments, which keep their names:

    Args:
        model: Network. If it is a :class:`~avalanche_peftcl.models.DynamicModel`, its heads grow
            with the stream; any other model is adapted as Avalanche does.
        optimizer: Over any of the model's parameters; it is kept to those that train. ``None``
            where nothing trains.
        loss: Classes that the loss compares. ``"seen"``: all so far, of the image's task label.
            ``"local"``: those of the experience and of the minibatch, for a ``DynamicModel`` only.
        plugin_order: Whether ``plugins`` act ``"before"`` the strategy's own or ``"after"`` them.
        max_grad_norm: Clip the gradient's norm to this before each step.
        accumulation_steps: Minibatches whose gradients are averaged for one step.
        mixed_precision: ``"no"``: float32. ``"bf16"`` or ``"fp16"``: run forward and loss under
            autocast, with a gradient scaler for ``"fp16"``; logits are float32. ``"auto"``:
            ``"bf16"`` where the device has units for it, see
            :func:`~avalanche_peftcl.models.native_bfloat16`, else ``"no"``.
        own_plugins: Those of a subclass. A :class:`.HeadPlugin` is added where the network has a
            head that is fitted and none was given.

    Raises:
        ConfigError: If a device is not there, or one of the arguments is out of range.
        NotFiniteError: If weights are not finite numbers, here or after an epoch; if a loss is
            none in training, or the outputs for an image in evaluation.

    Differs:
        from ``SupervisedTemplate``: only parameters with ``requires_grad`` are in the optimizer,
        in any number of groups; growing heads are followed by name; an evaluation inside training
        changes nothing of it, the random generators neither; terms of the loss have names, and
        their means are published once an epoch.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        criterion: Callable[..., Tensor] | None = None,
        loss: LossOver = "seen",
        train_mb_size: int = 1,
        train_epochs: int = 1,
        eval_mb_size: int | None = 1,
        device: str | torch.device = "cpu",
        plugins: Sequence[Any] | None = None,
        plugin_order: PluginOrder = "before",
        evaluator: Any = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        max_grad_norm: float | None = None,
        accumulation_steps: int = 1,
        mixed_precision: MixedPrecision = "no",
        own_plugins: Sequence[Any] = (),
    ) -> None:
        if loss not in ("local", "seen"):
            raise ConfigError(f"loss must be local or seen, not {loss!r}")
        if loss == "local" and not isinstance(unwrapped(model), DynamicModel):
            raise ConfigError(
                f'loss="local" needs the rows of a DynamicModel, which {type(model).__name__} is '
                'not; take loss="seen"'
            )
        if plugin_order not in ("before", "after"):
            raise ConfigError(f"plugin_order must be before or after, not {plugin_order!r}")
        check_weights(model, f"the model, {type(model).__name__},")
        theirs, own = list(plugins or ()), list(own_plugins)
        if _has_fitted_head(model) and not any(isinstance(p, HeadPlugin) for p in theirs + own):
            own.append(HeadPlugin())
        super().__init__(
            model=model,
            optimizer=torch.optim.SGD([nn.Parameter()]) if optimizer is None else optimizer,
            criterion=criterion or nn.CrossEntropyLoss(),
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=theirs + own if plugin_order == "before" else own + theirs,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
            max_grad_norm=max_grad_norm,
            accumulation_steps=accumulation_steps,
            mixed_precision=mixed_precision,
        )
        self.optimized_param_id: dict[str, nn.Parameter] | None
        self.loss_over = loss
        self.mb_features: tuple[Tensor, ...] = ()
        """What :meth:`features` returned for the current minibatch."""
        self.mb_row_logits: Tensor | None = None
        """Logits of the current minibatch by head row, ``(B, R)``."""
        self.mb_rows: Tensor | None = None
        """Head rows of the current minibatch's targets, in training."""
        self.current_rows: list[int] = []
        """Head rows of the classes in the current training experience."""
        backbone = ModelOffers.of(model).backbone
        self.frozen = Frozen([backbone] if isinstance(backbone, nn.Module) else [])
        """What no checkpoint needs to hold: the backbone as it was given."""

    # --- model and optimizer -------------------------------------------------------------------

    @property
    def network(self) -> Any:
        """The model, out of what ``torch.compile`` may have put around it."""
        return unwrapped(self.model)

    @property
    def grows(self) -> bool:
        """Whether the model's heads grow with the stream."""
        return isinstance(self.network, DynamicModel)

    @property
    def task_label_at_test(self) -> bool:
        """Whether predictions are restricted by the task labels of test images."""
        return self.grows and len(self.network.classes.task_labels) > 1

    def model_adaptation(self, model: Any = None) -> nn.Module:
        """Grow the heads for the current experience, then adapt as Avalanche does."""
        model = self.model if model is None else model
        network = unwrapped(model)
        if isinstance(network, DynamicModel) and self.is_training:
            if captions(self.experience) is not None:
                raise ConfigError(
                    "the stream is of captioned images and has no classes; take the strategy "
                    "'contrastive', or a benchmark of classes"
                )
            pairs = class_pairs(whole_experience(self.experience))
            first = len(network.classes)
            network.start_experience(pairs, fresh=knows_boundaries(self.experience))
            network.start_rows(first, class_names(self.experience))
            self.current_rows = network.classes.add(pairs)
            network.start_branches(self.experience)
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
        return (self.network.embed(images),)

    def row_logits(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return a logit a head row, ``(B, R)``, of what :meth:`features` returned."""
        logits: Tensor = self.network.classify(features[-1])
        return logits

    def forward(self) -> Tensor:
        """Return the logits by class, ``(B, C)``, in float32."""
        with self.autocast(), keeping_features(not self.is_training):
            if not self.grows:
                logits: Tensor = super().forward()
                return logits.float() if torch.is_tensor(logits) else logits
            self.mb_features = self.features(self.mb_x)
            self.mb_row_logits = self.row_logits(self.mb_features).float()
        classes, task_labels = self.network.classes, self._task_labels()
        if self.is_training:
            for name, term in self.network.losses().items():
                add_loss(self, name, term)
            self.mb_rows = classes.index(self.mb_y, task_labels)
        by_class: Tensor = classes.scatter(self.mb_row_logits, task_labels)
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

    def _after_step(self) -> None:
        self._show_compared()

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self._forget_minibatch()

    def _eval_cleanup(self) -> None:
        super()._eval_cleanup()
        self._forget_minibatch()

    def _forget_minibatch(self) -> None:
        self.mb_features, self.mb_row_logits, self.mb_rows = (), None, None


def _has_fitted_head(model: nn.Module) -> bool:
    network = unwrapped(model)
    return isinstance(network, DynamicModel) and any(head.fitted for head in network.heads)
