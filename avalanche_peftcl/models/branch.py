"""Adapted passes through one frozen backbone, and one forward function over a list of them."""

from collections.abc import Sequence

from torch import Tensor, nn

from avalanche_peftcl.models.backbone import Backbone


class Branch(nn.Module):
    """One pass through the frozen blocks; this base class leaves them as they are.

    A subclass adapts a block after its attention. It says how the pass leaves the first block
    (:meth:`enter`, which is handed what all branches share) and every later one (:meth:`step`).
    """

    def enter(self, backbone: Backbone, hidden: Tensor, output: Tensor) -> Tensor:
        """Return the tokens after the first block.

        Args:
            backbone: The frozen network.
            hidden: Tokens after the first block's attention and residual, ``(B, N, D)``.
            output: The frozen block's output of them, ``(B, N, D)``.

        Returns:
            ``(B, N, D)``, or more tokens than entered; the prefix tokens stay in front.
        """
        return output

    def step(self, backbone: Backbone, index: int, hidden: Tensor) -> Tensor:
        """Return the tokens after block ``index``.

        Args:
            backbone: The frozen network.
            index: Which block, from 1.
            hidden: Tokens after the block's attention and residual, ``(B, N, D)``; of the last
                block only the first token, where the backbone pools no other.

        Returns:
            As many tokens as in ``hidden``.
        """
        return hidden + backbone.feed(index, hidden)

    def leave(self, backbone: Backbone, tokens: Tensor) -> Tensor:
        """Return the tokens that the backbone pools: those that it would have alone."""
        return tokens


def forward_branches(
    backbone: Backbone, branches: Sequence[Branch], images: Tensor
) -> list[Tensor]:
    """Run every branch and return its pooled features.

    The embedding and the first block's attention and MLP see nothing of a branch: they are
    computed once for all. Of the last block only what the pooling reads is computed. Both are
    exact.

    Args:
        backbone: The frozen network.
        branches: Passes to run, each in turn.
        images: ``(B, 3, H, W)``.

    Returns:
        One ``(B, D)`` a branch, after the final norm.

    Source:
        Equal to separate passes; specs of the released NTK-CL code 24de712. Differs: nothing.

    Example:
        >>> import torch
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> images = torch.randn(2, 3, 32, 32)
        >>> (features,) = forward_branches(backbone, [Branch()], images)
        >>> torch.allclose(features, backbone(images), atol=1e-5)
        True
    """
    last = backbone.depth - 1
    hidden = backbone.attend(0, backbone.embed(images))  # (B, N, D)
    output = hidden + backbone.feed(0, hidden)
    features = []
    for branch in branches:
        tokens = branch.enter(backbone, hidden, output)
        for index in range(1, backbone.depth):
            queries = 1 if index == last and backbone.pools_cls else None
            tokens = branch.step(backbone, index, backbone.attend(index, tokens, queries=queries))
        features.append(backbone.pool(branch.leave(backbone, tokens)))
    return features
