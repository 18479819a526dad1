"""A pass read after its blocks instead of at its end: CLS and mean patch tokens side by side."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.branch import Branch

_BlockNumber = Annotated[int, Field(ge=0, lt=4096)]
BlockNumbers = list[_BlockNumber]
FeatureKind = Literal["pooled", "blocks"] | BlockNumbers
"""What is read of a pass: what it pools; every block; or the blocks of these numbers, from 0."""


def block_features(backbone: Backbone, tokens: Sequence[Tensor]) -> Tensor:
    r"""Return what blocks give: first token and mean patch token of each, normalised.

    .. math:: \bigl[\mathrm{LN}(t_{1,\mathrm{cls}}), \mathrm{LN}(\bar t_1), \ldots,
        \mathrm{LN}(t_{L,\mathrm{cls}}), \mathrm{LN}(\bar t_L)\bigr] \in \mathbb{R}^{2 L D}

    with ``LN`` to mean 0 and variance 1 over the ``D`` numbers of a token. Of a network without a
    CLS token the first one is a patch.

    Args:
        backbone: The network, which says how many tokens stand before the patches.
        tokens: Of ``L`` blocks, each ``(B, N, D)``.

    Returns:
        ``(B, 2 L D)``.

    Source:
        This package; measured in ``examples/real_images/README.md``.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> block_features(backbone, [torch.randn(3, 5, 192)] * 2).shape
        torch.Size([3, 768])
    """
    prefix = backbone.num_prefix_tokens
    parts = [part for t in tokens for part in (t[:, 0], t[:, prefix:].mean(dim=1))]
    return torch.cat([F.layer_norm(part.float(), part.shape[1:]) for part in parts], dim=1)


def chosen_blocks(backbone: Backbone, features: FeatureKind) -> list[int]:
    """Return the numbers of the blocks that ``features`` reads; none where it is ``"pooled"``.

    Raises:
        ConfigError: If the network has no such block, or one is named twice.
    """
    if features == "pooled":
        return []
    every = list(range(backbone.depth))
    if features == "blocks":
        return every
    if isinstance(features, str) or not set(features) <= set(every) or not features:
        raise ConfigError(
            f"features must be 'pooled', 'blocks' or block numbers from 0 to {every[-1]}, not "
            f"{features!r}"
        )
    if len(set(features)) < len(features):
        raise ConfigError(f"features={features!r} name a block twice")
    return sorted(features)


def feature_width(backbone: Backbone, branch: Branch, features: FeatureKind) -> int:
    """Return how wide what is read of a pass is."""
    if features == "pooled":
        return branch.out_features(backbone)
    return 2 * len(chosen_blocks(backbone, features)) * backbone.embed_dim
