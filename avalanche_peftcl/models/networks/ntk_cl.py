r"""Network of NTK-CL: adapted views of an image, their fusion, proxies and prototypes.

Views are ``c`` (adapters) and ``p`` (patch prompts), each the CLS features of older copies and of
the current modules side by side; the fusion is ``m = 0.5 V(c) + c + 0.1 p``.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import Backbone, check_backbone, out_features
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.cosine import CosineHead
from avalanche_peftcl.models.heads.head import Head, HeadBuilder
from avalanche_peftcl.models.heads.prototypes import PrototypeHead
from avalanche_peftcl.models.heads.rows import ClassRows
from avalanche_peftcl.models.modules.adapter import AdapterBranch
from avalanche_peftcl.models.modules.patch_prompt import PatchPromptBranch
from avalanche_peftcl.models.networks.dynamic import DynamicModel
from avalanche_peftcl.models.passes import forward_branches

Recipe = Literal["corrected", "released"]


class Views(NamedTuple):
    """The three features of a batch, each ``(B, D)``."""

    channel: Tensor
    patch: Tensor
    fused: Tensor


class Fusion(nn.Module):
    r"""Mix two views: :math:`m = 0.5\,\mathrm{drop}(W_v c + b_v) + c + 0.1\,p`.

    Args:
        dim: ``D``, width of a view.
        dropout: Probability with which a whole head of the values is dropped, in training.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712 (``AttentionFusion``). Differs: the
        release computes an attention with one key, whose weight is always 1; this is its closed
        form. :class:`ReleasedFusion` keeps the query and key layers that never matter.
    """

    def __init__(self, dim: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.value = nn.Linear(dim, dim)
        self.num_heads = math.gcd(8, dim)
        self.dropout = dropout

    def forward(self, channel: Tensor, patch: Tensor) -> Tensor:
        """Return the fused view: two ``(B, D)`` to ``(B, D)``."""
        value = self.value(channel)
        if self.training and self.dropout:
            keep = torch.ones(len(value), self.num_heads, 1, dtype=value.dtype, device=value.device)
            keep = nn.functional.dropout(keep, self.dropout)
            value = (value.unflatten(1, (self.num_heads, -1)) * keep).flatten(1)
        fused: Tensor = 0.5 * value + channel + 0.1 * patch
        return fused


class ReleasedFusion(Fusion):
    """The fusion with the query and key layers of the release, whose gradient is exactly zero."""

    def __init__(self, dim: int, *, dropout: float = 0.1) -> None:
        super().__init__(dim, dropout=dropout)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)


@exportable
class NTKCLModel(DynamicModel):
    r"""NTK-CL's network on a frozen backbone.

    Args:
        backbone: The frozen network, of width ``d``.
        recipe: ``"corrected"`` or ``"released"``, see ``Differs``.
        r: Width of the adapters' bottleneck.
        prompt_length: ``P``, prompt tokens a block.
        n_copies: ``F``, older copies (running means) of the adapted modules, 1 to 3.
        use_pretrained: Put the features of the unadapted backbone in front of each view.
        section_weights: Weight in the prediction of the unadapted section, of each older copy
            and of the current modules.
        dropout: Dropout of adapters and fusion.
        head: What predicts in evaluation, or what builds it for the width of the fused view; a
            head that is fitted, for the proxies are what trains. ``None`` takes the prototypes.

    Raises:
        ConfigError: If ``n_copies`` is not 1, 2 or 3, the recipe is unknown, the head is trained
            by gradients, or the backbone is none.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712.
        Differs (``released``): class prototypes accumulate where classes repeat; any width,
        depth, patch and image size; what every branch shares is computed once.
        Differs (``corrected``, beside those): the generators of the patch prompts start where
        they can train; the fusion has no dead query and key layers; the older copies stay in
        eval mode.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> model = NTKCLModel(create_backbone("vit_tiny_patch16_224", img_size=32))
        >>> model.start_experience([(0, 0), (0, 1)])
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        recipe: Recipe = "corrected",
        r: int = 16,
        prompt_length: int = 10,
        n_copies: int = 1,
        use_pretrained: bool = False,
        section_weights: tuple[float, float, float] = (1.0, 0.3, 0.1),
        dropout: float = 0.1,
        head: HeadBuilder | Head | None = None,
    ) -> None:
        super().__init__()
        if recipe not in ("corrected", "released"):
            raise ConfigError(f"recipe must be 'corrected' or 'released', not {recipe!r}")
        if n_copies not in (1, 2, 3):
            raise ConfigError(f"n_copies must be 1, 2 or 3, not {n_copies}")
        check_backbone(backbone)
        self.recipe: Recipe = recipe
        self.backbone = backbone
        width, depth = backbone.embed_dim, backbone.depth
        self.channel = AdapterBranch(width, depth, r=r, dropout=dropout)
        self.patch = PatchPromptBranch(
            backbone.num_tokens,
            width,
            depth,
            length=prompt_length,
            num_prefix_tokens=backbone.num_prefix_tokens,
            init="zeros" if recipe == "released" else "kaiming",
        )
        self.channel_copies = _copies(self.channel, n_copies)
        self.patch_copies = _copies(self.patch, n_copies)
        self.pretrained = Branch() if use_pretrained else None
        unadapted, older, current = section_weights
        weights = [unadapted] * use_pretrained + [older] * n_copies + [current]
        self.embed_dim = out_features(backbone) * len(weights)
        fusion = ReleasedFusion if recipe == "released" else Fusion
        self.fusion = fusion(self.embed_dim, dropout=dropout)
        self.classes = ClassRows()
        self.proxies = CosineHead(self.embed_dim)
        self.prototypes = PrototypeHead(self.embed_dim, section_weights=weights)
        self.head = head if head is None or isinstance(head, Head) else head(self.embed_dim)
        if self.head is not None and not self.head.fitted:
            raise ConfigError(
                f"NTK-CL trains its proxies and predicts with a head that is fitted, a "
                f"{type(self.head).__name__} is trained; take one such as 'prototypes', or leave "
                "head out"
            )
        self.train()

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The unadapted pass, if it is used, then adapters, then patch prompts.

        Of each the oldest copy comes first and the current modules last: the order of the sections.
        """
        passes = [] if self.pretrained is None else [self.pretrained]
        for copies, current in (
            (self.channel_copies, self.channel),
            (self.patch_copies, self.patch),
        ):
            passes += [*reversed(list(copies)), current]  # type: ignore[list-item]  # a ModuleList of branches
        return tuple(passes)

    @property
    def heads(self) -> tuple[Head, ...]:
        """Proxies, prototypes, and the head that predicts where it is another."""
        own = self.proxies, self.prototypes
        return own if self.head is None else (*own, self.head)

    def train(self, mode: bool = True) -> "NTKCLModel":
        """Set the mode; the older copies of the corrected recipe stay in eval mode."""
        super().train(mode)
        if self.recipe == "corrected":
            self.channel_copies.eval()
            self.patch_copies.eval()
        return self

    def start_experience(self, pairs: Iterable[tuple[int, int]], *, fresh: bool = True) -> None:
        """Make room for the classes of an experience.

        Args:
            pairs: ``(task label, class)`` of each class in it.
            fresh: Draw the proxies of all its classes anew, as the release does; else only those
                of classes not met before.
        """
        known = len(self.classes)
        rows = self.classes.add(pairs)
        self.proxies.grow(len(self.classes), draw=False)
        self.prototypes.grow(len(self.classes))
        if self.head is not None:
            self.head.grow(len(self.classes))
        self.proxies.reset(rows if fresh else [r for r in rows if r >= known])

    def views(self, images: Tensor) -> Views:
        """Return the three views of ``images``: ``(B, 3, H, W)`` to three ``(B, D)``."""
        features = forward_branches(self.backbone, self.branches, images)
        n = len(self.channel_copies) + 1
        front, channel, patch = features[: -2 * n], features[-2 * n : -n], features[-n:]
        c = torch.cat([*front, *channel], dim=1)  # (B, D)
        p = torch.cat([*front, *patch], dim=1)  # (B, D)
        return Views(c, p, self.fusion(c, p))

    def embed(self, images: Tensor) -> Tensor:
        """Return the fused view, whose class means are the prototypes, ``(B, D)``."""
        return self.views(images).fused

    def classify(self, fused: Tensor) -> Tensor:
        """Return a logit a row: from the proxies in training, in evaluation from the head.

        Where that are the prototypes and no class has one, because nobody hands them the images of
        an experience (Avalanche's own strategies), the proxies predict in evaluation too.
        """
        if self.head is not None and not self.training:
            by_head: Tensor = self.head(fused)
            return by_head
        by_proxy: Tensor = self.proxies(fused)
        if self.training:
            return by_proxy
        _, known = self.prototypes.means()
        return torch.where(known.any(), self.prototypes(fused), by_proxy)


def _copies(branch: Branch, n_copies: int) -> nn.ModuleList:
    copies: Sequence[Branch] = [
        copy.deepcopy(branch).requires_grad_(False) for _ in range(n_copies)
    ]
    return nn.ModuleList(copies)
