r"""NTK-CL as an Avalanche strategy.

A step minimises ``CE(c) + CE(p) + CE(m)`` over the classes at hand, plus ``eta * NCE(m)``,
``upsilon * orthogonality(c, p)`` and ``lambda * |p - p0|^2``; after an experience the older
adapters become the mean of all, and class means of ``m`` become the classifier.
"""

import inspect
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Unpack

import torch
from pydantic import Field
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Backbone, FeatureKind, HeadBuilder, NTKCLModel, Recipe
from avalanche_peftcl.registry.ranges import Draws, Dropout, Penalty, Temperature, Weight, Width
from avalanche_peftcl.registry.takes import takes
from avalanche_peftcl.training.arguments import TemplateArguments
from avalanche_peftcl.training.feature_pass import unwrapped
from avalanche_peftcl.training.local_loss import LossOver
from avalanche_peftcl.training.ntk_cl_kernel import NTKCLKernel, build_kernel_model
from avalanche_peftcl.training.optimizers import OptimizerName, annealing, make_optimizer
from avalanche_peftcl.training.options import TrainingOptions
from avalanche_peftcl.training.plugins import (
    PrototypeContrastPlugin,
    ReleasedContrastPlugin,
    ReleasedOrthogonalityPlugin,
    ReleasedRunningMeanPlugin,
    RetentionPlugin,
    RunningMeanPlugin,
    TaskOrthogonalityPlugin,
)
from avalanche_peftcl.training.template import PEFTTemplate


class NTKCL(PEFTTemplate):
    r"""Parameter-efficient continual learning that was derived from the neural tangent kernel.

    No kernel is computed here, no Jacobian and no bound, and none in the released code: the theory
    is the reason that its authors give for the parts, which are adapters and prompts with running
    means, three losses beside cross-entropy, and class means as the classifier. The kernel that it
    has can be measured: :class:`~avalanche_peftcl.evaluation.NTKMetric`.

    Works on class-, task-, domain-incremental and online streams of any Avalanche benchmark.
    A task label of a test image is used where the benchmark gives several of them, and only then.

    Args:
        model: The network; its ``recipe`` is the strategy's.
        optimizer: Over the model's trainable parameters; its state is new in each experience.
        contrast_weight: :math:`\eta`, of the contrastive term.
        temperature: Of the contrastive term.
        contrast_prototypes: Prototypes that it draws in each step; ``None`` is ``train_mb_size``.
        orthogonality_weight: :math:`\upsilon`, of the orthogonality term.
        retention_weight: :math:`\lambda`, of the distance from the start of the experience.
        anneal: Let the learning rate fall to 0 as a cosine over each experience's epochs;
            ``None``: unless one of ``plugins`` schedules it.
        template: Arguments of :class:`.PEFTTemplate`, where not said otherwise with the
            :attr:`defaults` here: ``loss="local"`` as published, 20 epochs of minibatches of 16,
            autocast where the device has units for bfloat16.

    Source:
        Liu et al., "Parameter-Efficient Fine-Tuning for Continual Learning: A Neural Tangent
        Kernel Perspective", arXiv 2407.17120; released code Programmergg/NTK-CL at 24de712.

    Differs:
        Recipe ``"released"``, from the release:

        - one SVD an experience for the orthogonality term, none in evaluation;
        - what all branches share is computed once; the fusion's attention is its closed form;
        - a class met again moves its prototype on instead of losing it;
        - replayed images of other classes bring their classes into the loss;
        - classes in training can be predicted, by running means of their features on the scale of
          the prototypes (proxies are of no common scale with these: their loss leaves free what all
          of them share); nothing of it is left when the experience has ended.

        Recipe ``"corrected"``, beside those:

        - the generators of the patch prompts start at Kaiming and 1 instead of 0, so they train;
        - the orthogonality term is the energy inside the span of old prototypes, of their rank;
        - the contrastive term has a plus sign, so that equal classes attract on average, though
          not pair by pair, see :func:`~avalanche_peftcl.functional.losses.pooled_nce`;
        - the retention term holds every adapted parameter, biases too;
        - older copies of the adapters have no dropout in training;
        - the running mean takes in the last experience too, so nothing depends on knowing it;
        - the fusion has no query and key layers, whose gradient is always zero.

        Of the paper only the abstract could be read, so these terms are our reading of it. What
        ``"corrected"`` keeps of the release though nothing in the abstract asks for it: prototypes
        of earlier classes are not moved when the modules move on; those of new classes are taken
        with running means that training did not see; training compares whole views, prediction
        each section by itself with fixed weights; and the weights of the orthogonality and the
        retention term, which belonged to other terms. They do not act: each makes up at most
        0.5 % of the gradient. Larger ones were tried on held-out images of three streams:
        none gained on all, so none is the default, and a retention term that acts cost accuracy
        (few images; see ``examples/real_images/loss_weights.md``).

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> model = NTKCLModel(create_backbone("vit_tiny_patch16_224", img_size=32))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.025, momentum=0.9)
        >>> strategy = NTKCL(model=model, optimizer=optimizer, evaluator=None)
        >>> strategy.recipe
        'corrected'
    """

    defaults = TemplateArguments(
        loss="local", train_mb_size=16, train_epochs=20, eval_mb_size=64, mixed_precision="auto"
    )
    one_class_advice = (
        "the contrastive and the orthogonality term still act; give an experience several classes, "
        'replay images of earlier ones, or take loss="seen"'
    )

    def __init__(
        self,
        *,
        model: NTKCLModel,
        optimizer: torch.optim.Optimizer,
        contrast_weight: float = 0.03,
        temperature: float = 0.1,
        contrast_prototypes: int | None = None,
        orthogonality_weight: float = 1e-4,
        retention_weight: float = 1e-3,
        anneal: bool | None = None,
        **template: Unpack[TemplateArguments],
    ) -> None:
        arguments = self.defaults | template
        if not isinstance(unwrapped(model), NTKCLModel):
            raise ConfigError(
                f"NTKCL trains an NTKCLModel, not a {type(model).__name__}: NTKCLModel(backbone), "
                "with backbone = create_backbone(...)"
            )
        released = model.recipe == "released"
        contrast = ReleasedContrastPlugin if released else PrototypeContrastPlugin
        orthogonality = ReleasedOrthogonalityPlugin if released else TaskOrthogonalityPlugin
        mean = ReleasedRunningMeanPlugin if released else RunningMeanPlugin
        copies = range(len(model.channel_copies))
        schedule = annealing(
            optimizer,
            arguments.get("plugins") or (),
            anneal=anneal,
            train_epochs=arguments["train_epochs"],
        )
        own = [
            contrast(contrast_weight, temperature=temperature, n_prototypes=contrast_prototypes),
            orthogonality(orthogonality_weight),
            RetentionPlugin(retention_weight, select=_released if released else _adapted),
            mean("channel", [f"channel_copies.{i}" for i in copies]),
            mean("patch", [f"patch_copies.{i}" for i in copies]),
            *schedule,
        ]
        super().__init__(model=model, optimizer=optimizer, own_plugins=own, **arguments)
        self._view_logits: tuple[Tensor, ...] = ()  # by head row, of the current minibatch's views

    @property
    def recipe(self) -> Recipe:
        """The recipe of the model."""
        recipe: Recipe = self.model.recipe
        return recipe

    def check_model_and_optimizer(self, reset_optimizer_state: bool = True, **kwargs: Any) -> None:
        """Adapt the model and start the optimizer anew."""
        super().check_model_and_optimizer(reset_optimizer_state=reset_optimizer_state, **kwargs)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the views ``c``, ``p`` and ``m``."""
        return tuple(self.model.views(images))

    def row_logits(self, features: tuple[Tensor, ...]) -> Tensor:
        """Return a logit a head row, ``(B, R)``, of the fused view; in training of each view."""
        if not self.is_training:
            return super().row_logits(features)
        logits = self.network.proxies(torch.cat(features)).float()
        self._view_logits = logits.chunk(len(features))
        return self._view_logits[-1]

    def criterion(self) -> Tensor:
        """Return the sum of the three views' losses; in evaluation that of the prototypes."""
        if not self.is_training:
            return super().criterion()
        with self.autocast():
            return torch.stack([self.class_loss(view) for view in self._view_logits]).sum()

    def _forget_minibatch(self) -> None:
        super()._forget_minibatch()
        self._view_logits = ()


def _adapted(name: str) -> bool:
    return name.startswith(("channel.", "patch.", "fusion."))


def _released(name: str) -> bool:
    return _adapted(name) and name.endswith(".weight")


@dataclass(frozen=True, kw_only=True)
class _Options(TrainingOptions):
    loss: LossOver = "local"


_OF_THE_VIEWS = (
    *("prompt_length", "n_copies", "use_pretrained", "section_weights", "contrast_weight"),
    *("temperature", "contrast_prototypes", "orthogonality_weight", "retention_weight"),
)
_OF_THE_KERNEL = ("features", "frozen_section", "drift_ridge")


@takes(_Options)
def build_ntk_cl(
    *,
    backbone: Backbone,
    head: HeadBuilder | None = None,
    recipe: Literal["corrected", "released", "kernel"] = "corrected",
    r: Width = 16,
    prompt_length: Width = 10,
    n_copies: Annotated[int, Field(ge=1, le=3)] = 1,
    use_pretrained: bool = False,
    section_weights: tuple[Weight, Weight, Weight] = (1.0, 0.3, 0.1),
    dropout: Dropout = 0.1,
    contrast_weight: Weight = 0.03,
    temperature: Temperature = 0.1,
    contrast_prototypes: Draws | None = None,
    orthogonality_weight: Weight = 1e-4,
    retention_weight: Weight = 1e-3,
    features: FeatureKind | None = None,
    frozen_section: FeatureKind | None = None,
    drift_ridge: Penalty | None = None,
    optimizer: OptimizerName = "sgd",
    anneal: bool | None = None,
    options: _Options,
) -> NTKCL | NTKCLKernel:
    """Build :class:`NTKCL` or, of recipe ``"kernel"``, :class:`.NTKCLKernel` on a backbone.

    Args:
        backbone: The frozen network.
        head: Predicts in the place of the prototypes, of recipe ``"kernel"`` in that of the ridge
            regression; a head that is fitted.
        recipe: ``"corrected"``, ``"released"`` or ``"kernel"``.
        r: Width of the adapters' bottleneck.
        prompt_length: Patch prompts a block; as all down to ``retention_weight`` not of
            ``"kernel"``.
        n_copies: Running means of older modules.
        use_pretrained: Whether each view has the features of the unadapted network.
        section_weights: Of the unadapted section, each older copy and the current modules.
        dropout: Of adapters and fusion.
        contrast_weight: Of the contrastive term.
        temperature: Of the contrastive term.
        contrast_prototypes: Prototypes that it draws.
        orthogonality_weight: Of the orthogonality term.
        retention_weight: Of the retention term.
        features: What the head reads of the adapted network: ``pooled``, ``blocks`` or block
            numbers; ``None`` is the upper half. As the two below of ``"kernel"`` only.
        frozen_section: The same of the frozen network; ``None`` is ``"blocks"``.
        drift_ridge: Of the map that moves earlier sums, relative; ``None`` is 1.
        optimizer: ``"kernel"`` was measured with ``adamw`` at ``lr=0.001``.
        anneal: Whether the learning rate falls as a cosine; ``None``: unless a plugin schedules it.
        options: The others.

    Raises:
        ConfigError: If an option is not one of the recipe.
    """
    given = locals()
    others = _OF_THE_VIEWS if recipe == "kernel" else _OF_THE_KERNEL
    defaults = inspect.signature(build_ntk_cl).parameters
    if strangers := [name for name in others if given[name] != defaults[name].default]:
        raise ConfigError(
            f"recipe {recipe!r} has no {' and no '.join(strangers)}; leave out what it has not"
        )
    if recipe == "kernel":
        network = build_kernel_model(
            backbone,
            r=r,
            dropout=dropout,
            head=head,
            features=features,
            frozen_section=frozen_section or "blocks",
        )
        return NTKCLKernel(
            model=network,
            optimizer=make_optimizer(optimizer, network, **options.rates()),
            drift_ridge=1.0 if drift_ridge is None else drift_ridge,
            anneal=anneal,
            **options.template(),
        )
    model = NTKCLModel(
        backbone,
        recipe=recipe,
        r=r,
        prompt_length=prompt_length,
        n_copies=n_copies,
        use_pretrained=use_pretrained,
        section_weights=section_weights,
        dropout=dropout,
        head=head,
    )
    return NTKCL(
        model=model,
        optimizer=make_optimizer(optimizer, model, **options.rates()),
        contrast_weight=contrast_weight,
        temperature=temperature,
        contrast_prototypes=contrast_prototypes,
        orthogonality_weight=orthogonality_weight,
        retention_weight=retention_weight,
        anneal=anneal,
        **options.template(),
    )
