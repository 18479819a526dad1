"""A pass that is read after every block: CLS token and mean patch token, side by side."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.models import Backbone, Branch, exportable


@exportable
class BlockFeaturesBranch(Branch):
    r"""The frozen network, read after each of its ``L`` blocks instead of at its end.

    Of every block the feature has the first token and the mean of the patch tokens, each
    normalised to mean 0 and variance 1 over its ``D`` numbers:

    .. math:: \bigl[\mathrm{LN}(t_{1,\mathrm{cls}}), \mathrm{LN}(\bar t_1), \ldots,
        \mathrm{LN}(t_{L,\mathrm{cls}}), \mathrm{LN}(\bar t_L)\bigr] \in \mathbb{R}^{2 L D}

    Of a network without such a token the first one is a patch.

    Source:
        This package. What is classified of SimpleCIL and RanPAC is the last block alone.

    Example:
        >>> from avalanche_peftcl.models import create_backbone, forward_branches
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> forward_branches(backbone, [BlockFeaturesBranch()], torch.zeros(3, 3, 32, 32))[0].shape
        torch.Size([3, 768])
    """

    reads = "blocks"

    def pool(self, backbone: Backbone, tokens: Sequence[Tensor]) -> Tensor:
        """Return the feature: ``L`` times ``(B, N, D)`` to ``(B, 2 L D)``."""
        prefix = backbone.num_prefix_tokens
        parts = [part for t in tokens for part in (t[:, 0], t[:, prefix:].mean(dim=1))]
        return torch.cat([F.layer_norm(part, part.shape[1:]) for part in parts], dim=1)

    def out_features(self, backbone: Backbone) -> int:
        """Return ``2 L D``."""
        return 2 * backbone.depth * backbone.embed_dim


@exportable
def build_block_features(*, backbone: Backbone) -> BlockFeaturesBranch:
    """Build a :class:`BlockFeaturesBranch`; it trains nothing."""
    return BlockFeaturesBranch()
