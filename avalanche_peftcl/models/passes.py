"""Several adapted passes through one frozen backbone; what they have in common is computed once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.backbones.embedded import Embedded
from avalanche_peftcl.models.backbones.kept_features import kept_feature
from avalanche_peftcl.models.block_features import FeatureKind, block_features, chosen_blocks
from avalanche_peftcl.models.branch import Branch, FrozenBranch, Reads


def forward_branches(
    backbone: Backbone,
    branches: Sequence[Branch],
    images: Tensor,
    *,
    features: Sequence[FeatureKind] | None = None,
) -> list[Tensor]:
    """Run every branch and return its feature.

    The embedding, the first block's attention and MLP, and the frozen query are the same for all
    branches: they are computed once. Of the last block only what is read is computed. Where a
    strategy evaluates, what a branch that adapts nothing makes of images that come again is found,
    see :class:`.KeptFeatures`. All are exact.

    Args:
        backbone: The frozen network.
        branches: Passes to run, each in turn.
        images: ``(B, 3, H, W)``.
        features: What is read of each branch; ``None`` takes what each pools.

    Returns:
        One ``(B, D)`` a branch: as its :meth:`~.Branch.pool` returns it, or as
        :func:`.block_features` does.

    Source:
        Equal to separate passes; specs of the released NTK-CL code 24de712. Differs: nothing.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> images = torch.randn(2, 3, 32, 32)
        >>> (features,) = forward_branches(backbone, [Branch()], images)
        >>> torch.allclose(features, backbone(images), atol=1e-5)
        True
    """
    embedded = Embedded(backbone, images)
    pooled: list[FeatureKind] = ["pooled"] * len(branches)
    kinds = pooled if features is None else features
    return [
        _feature(backbone, branch, embedded, kind)
        for branch, kind in zip(branches, kinds, strict=True)
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


def _feature(
    backbone: Backbone, branch: Branch, embedded: Embedded, features: FeatureKind
) -> Tensor:
    network = branch.network(backbone)

    def compute() -> Tensor:
        if features == "pooled":
            return branch.pool(network, _read(backbone, branch, embedded))
        tokens = _read(backbone, branch, embedded, reads="blocks")
        return block_features(network, [tokens[i] for i in chosen_blocks(backbone, features)])

    if type(branch) not in (Branch, FrozenBranch) or torch.is_grad_enabled():
        return compute()
    return kept_feature(backbone, embedded.tokens, compute, f"{branch.reads} {features}")


def _read(
    backbone: Backbone,
    branch: Branch,
    embedded: Embedded,
    *,
    reads: Reads | None = None,
    whole: bool = False,
) -> Any:
    """Run one pass and return what is to be pooled; with ``whole`` no token is left out."""
    network, reads = branch.network(backbone), reads or branch.reads
    last = backbone.depth - 1
    first_only = backbone.pools_cls and reads == "pooled" and not whole
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
        if reads == "blocks":
            after.append(branch.leave(network, tokens, context=context))
        queries = 1 if first_only and index == last else None
        hidden = branch.attend(network, index, tokens, queries=queries, context=context)
        tokens = branch.step(network, index, hidden, context=context)
    tokens = branch.leave(network, tokens, context=context)
    return [*after, tokens] if reads == "blocks" else tokens
