"""Adapted passes through one frozen backbone, and one forward function over a list of them."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.exportable import exportable


class Branch(nn.Module):
    """One pass through the frozen blocks; this base class leaves them as they are.

    A subclass adapts a block after its attention: it says how the pass leaves the first block
    (:meth:`enter`, which is handed what all branches share) and every later one (:meth:`step`).
    Or it adapts the attention itself (:meth:`attend`), or the network (:meth:`network`).

    Attributes:
        shares_start: Whether the first block's attention sees nothing of this branch.
    """

    shares_start: bool = True
    reads: Literal["pooled", "tokens"] = "pooled"

    def network(self, backbone: Backbone) -> Backbone:
        """Return the network that this pass runs through, ``backbone`` or a tuned view of it."""
        return backbone

    def attend(
        self, backbone: Backbone, index: int, tokens: Tensor, *, queries: int | None = None
    ) -> Tensor:
        """Return tokens plus their attention in block ``index``, see :meth:`Backbone.attend`.

        Of the first block it is asked only where :attr:`shares_start` is false.
        """
        return backbone.attend(index, tokens, queries=queries)

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
    tokens = _forward(backbone, branches, images, whole=False)
    return [
        branch.network(backbone).pool(out) for branch, out in zip(branches, tokens, strict=True)
    ]


def forward_tokens(backbone: Backbone, branch: Branch, images: Tensor) -> Tensor:
    """Return all tokens of a pass after the last block, before the final norm.

    Args:
        backbone: The frozen network.
        branch: The pass.
        images: ``(B, 3, H, W)``.

    Returns:
        ``(B, N, D)``; ``backbone.pool`` makes the pass's feature of them.
    """
    return _forward(backbone, [branch], images, whole=True)[0]


def _forward(
    backbone: Backbone, branches: Sequence[Branch], images: Tensor, *, whole: bool
) -> list[Tensor]:
    """Return each pass's tokens; of the last block only what is read, unless ``whole``."""
    last = backbone.depth - 1
    embedded = backbone.embed(images)  # (B, N, D)
    shared: tuple[Tensor, Tensor] | None = None  # after the first block's attention, and its MLP
    results = []
    for branch in branches:
        network = branch.network(backbone)
        pooled = backbone.pools_cls and branch.reads == "pooled" and not whole
        if not branch.shares_start:
            hidden = branch.attend(network, 0, embedded)
            start = hidden, hidden + network.feed(0, hidden)
        else:
            if shared is None:
                hidden = backbone.attend(0, embedded)
                shared = hidden, hidden + backbone.feed(0, hidden)
            start = shared
        tokens = branch.enter(network, *start)
        for index in range(1, backbone.depth):
            queries = 1 if pooled and index == last else None
            hidden = branch.attend(network, index, tokens, queries=queries)
            tokens = branch.step(network, index, hidden)
        results.append(branch.leave(network, tokens))
    return results


@exportable
class FrozenBranch(Branch):
    """The frozen network as it is, computed to the bit as ``backbone(images)`` computes it.

    A plain :class:`Branch` leaves out what the pooling does not read, which is equal to rounding.

    Example:
        >>> import torch
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> images = torch.randn(2, 3, 32, 32)
        >>> torch.equal(forward_branches(backbone, [FrozenBranch()], images)[0], backbone(images))
        True
    """

    reads = "tokens"


@exportable
def build_frozen(*, backbone: Backbone) -> Branch:
    """Build a pass that leaves ``backbone`` as it is: the head alone trains (linear probing)."""
    return Branch()
