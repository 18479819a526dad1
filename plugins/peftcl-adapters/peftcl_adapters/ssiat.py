"""SSIAT: one module tuned on, old class means moved after it, the classifier aligned."""

from dataclasses import dataclass

import torch

from avalanche_peftcl import takes
from avalanche_peftcl.models import Backbone, Branch, CosineHead, PEFTModel, build_adapters
from avalanche_peftcl.training import PEFTTemplate, annealing, make_optimizer
from avalanche_peftcl.training.plugins import (
    DriftCompensationPlugin,
    FeatureReplayPlugin,
    MarginLossPlugin,
)
from peftcl_adapters.later_epochs import LaterEpochsPlugin
from peftcl_adapters.options import (
    AlignmentOptions,
    EpochsOrNone,
    LearningRate,
    LocalOptions,
    Margin,
    Positive,
)


@dataclass(frozen=True, kw_only=True)
class SSIATOptions(LocalOptions, AlignmentOptions):
    """Options of SSIAT; the defaults are the published settings, where these are known."""

    lr: LearningRate = 0.01


@takes(SSIATOptions)
def build_ssiat(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    later_epochs: EpochsOrNone | None = None,
    scale: Positive = 20.0,
    margin: Margin = 0.0,
    sigma: Positive = 4.0,
    anneal: bool | None = None,
    options: SSIATOptions,
) -> PEFTTemplate:
    r"""Build SSIAT for any PEFT module.

    One module trains on from experience to experience, nothing holds it. A cosine head with a
    fixed factor learns by cross-entropy among the classes of the experience. After each experience
    the mean of every old class moves by what the images at hand near it have moved,

    .. math:: m_c \leftarrow m_c + \frac{\sum_i w_i (b_i - a_i)}{\sum_i w_i}, \qquad
              w_i = \exp\bigl(-\|a_i - m_c\|^2 / (2 \sigma^2)\bigr)

    with features :math:`a` before and :math:`b` after training, and from the second one on the head
    is aligned on features drawn from a Gaussian a class.

    It keeps a mean and a covariance of each class, :math:`D + D^2` numbers in float64, and nothing
    of an experience. A step costs one pass an image, as does a prediction; an experience costs two
    more passes over its images, one before training from the second on.

    Args:
        backbone: The frozen network.
        module: What trains; ``None``: adapters of width 64 beside each MLP, scale 0.1, dropout 0.1.
        later_epochs: Epochs from the second experience on; ``None`` for half of those of the first,
            as published; 0 for as many.
        scale: Factor of the cosines.
        margin: By which the cosine to the own class is to be the largest, in training.
        sigma: Width of the kernel, in the units of the features.
        anneal: Whether the learning rate falls to 0 as a cosine; ``None`` is yes unless a plugin
            schedules it.
        options: What a strategy that trains takes, and those of the alignment.

    Source:
        Tan et al., SSIAT, CVPR 2024; released code HAIV-Lab/SSIAT 3f1f00d: a rate of 0.01, 20
        epochs, then 10, scale 20, margin 0, sigma 4, 5 epochs of alignment. Weight decay and size
        of a minibatch are not known to us and are those of APER here.
        Differs: any module; the head goes on as it was before its alignment; in the alignment
        logits are not normalised and means not shortened as in SLCA, which the factor and the
        drift stand for; weights of the kernel are normalised before they underflow.
    """
    module = module or build_adapters(backbone=backbone, r=64)
    model = PEFTModel(backbone, module, CosineHead)
    with torch.no_grad():
        model.head.get_parameter("sigma").fill_(scale).requires_grad_(False)
    optimizer = make_optimizer("sgd", model, **options.rates())
    epochs = options.train_epochs
    own = annealing(optimizer, options.plugins, anneal=anneal, train_epochs=epochs)
    fewer = (epochs + 1) // 2 if later_epochs is None else later_epochs
    later = [LaterEpochsPlugin(fewer, own)] if fewer else []
    margins = [MarginLossPlugin(margin, scale=None)] if margin else []
    drift = DriftCompensationPlugin("gaussian", sigma=sigma)
    replay = FeatureReplayPlugin(
        covariance=options.covariance, shrinkage=0.0, jitter=1e-4, **options.alignment()
    )
    return PEFTTemplate(
        model=model,
        optimizer=optimizer,
        own_plugins=[*own, *later, *margins, drift, replay],
        **options.template(),
    )
