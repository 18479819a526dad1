r"""NTK-CL with the theory at its word: a kernel regression over all experiences classifies.

A step minimises cross-entropy of proxies over the classes at hand; after an experience the sums of
earlier ones move to where features are now, and the ridge regression over all is solved anew.
"""

from typing import Unpack

import torch

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Backbone,
    FeatureKind,
    Head,
    HeadBuilder,
    LinearHead,
    PEFTModel,
    RidgeHead,
    build_adapters,
)
from avalanche_peftcl.training.arguments import TemplateArguments
from avalanche_peftcl.training.optimizers import annealing
from avalanche_peftcl.training.plugins import DriftCompensationPlugin
from avalanche_peftcl.training.template import PEFTTemplate

PENALTY_FACTOR = 3.0  # sums that were moved look cleaner than what a test image gives


class NTKCLKernel(PEFTTemplate):
    r"""Recipe ``"kernel"`` of NTK-CL: :func:`.build_ntk_cl` builds it with ``recipe="kernel"``.

    NTK-CL's theory predicts by a kernel regression summed over experiences; the papers' classifier,
    class means, is none, and goes stale as the adapters move. Here, with the features
    :math:`h(x) = [h_0(x), h_t(x)]` of the frozen blocks and of the adapted ones, each on unit norm,

    .. math:: W_t = \Bigl(\sum_{s \le t} G_s + \lambda I\Bigr)^{-1} \sum_{s \le t} C_s,
        \qquad G_s = \sum h h^\top, \quad C_s = \sum h y^\top

    over all images of the stream, and after each experience the earlier sums move by the linear map
    that was fitted to its own images before and after training: :math:`G \to T^\top G\,T`,
    :math:`C \to T^\top C`. No image and no feature of one is kept.

    Works on class-, task-, domain-incremental and online streams of any Avalanche benchmark. A
    task label of a test image is used where the benchmark gives several of them, and only then.

    Args:
        model: Its head is fitted and can move with features, and its proxies train; see
            :func:`build_kernel_model`.
        optimizer: Over the model's trainable parameters. Its state goes on from experience to
            experience: one of Adam's that is new begins with long steps.
        drift_ridge: :math:`\mu` of the map, see :func:`~avalanche_peftcl.functional.linear_drift`;
            ``None`` leaves the sums where they were.
        anneal: As of :class:`.NTKCL`.
        template: Arguments of :class:`.PEFTTemplate`, ``loss="local"`` by default.

    Raises:
        ConfigError: If the model has no proxies, or a head that cannot move; the latter when
            training begins.

    Source:
        This package, after Liu et al., arXiv 2407.17120: its kernel regression and its adapters.
        Drift maps: see :class:`.DriftCompensationPlugin`.

    Differs:
        from recipe ``"corrected"``; what was measured of it stands in
        ``examples/real_images/README.md``:

        - ridge regression in the place of class means, on the frozen blocks and the upper half of
          the adapted ones in the place of the fused views;
        - earlier sums move with the features;
        - one view, the adapters'; no patch prompts, no fusion, no running mean of older adapters;
        - cross-entropy of linear proxies alone; contrast, orthogonality and retention were not
          tried with this classifier.

    Example:
        >>> from avalanche_peftcl.testing import toy_backbone
        >>> model = build_kernel_model(toy_backbone())
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
        >>> NTKCLKernel(model=model, optimizer=optimizer, evaluator=None).recipe
        'kernel'
    """

    recipe = "kernel"
    defaults = TemplateArguments(
        loss="local", train_mb_size=16, train_epochs=20, eval_mb_size=64, mixed_precision="auto"
    )

    def __init__(
        self,
        *,
        model: PEFTModel,
        optimizer: torch.optim.Optimizer,
        drift_ridge: float | None = 1.0,
        anneal: bool | None = None,
        **template: Unpack[TemplateArguments],
    ) -> None:
        if model.proxies is None:
            raise ConfigError(
                f"recipe 'kernel' predicts with a head that is fitted and trains its proxies; a "
                f"{type(model.head).__name__} here has none: take build_kernel_model(), or give "
                "PEFTModel a fitted head and proxies"
            )
        arguments = self.defaults | template
        own = annealing(
            optimizer,
            arguments.get("plugins") or (),
            anneal=anneal,
            train_epochs=arguments["train_epochs"],
        )
        if drift_ridge is not None:
            own = [*own, DriftCompensationPlugin("linear", ridge=drift_ridge)]
        super().__init__(model=model, optimizer=optimizer, own_plugins=own, **arguments)


def build_kernel_model(
    backbone: Backbone,
    *,
    r: int = 16,
    dropout: float = 0.1,
    head: Head | HeadBuilder | None = None,
    features: FeatureKind | None = None,
    frozen_section: FeatureKind | None = "blocks",
) -> PEFTModel:
    """Return the network of :class:`NTKCLKernel`.

    Args:
        backbone: The frozen network.
        r: Width of the adapters' bottleneck.
        dropout: Of the adapters.
        head: What predicts; ``None`` is ridge regression whose penalty is three times what
            scale-free cross-validation chooses.
        features: What it reads of the adapted network; ``None`` is the upper half of the blocks.
        frozen_section: What it reads of the frozen network; ``None`` for nothing.
    """
    upper = list(range(backbone.depth // 2, backbone.depth))
    return PEFTModel(
        backbone,
        build_adapters(backbone=backbone, r=r, dropout=dropout),
        head or _ridge,
        proxies=LinearHead,
        features=upper if features is None else features,
        frozen_section=frozen_section,
    )


def _ridge(width: int) -> RidgeHead:
    return RidgeHead(width, penalty="scale_free", penalty_factor=PENALTY_FACTOR)
