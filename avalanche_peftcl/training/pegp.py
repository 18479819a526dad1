r"""PEGP as an Avalanche strategy.

After experience ``t`` a basis ``V`` of the features at every projection site is extended. In the
next one the head trains alone first, then with the PEFT module under ``dW' = dW - (dW V) Vᵀ``
(giving ``p``). A second stage trains from the old values ``o`` without projection, near the tokens
of ``p`` (giving ``q``), and both are merged: ``(1 - b) p + b q`` with ``b = 1 / (t + a)``.
"""

from dataclasses import dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Backbone,
    Branch,
    DynamicModel,
    HeadBuilder,
    PEFTModel,
)
from avalanche_peftcl.models.modules.pegp import Kind, build_module
from avalanche_peftcl.registry.ranges import (
    Count,
    CountOrNone,
    Epochs,
    EpochsOrNone,
    LearningRate,
    MinibatchSize,
    Offset,
    Share,
    WeightDecay,
    Width,
)
from avalanche_peftcl.registry.takes import takes
from avalanche_peftcl.training.arguments import TemplateArguments
from avalanche_peftcl.training.feature_pass import unwrapped
from avalanche_peftcl.training.local_loss import LossOver
from avalanche_peftcl.training.networks import build_network
from avalanche_peftcl.training.optimizers import OptimizerName, annealing, make_optimizer
from avalanche_peftcl.training.options import FeatureOptions, TrainingOptions
from avalanche_peftcl.training.pegp_projection import Recipe, make_projection
from avalanche_peftcl.training.plugins import GradientProjectionPlugin, HeadOnlyPlugin
from avalanche_peftcl.training.plugins.gradient_projection import Where
from avalanche_peftcl.training.plugins.projection_rules import Rule
from avalanche_peftcl.training.second_stage import Near, SecondStage
from avalanche_peftcl.training.streams import ends_experience, is_chunk
from avalanche_peftcl.training.template import PEFTTemplate

_HEAD_EPOCHS = 3  # of 5, as released


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
        recipe: ``"corrected"``: the project page's conditions on the features;
            ``"released"``: what the released code computes, a mask for adapters and LoRA; as it
            has it on CLIP for prompts and for adapters behind the network, see
            :class:`.ReleasedProjectionPlugin`.
        projection: Whether updates are projected.
        threshold: Share of the old features' energy that is protected.
        rule: ``"energy"``, or ``"ratio"``, see :class:`.GradientProjectionPlugin`; as the three
            below of recipe ``"corrected"`` only.
        centred: Whether the threshold counts the energy of centred features, and their mean is
            protected whatever it is.
        kept: Share of directions that rule ``"ratio"`` leaves open.
        strength: What is removed of an update's protected component, 1 all of it.
        where: ``"step"`` or ``"gradient"``; the release projects the gradient.
        n_samples: Images read after an experience.
        watch: Images an experience to measure drift with; of both recipes.
        project_head: Whether the head is projected too, as any linear layer; of recipe
            ``"corrected"`` only.
        head_epochs: Epochs in which the head trains alone, of every experience but the first;
            ``None`` is 3, or all but one where there are fewer than 4.
        merge_epochs: Epochs of the second stage; 0 for none.
        merge_offset: ``a`` in the merging weight ``b = 1 / (t + a)``, experiences from 0.
        merge_share: ``b`` itself, the same in every experience, as the release has it on CLIP.
        near: What the second stage keeps near that of the first: the last block's ``"tokens"``, or
            ``"features"`` on unit norm, as on CLIP; ``None`` takes tokens, or features of a module
            that stands behind them, which tokens say nothing of.
        template: Arguments of :class:`.PEFTTemplate`, where not said otherwise with the
            :attr:`defaults` here: ``loss="local"`` as published (where an experience has one class,
            it learns with ``"seen"`` only); 5 epochs, head-only ones included, of minibatches of
            24; autocast where the device has units for bfloat16.

    Attributes:
        projection: The plugin that projects, if any.

    Raises:
        ConfigError: If an argument is out of range or does not fit the recipe.

    Source:
        Qiao et al., "Gradient Projection For Continual Parameter-Efficient Tuning", arXiv
        2405.13383; released code JingyangQiao/PEGP f6515bf (PEGP-ViT); for CLIP 842bc7e and
        4662b80.

    Differs:
        Recipe ``"released"``, from the release:

        - new rows of the head start at 0 instead of N(0, 0.001);
        - the last, smaller minibatch of an epoch is trained on too; the release drops it;
        - an online stream is projected at all: with one epoch the release never does.

        Recipe ``"corrected"``, beside those:

        - the basis spans token features, by default uncentred, instead of the first coordinates;
        - energy is counted by squared singular values of the features, not by their fourth power;
        - the step is projected, not the gradient, so that Adam and weight decay keep to it, and
          can be projected in part, or away from other directions, neither of which is PEGP's;
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

    defaults = TemplateArguments(
        loss="local", train_mb_size=24, train_epochs=5, eval_mb_size=64, mixed_precision="auto"
    )

    remembers: tuple[str, ...] = ("n_experiences_done", "second_stage")

    def __init__(
        self,
        *,
        model: PEFTModel,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe = "corrected",
        projection: bool = True,
        threshold: float = 0.99,
        rule: Rule = "energy",
        centred: bool = False,
        kept: float = 0.5,
        strength: float = 1.0,
        where: Where | None = None,
        n_samples: int | None = 768,
        watch: int = 0,
        project_head: bool = False,
        head_epochs: int | None = None,
        merge_epochs: int = 1,
        merge_offset: float = 1.0,
        merge_share: float | None = None,
        near: Near | None = None,
        **template: Unpack[TemplateArguments],
    ) -> None:
        arguments = self.defaults | template
        if not isinstance(unwrapped(model), DynamicModel):
            raise ConfigError(
                f"PEGP trains a PEFTModel, not a {type(model).__name__}: "
                "PEFTModel(backbone, module), with backbone = create_backbone(...)"
            )
        if head_epochs is None:
            head_epochs = max(0, min(_HEAD_EPOCHS, arguments["train_epochs"] - 1))
        if not 0 <= head_epochs <= arguments["train_epochs"]:
            raise ConfigError(
                f"head_epochs={head_epochs} must be from 0 to "
                f"train_epochs={arguments['train_epochs']}"
            )
        if merge_epochs < 0 or merge_offset < 0:
            raise ConfigError(
                f"merge_epochs={merge_epochs} and merge_offset={merge_offset} must not be negative"
            )
        if merge_share is not None and not 0 <= merge_share <= 1:
            raise ConfigError(f"merge_share={merge_share} must be from 0 to 1, or None")
        if near is None:
            network: Any = unwrapped(model)
            near = "features" if network.branch.adapts_pooled else "tokens"
        self.recipe = recipe
        self.projection = make_projection(
            model,
            recipe=recipe,
            projection=projection,
            threshold=threshold,
            rule=rule,
            centred=centred,
            kept=kept,
            strength=strength,
            where=where,
            n_samples=n_samples,
            watch=watch,
            project_head=project_head,
        )
        self.head_only = HeadOnlyPlugin(head_epochs)
        self.second_stage = SecondStage(
            epochs=merge_epochs, offset=merge_offset, share=merge_share, near=near
        )
        self.n_experiences_done = 0
        super().__init__(
            model=model, optimizer=optimizer, own_plugins=self._first_stage_only(), **arguments
        )

    def _first_stage_only(self) -> list[HeadOnlyPlugin | GradientProjectionPlugin]:
        return [self.head_only, *([] if self.projection is None else [self.projection])]

    def check_model_and_optimizer(self, reset_optimizer_state: bool = True, **kwargs: Any) -> None:
        """Adapt the model and start the optimizer anew."""
        super().check_model_and_optimizer(reset_optimizer_state=reset_optimizer_state, **kwargs)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the adapted features; in the second stage the loss has the tokens' distance."""
        if not self.second_stage.runs or not self.is_training:
            return super().features(images)
        pooled, self.mb_losses["distance"] = self.second_stage.features(self.network, images)
        return (pooled,)

    # --- the second stage ----------------------------------------------------------------------

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        """Train on one experience, then once more without projection, and merge."""
        self.second_stage.forget()
        again = bool(self.second_stage.epochs and self.n_experiences_done)
        if again and not is_chunk(experience):
            self.second_stage.remember(self.network.branch)
        super()._train_exp(experience, eval_streams, **kwargs)
        if self.second_stage.old is not None:
            with self.cursor.pause():
                self._train_again(**kwargs)
        self.n_experiences_done += ends_experience(experience)

    def _train_again(self, **kwargs: Any) -> None:
        self.head_only.release()
        self.second_stage.begin(self.network.branch)
        if self.recipe == "corrected":  # the moments of the first stage belong to other weights
            self.make_optimizer(reset_optimizer_state=True)
        self._stop_training = False  # a stop of the first stage is none of the second
        for plugin in self._first_stage_only():
            plugin.active = False
        try:
            for _ in range(self.second_stage.epochs):
                self._before_training_epoch(**kwargs)
                if self._stop_training:
                    break
                self.training_epoch(**kwargs)
                self._after_training_epoch(**kwargs)
            self.second_stage.merge(self.network.branch, experience=self.n_experiences_done)
        finally:
            self._stop_training = False
            self.second_stage.forget()
            for plugin in self._first_stage_only():
                plugin.active = True


@dataclass(frozen=True, kw_only=True)
class _Options(TrainingOptions, FeatureOptions):
    loss: LossOver = "local"
    lr: LearningRate = 0.0028125
    weight_decay: WeightDecay = 0.0
    train_mb_size: MinibatchSize = 24
    train_epochs: Epochs = 5


@takes(_Options)
def build_pegp(  # noqa: D417 (the others are described at PEGP, and read there)
    *,
    backbone: Backbone,
    module: Branch | None = None,
    head: HeadBuilder | None = None,
    peft: Kind = "attention_adapter",
    r: Width = 5,
    length: Width = 10,
    blocks: list[int] | None = None,
    recipe: Recipe = "corrected",
    projection: bool = True,
    threshold: Share = 0.99,
    rule: Rule = "energy",
    centred: bool = False,
    kept: Share = 0.5,
    strength: Share = 1.0,
    where: Where | None = None,
    n_samples: Count | None = 768,
    watch: CountOrNone = 0,
    project_head: bool = False,
    head_epochs: EpochsOrNone | None = None,
    merge_epochs: EpochsOrNone = 1,
    merge_offset: Offset = 1.0,
    merge_share: Share | None = None,
    near: Near | None = None,
    optimizer: OptimizerName = "adam",
    anneal: bool = False,
    options: _Options,
) -> PEGP:
    """Build :class:`PEGP` for one of four PEFT modules, or for a ``module`` with own options.

    What is not said here is said at :class:`PEGP`.

    Args:
        backbone: The frozen network.
        module: What trains in it; a run then refuses ``peft``, ``r``, ``length`` and ``blocks``.
        head: The classifier.
        peft: Which of the four, where no module is given. Beside a module this and the three below
            are refused, but for their defaults.
        r: Rank of LoRA, width of adapters.
        length: Prompt or prefix tokens a block.
        blocks: Which blocks, from 0; ``None`` takes the first five, with prompts the first one.
        anneal: Whether the learning rate falls as a cosine over the epochs of an experience, and
            rises again in the second stage, as the release has it on CLIP.
        options: What a strategy that trains takes.
    """
    if module is None:
        module = build_module(peft, backbone, r=r, length=length, blocks=blocks)
    model = build_network(backbone, module, head, **options.read())
    chosen = make_optimizer(optimizer, model, **options.rates())
    template = options.template()
    template["plugins"] = [
        *annealing(chosen, options.plugins, anneal=anneal, train_epochs=options.train_epochs),
        *options.plugins,
    ]
    return PEGP(
        model=model,
        optimizer=chosen,
        recipe=recipe,
        projection=projection,
        threshold=threshold,
        rule=rule,
        centred=centred,
        kept=kept,
        strength=strength,
        where=where,
        n_samples=n_samples,
        watch=watch,
        project_head=project_head,
        head_epochs=head_epochs,
        merge_epochs=merge_epochs,
        merge_offset=merge_offset,
        merge_share=merge_share,
        near=near,
        **template,
    )
