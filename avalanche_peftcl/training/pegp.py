r"""PEGP as an Avalanche strategy.

After experience ``t`` a basis ``V`` of the features at every projection site is extended. In the
next one the head trains alone first, then with the PEFT module under ``dW' = dW - (dW V) Vᵀ``
(giving ``p``). A second stage trains from the old values ``o`` without projection, near the tokens
of ``p`` (giving ``q``), and both are merged: ``(1 - b) p + b q`` with ``b = 1 / (t + a)``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from avalanche.training.plugins.evaluation import default_evaluator
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Backbone, Branch, PEFTModel, forward_tokens
from avalanche_peftcl.models.modules.kinds import Kind, build_module
from avalanche_peftcl.models.projection.sites import ProjectionSite, projection_sites
from avalanche_peftcl.registry.ranges import (
    Count,
    Epochs,
    EpochsOrNone,
    GradNorm,
    LearningRate,
    MinibatchSize,
    Momentum,
    Offset,
    Share,
    Steps,
    WeightDecay,
    Width,
)
from avalanche_peftcl.training.local_loss import LossOver
from avalanche_peftcl.training.optimizers import OptimizerName, make_optimizer
from avalanche_peftcl.training.plugins import (
    GradientProjectionPlugin,
    HeadOnlyPlugin,
    ReleasedProjectionPlugin,
)
from avalanche_peftcl.training.plugins.gradient_projection import Where
from avalanche_peftcl.training.streams import ends_experience
from avalanche_peftcl.training.template import MixedPrecision, PEFTTemplate

Recipe = Literal["corrected", "released"]


class PEGP(PEFTTemplate):
    """Gradient projection for continual parameter-efficient tuning.

    Works on class-, task-, domain-incremental and online streams of any Avalanche benchmark. A
    task label of a test image is used where the benchmark gives several of them, and only then.

    Head-only epochs, projection and merging can each be switched off. Of an online stream every
    image is seen once: it has no head-only epochs and no second stage, and is projected from
    the first step of the second experience.

    Args:
        model: Its ``branch`` is any module that states projection sites.
        optimizer: Over the model's trainable parameters; its state is new in each experience, of
            recipe ``"corrected"`` in each stage.
        criterion: Classification loss, cross-entropy by default.
        loss: Classes that the loss compares: ``"local"``, those of the experience, as published;
            ``"seen"``, all so far, without which one class an experience teaches nothing.
        recipe: ``"corrected"``: the project page's conditions on the features;
            ``"released"``: the mask that the released code computes, for adapters and LoRA.
        projection: Whether updates are projected.
        threshold: Share of the old features' energy that is protected.
        where: ``"step"`` or ``"gradient"``, see :class:`.GradientProjectionPlugin`; the release
            projects the gradient.
        n_samples: Images read after an experience.
        project_head: Whether the head is projected too, as any linear layer; of recipe
            ``"corrected"`` only.
        head_epochs: Epochs in which the head trains alone, of every experience but the first.
        merge_epochs: Epochs of the second stage; 0 for none.
        merge_offset: ``a`` in the merging weight ``b = 1 / (t + a)``, experiences from 0.
        train_mb_size: Images a training minibatch.
        train_epochs: Epochs an experience, head-only ones included.
        eval_mb_size: Images a test minibatch.
        device: Where to compute.
        plugins: Further Avalanche plugins; they act before the strategy's own.
        evaluator: Avalanche's evaluation plugin.
        eval_every: As in Avalanche.
        peval_mode: As in Avalanche.
        max_grad_norm: Clip the gradient's norm.
        accumulation_steps: Minibatches a step.
        mixed_precision: Autocast, by default where the device has units for bfloat16; see
            :class:`.PEFTTemplate`.

    Raises:
        ConfigError: If an argument is out of range or does not fit the recipe.

    Source:
        Qiao et al., "Gradient Projection For Continual Parameter-Efficient Tuning", arXiv
        2405.13383; released code JingyangQiao/PEGP f6515bf (PEGP-ViT).

    Differs:
        Recipe ``"released"``, from the release:

        - new rows of the head start at 0 instead of N(0, 0.001);
        - the last, smaller minibatch of an epoch is trained on too; the release drops it;
        - an online stream is projected at all: with one epoch the release never does.

        Recipe ``"corrected"``, beside those:

        - the basis spans token features, uncentred, instead of the first coordinates;
        - energy is counted by squared singular values of the features, not by their fourth power;
        - the step is projected, not the gradient, so that Adam and weight decay keep to it;
        - the learnable scales, and by default the value tokens of prefixes, are protected too;
        - the second stage starts with a new optimizer state: in the release one optimizer an
          experience steps both, so the moments of the first, projected at other weights, move
          the first steps of the second.

        Of the paper only the abstract and the equations of its project page could be read.

        Merging, the default, moves the weights without projection in both recipes. Old features
        stay, to the rounding of the precision, only with ``merge_epochs=0`` and ``threshold=1``, of
        the images read, and with modules whose conditions are exact: those of prompts are not by
        default, see :class:`~avalanche_peftcl.models.PromptTokens`.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> from avalanche_peftcl.models.modules.attention_adapter import build_attention_adapters
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> model = PEFTModel(backbone, build_attention_adapters(backbone=backbone, r=5))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
        >>> strategy = PEGP(model=model, optimizer=optimizer, evaluator=None)
        >>> strategy.projection.where
        'step'
    """

    one_class_advice = 'take loss="seen", or give an experience several classes'

    def __init__(
        self,
        *,
        model: PEFTModel,
        optimizer: torch.optim.Optimizer,
        criterion: Callable[..., Tensor] | None = None,
        loss: LossOver = "local",
        recipe: Recipe = "corrected",
        projection: bool = True,
        threshold: float = 0.99,
        where: Where | None = None,
        n_samples: int | None = 768,
        project_head: bool = False,
        head_epochs: int = 3,
        merge_epochs: int = 1,
        merge_offset: float = 1.0,
        train_mb_size: int = 24,
        train_epochs: int = 5,
        eval_mb_size: int | None = 64,
        device: str | torch.device = "cpu",
        plugins: Sequence[Any] | None = None,
        evaluator: Any = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        max_grad_norm: float | None = None,
        accumulation_steps: int = 1,
        mixed_precision: MixedPrecision = "auto",
    ) -> None:
        if recipe not in ("corrected", "released"):
            raise ConfigError(f"recipe must be corrected or released, not {recipe!r}")
        if loss not in ("local", "seen"):
            raise ConfigError(f"loss must be local or seen, not {loss!r}")
        if recipe == "released" and (where == "step" or project_head):
            raise ConfigError(
                'recipe="released" projects the gradients of adapters and LoRA; leave out '
                'where="step" and project_head=True, or take recipe="corrected"'
            )
        if not 0 <= head_epochs <= train_epochs:
            raise ConfigError(
                f"head_epochs={head_epochs} must be from 0 to train_epochs={train_epochs}"
            )
        if merge_epochs < 0 or merge_offset < 0:
            raise ConfigError(
                f"merge_epochs={merge_epochs} and merge_offset={merge_offset} must not be negative"
            )
        self.recipe, self.loss_over = recipe, loss
        self.merge_epochs, self.merge_offset = merge_epochs, merge_offset
        self.projection: GradientProjectionPlugin | None = None
        if projection and recipe == "released":
            self.projection = ReleasedProjectionPlugin(threshold, n_samples=n_samples)
        elif projection:
            self.projection = GradientProjectionPlugin(
                threshold,
                where=where or "step",
                n_samples=n_samples,
                sites=sites_with_head if project_head else projection_sites,
            )
        self._head_only = HeadOnlyPlugin(head_epochs)
        self._own: list[Any] = [self._head_only]
        if self.projection is not None:
            self._own.append(self.projection)
        self.n_experiences_done = 0
        self._old: list[Tensor] = []  # the values from which the second stage will start
        self._anchor: list[Tensor] | None = None  # the first stage's result, during the second
        self._distance: Tensor | None = None
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=criterion,
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=[*(plugins or ()), *self._own],
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
            max_grad_norm=max_grad_norm,
            accumulation_steps=accumulation_steps,
            mixed_precision=mixed_precision,
        )

    def check_model_and_optimizer(self, reset_optimizer_state: bool = True, **kwargs: Any) -> None:
        """Adapt the model and start the optimizer anew."""
        super().check_model_and_optimizer(reset_optimizer_state=reset_optimizer_state, **kwargs)

    # --- the loss ------------------------------------------------------------------------------

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the adapted features; in the second stage measure how far the tokens moved."""
        if self._anchor is None or not self.is_training:
            return super().features(images)
        backbone, branch = self.model.backbone, self.model.branch
        self._exchange(self._anchor)
        with torch.no_grad():
            fixed = backbone.norm(forward_tokens(backbone, branch, images))  # (B, N, D)
        self._exchange(self._anchor)
        torch.clear_autocast_cache()  # it holds the weights just put away
        tokens = forward_tokens(backbone, branch, images)
        self._distance = F.mse_loss(backbone.norm(tokens), fixed)
        return (backbone.pool(tokens),)

    def criterion(self) -> Tensor:
        """Return the classification loss; in the second stage add how far the tokens moved."""
        loss = super().criterion()
        if self._distance is None or not self.is_training:
            return loss
        return loss + self._distance

    # --- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what the strategy itself remembers; never asked for in the second stage.

        A run that is stopped there goes on from the last checkpoint of the first stage.
        """
        own = {"n_experiences_done": self.n_experiences_done, "old": list(self._old)}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.n_experiences_done = state["n_experiences_done"]
        self._old = list(state["old"])

    # --- the second stage ----------------------------------------------------------------------

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """Train on one experience, then once more without projection, and merge."""
        online = hasattr(experience, "access_task_boundaries")
        merges = bool(self.merge_epochs and self.n_experiences_done and not online)
        self._old = [p.detach().clone() for p in self._tuned()] if merges else []
        super()._train_exp(experience, eval_streams, **kwargs)
        if merges:
            with self.cursor.pause():
                self._second_stage(**kwargs)
        self.n_experiences_done += ends_experience(experience)

    def _second_stage(self, **kwargs: Any) -> None:
        self._head_only.release()
        projected = [p.detach().clone() for p in self._tuned()]
        self._exchange(self._old)
        self._old = []
        if self.recipe == "corrected":  # the moments of the first stage belong to other weights
            self.make_optimizer(reset_optimizer_state=True)
        self._anchor = projected
        self._stop_training = False  # a stop of the first stage is none of the second
        for plugin in self._own:
            plugin.active = False
        try:
            for _ in range(self.merge_epochs):
                self._before_training_epoch(**kwargs)
                if self._stop_training:
                    break
                self.training_epoch(**kwargs)
                self._after_training_epoch(**kwargs)
        finally:
            self._stop_training = False
            self._anchor = self._distance = None
            for plugin in self._own:
                plugin.active = True
        share = 1 / (self.n_experiences_done + self.merge_offset)
        with torch.no_grad():
            for p, first in zip(self._tuned(), projected, strict=True):
                p.lerp_(first, 1 - share)

    def _tuned(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.branch.parameters() if p.requires_grad]

    def _exchange(self, values: list[Tensor]) -> None:
        """Swap the values of the PEFT module's parameters with ``values``."""
        for i, p in enumerate(self._tuned()):
            p.data, values[i] = values[i], p.data


def sites_with_head(model: Any) -> list[ProjectionSite]:
    """Return the sites of the modules of ``model`` and those of its head."""
    head = [replace(site, name=f"head.{site.name}") for site in model.head.head_sites()]
    return projection_sites(model) + head


def build_pegp(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    device: str = "cpu",
    plugins: Sequence[Any] = (),
    evaluator: Any = None,
    loss: LossOver = "local",
    peft: Kind = "adapter",
    r: Width = 5,
    length: Width = 10,
    blocks: list[int] | None = None,
    recipe: Recipe = "corrected",
    projection: bool = True,
    threshold: Share | None = None,
    where: Where | None = None,
    n_samples: Count | None = 768,
    project_head: bool = False,
    head_epochs: EpochsOrNone = 3,
    merge_epochs: EpochsOrNone = 1,
    merge_offset: Offset = 1.0,
    optimizer: OptimizerName = "adam",
    lr: LearningRate = 0.0028125,
    momentum: Momentum = 0.9,
    weight_decay: WeightDecay = 0.0,
    train_mb_size: MinibatchSize = 24,
    train_epochs: Epochs = 5,
    eval_mb_size: MinibatchSize = 64,
    max_grad_norm: GradNorm | None = None,
    accumulation_steps: Steps = 1,
    mixed_precision: MixedPrecision = "auto",
) -> PEGP:
    """Build :class:`PEGP` for one of four PEFT modules, or for a ``module`` with own options.

    ``blocks=None`` gives the first five blocks a module, with prompts the first one;
    ``threshold=None`` is 0.99, for released adapters 0.999.
    """
    if module is None:
        module = build_module(peft, backbone, r=r, length=length, blocks=blocks)
    if threshold is None:
        threshold = 0.999 if recipe == "released" and peft == "adapter" else 0.99
    model = PEFTModel(backbone, module)
    return PEGP(
        model=model,
        optimizer=make_optimizer(
            optimizer, model, lr=lr, momentum=momentum, weight_decay=weight_decay
        ),
        loss=loss,
        recipe=recipe,
        projection=projection,
        threshold=threshold,
        where=where,
        n_samples=n_samples,
        project_head=project_head,
        head_epochs=head_epochs,
        merge_epochs=merge_epochs,
        merge_offset=merge_offset,
        train_mb_size=train_mb_size,
        train_epochs=train_epochs,
        eval_mb_size=eval_mb_size,
        device=device,
        plugins=plugins,
        evaluator=evaluator,
        max_grad_norm=max_grad_norm,
        accumulation_steps=accumulation_steps,
        mixed_precision=mixed_precision,
    )
