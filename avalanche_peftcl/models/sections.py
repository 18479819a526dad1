"""What a head reads of several passes: sections side by side, each on unit norm."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_SECTION = 8_192  # two of them are as wide as a ridge regression may be


class Sketch(nn.Module):
    r"""A fixed random projection that costs no matrix: :math:`z_j = \sum_{i: b_i = j} s_i x_i`.

    Each number goes into one drawn bucket with a drawn sign; inner products are kept on average.

    Args:
        in_features: ``D``.
        out_features: ``K``, how many buckets.

    Source:
        Count sketch: Weinberger et al., Feature hashing, ICML 2009. Differs: nothing.

    Example:
        >>> Sketch(6, 3)(torch.ones(2, 6)).shape
        torch.Size([2, 3])
    """

    buckets: Tensor
    signs: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(in_features)
        buckets = torch.randint(out_features, (in_features,), generator=generator)
        signs = torch.randint(2, (in_features,), generator=generator) * 2.0 - 1
        self.out_features = out_features
        self.register_buffer("buckets", buckets)  # saved: the same with any version of torch
        self.register_buffer("signs", signs)

    def forward(self, features: Tensor) -> Tensor:
        """Return the projection: ``(B, D)`` to ``(B, K)``."""
        z = features.new_zeros(features.shape[0], self.out_features)
        return z.index_add(1, self.buckets, features * self.signs.to(features))


class Sections(nn.Module):
    """Puts the features of several passes side by side.

    Where there are several, or blocks are read, each is scaled to unit norm, so that none outweighs
    another; the pooled feature of one pass stays as it is. A section of more than ``limit``
    numbers goes through a :class:`Sketch` first.

    Args:
        widths: Width of each section.
        moving: Whether the pass of each is adapted.
        unit_norm: Whether to scale; ``None`` where there are several.
        limit: Widest section.

    Attributes:
        width: Width of what comes of it.
        slices: Where each section stands.
        moving: Where those of adapted passes stand: what they were of earlier images drifts.

    Example:
        >>> sections = Sections([2, 1], moving=[False, True])
        >>> sections([torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])])
        tensor([[0.6000, 0.8000, 1.0000]])
        >>> sections.moving
        [slice(2, 3, None)]
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        moving: Sequence[bool],
        unit_norm: bool | None = None,
        limit: int = MAX_SECTION,
    ) -> None:
        super().__init__()
        self.unit_norm = len(widths) > 1 if unit_norm is None else unit_norm
        self.sketches = nn.ModuleList(
            Sketch(width, limit) if width > limit else nn.Identity() for width in widths
        )
        self.slices: list[slice] = []
        self.width = 0
        for width in widths:
            self.slices.append(slice(self.width, self.width + min(width, limit)))
            self.width = self.slices[-1].stop
        self.moving = [where for where, moves in zip(self.slices, moving, strict=True) if moves]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the sections side by side: each ``(B, D_i)`` to ``(B, D)``."""
        parts = [sketch(z) for sketch, z in zip(self.sketches, features, strict=True)]
        if not self.unit_norm:
            (part,) = parts
            whole: Tensor = part
            return whole
        return torch.cat([F.normalize(part.float(), dim=1) for part in parts], dim=1)
