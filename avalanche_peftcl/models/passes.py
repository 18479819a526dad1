"""Several adapted passes through one frozen backbone; what they have in common is computed once."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.backbones.embedded import Embedded
from avalanche_peftcl.models.branch import Branch


def forward_branches(
    backbone: Backbone, branches: Sequence[Branch], images: Tensor
) -> list[Tensor]:
    """Run every branch and return its feature.

    The embedding, the first block's attention and MLP, and the frozen query are the same for all
    branches: they are computed once. Of the last block only what is read is computed. Both are
    exact.

    Args:
        backbone: The frozen network.
        branches: Passes to run, each in turn.
        images: ``(B, 3, H, W)``.

    Returns:
        One ``(B, D)`` a branch, as its :meth:`~.Branch.pool` returns it.

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
    embedded = Embedded(backbone, images)
    return [
        branch.pool(branch.network(backbone), _read(backbone, branch, embedded))
        for branch in branches
    ]


def forward_tokens(backbone: Backbone, branch: Branch, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run a branch and return all of its tokens too.

    Args:
        backbone: The frozen network.
        branch: The pass.
        images: ``(B, 3, H, W)``.

    Returns:
        The feature, ``(B, D)``, and the tokens after the last block, before the final norm,
        ``(B, N, D)``.
    """
    read = _read(backbone, branch, Embedded(backbone, images), whole=True)
    tokens: Tensor = read[-1] if branch.reads == "blocks" else read
    return branch.pool(branch.network(backbone), read), tokens


def _read(backbone: Backbone, branch: Branch, embedded: Embedded, *, whole: bool = False) -> Any:
    """Run one pass and return what is to be pooled; with ``whole`` no token is left out."""
    network = branch.network(backbone)
    last = backbone.depth - 1
    first_only = backbone.pools_cls and branch.reads == "pooled" and not whole
    branch.terms.clear()
    context = branch.begin(network, embedded)
    if branch.shares_start:
        start = embedded.start()
    else:
        hidden = branch.attend(network, 0, embedded.tokens, context=context)
        start = hidden, hidden + network.feed(0, hidden)
    tokens = branch.enter(network, *start, context=context)
    after = []
    for index in range(1, backbone.depth):
        if branch.reads == "blocks":
            after.append(branch.leave(network, tokens, context=context))
        queries = 1 if first_only and index == last else None
        hidden = branch.attend(network, index, tokens, queries=queries, context=context)
        tokens = branch.step(network, index, hidden, context=context)
    tokens = branch.leave(network, tokens, context=context)
    return [*after, tokens] if branch.reads == "blocks" else tokens
