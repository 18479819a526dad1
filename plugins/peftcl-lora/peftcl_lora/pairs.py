"""Low-rank pairs beside queries, keys and values, a further one with each experience."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Backbone,
    Branch,
    ExperienceParts,
    Growing,
    ViTBackbone,
    choose_blocks,
    exportable,
    view_of,
)

Part = Literal["q", "k", "v"]
"""Queries, keys or values, which a block's attention makes of its input by one map."""
Scales = Literal["fixed", "shared", "each"]
_PARTS: tuple[Part, ...] = ("q", "k", "v")


class PairScales(Growing):
    r"""A factor :math:`\alpha_s` of each pair, which trains.

    Args:
        start: What a new one begins with.
        shared: Whether there is one for all layers and parts; then ``S`` and ``P`` below are 1.
        n_places: Number ``S`` of layers.
        n_parts: Number ``P`` of parts that are tuned in each.

    Attributes:
        values: ``(T, S, P)``, the newest pair last.
    """

    row_tensors = ("values",)

    def __init__(self, start: float, *, shared: bool, n_places: int, n_parts: int) -> None:
        super().__init__()
        self.start, self.shared = start, shared
        size = (1, 1, 1) if shared else (1, n_places, n_parts)
        self.values = nn.Parameter(torch.full(size, start))

    def of(self, place: int) -> Tensor:
        """Return those of layer number ``place``, from 0: ``(T, P)`` or ``(T, 1)``."""
        return self.values[:, 0 if self.shared else place]

    @torch.no_grad()
    def add(self, norms: Tensor) -> None:
        """Make room for a further pair, the present one having become its direction.

        Where a factor is shared all begin anew; else what was the newest takes over the length.

        Args:
            norms: What the present pair was divided by, ``(S, P)``.
        """
        old, new = self.values.detach(), torch.full_like(self.values[:1], self.start)
        if self.shared:
            old = torch.full_like(old, self.start)
        else:
            old = torch.cat([old[:-1], old[-1:] * norms])
        self.values = nn.Parameter(torch.cat([old, new]))


class PairedLinear(ExperienceParts):
    r"""A frozen map to queries, keys and values with low-rank pairs beside some of the three.

    .. math:: h_p = W_p x + b_p + c \sum_s \alpha_s B_{s,p} A_{s,p} x

    Args:
        base: The frozen map, ``D`` to ``3 E``.
        parts: Which of the three have pairs, ``P`` of them.
        r: Rank ``R`` of a pair.
        scale: :math:`c`.
        dropout: Probability of the dropout in front of every ``A``, in training.
        scales: The factors :math:`\alpha`; ``None`` for 1.
        place: Number of the layer among those that share them.

    Attributes:
        down: The present ``A``, ``(P, R, D)``; ``past_down`` has those of earlier experiences,
            which do not train, ``(T - 1, P, R, D)``.
        up: The present ``B``, ``(P, E, R)``; ``past_up`` likewise.
    """

    base: nn.Linear
    scales: PairScales | None
    index: Tensor
    down: Tensor
    up: Tensor
    past_down: Tensor
    past_up: Tensor

    def __init__(
        self,
        base: nn.Linear,
        parts: Sequence[Part],
        *,
        r: int,
        scale: float = 1.0,
        dropout: float = 0.0,
        scales: PairScales | None = None,
        place: int = 0,
    ) -> None:
        width, out = base.in_features, base.out_features // 3
        first = {"down": (len(parts), r, width), "up": (len(parts), out, r)}
        super().__init__({name: base.weight.new_zeros(shape) for name, shape in first.items()})
        object.__setattr__(self, "base", base)  # no children: the one is the backbone's,
        object.__setattr__(self, "scales", scales)  # the other all layers'
        index = torch.tensor([_PARTS.index(part) for part in parts], device=base.weight.device)
        self.register_buffer("index", index, persistent=False)
        self.scale, self.place = scale, place
        self.dropout = nn.Dropout(dropout)
        self.draw(r)

    @torch.no_grad()
    def draw(self, rank: int) -> None:
        """Let the present pair begin: ``A`` uniform as Kaiming has it, ``B`` zero.

        Of a lower rank than ``R`` rows of ``A`` are zero too, and then no gradient moves them.
        """
        bound = self.down.shape[-1] ** -0.5
        self.down.uniform_(-bound, bound)
        self.down[:, rank:] = 0
        self.up.zero_()

    @torch.no_grad()
    def normalise(self) -> Tensor:
        """Give both matrices of the latest of the old pairs Frobenius norm 1.

        Returns:
            The product of the norms that they had, ``(P,)``.
        """
        product = self.down.new_ones(len(self.down))
        for past in (self.past_down, self.past_up):
            lengths = past[-1].flatten(1).norm(dim=1).clamp(min=1e-12)
            past[-1] /= lengths[:, None, None]
            product = product * lengths
        return product

    def forward(self, x: Tensor) -> Tensor:
        """Return queries, keys and values: ``(..., D)`` to ``(..., 3 E)``."""
        down, up = self.every("down"), self.every("up")  # (T, P, R, D), (T, P, E, R)
        low = F.linear(self.dropout(x), down.flatten(0, 2))
        low = low.view(*x.shape[:-1], *down.shape[:3])  # (..., T, P, R)
        if self.scales is not None:
            low = low * self.scales.of(self.place)[..., None]
        added = self.scale * torch.einsum("...tpr,tper->...pe", low, up)
        whole: Tensor = self.base(x)
        split = whole.view(*x.shape[:-1], 3, -1)  # (..., 3, E)
        return split.index_add(-2, self.index, added.to(split.dtype)).flatten(-2)


@exportable
class PairedLoRA(Branch):
    r"""A pass with a :class:`PairedLinear` in place of each map to queries, keys and values.

    It begins with one pair, which changes nothing. With every later experience that pair is frozen
    and another begins, for the optimizer too. All act at once, on every image.

    Args:
        backbone: The frozen network; it is not changed.
        r: Rank ``R`` of a pair; or that of each experience's, the last for all further ones. Pairs
            have the size of the largest, lower ones have zeros, at which no gradient pulls.
        parts: Which of ``"q"``, ``"k"`` and ``"v"`` have pairs, each its own.
        blocks: Which blocks, from 0; ``None`` takes all.
        scale: Factor of all pairs.
        dropout: Probability of the dropout in front of every ``A``, in training.
        scales: Factors of the pairs beside that: ``"fixed"``, none; ``"shared"``, one a pair;
            ``"each"``, one a pair, layer and part. The latter train, and old pairs are then
            normalised.
        start: What these begin with.
        trains_down: Whether ``A`` trains; else it stays as it is set.

    Raises:
        ConfigError: If a block or part is not there, or its attention is not timm's plain one.

    Source:
        LoRA of Hu et al., arXiv 2106.09685, as O-LoRA, InfLoRA and SD-LoRA have it.
        Differs: where one layer makes q, k and v, its rows are tuned as if they were three.

    Example:
        >>> from avalanche_peftcl.models import create_backbone, forward_branches
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> branch = PairedLoRA(backbone, r=2, parts=("q", "v"))
        >>> branch.start_experience(1)
        >>> branch.start_experience(2)
        >>> [tuple(p.shape) for p in branch.layers["0"].parameters()]
        [(2, 2, 192), (2, 192, 2)]
        >>> branch.layers["0"].past_down.shape
        torch.Size([1, 2, 2, 192])
    """

    _view: ViTBackbone

    def __init__(
        self,
        backbone: Backbone,
        *,
        r: int | Sequence[int],
        parts: Sequence[Part] = ("q", "v"),
        blocks: Sequence[int] | None = None,
        scale: float = 1.0,
        dropout: float = 0.0,
        scales: Scales = "fixed",
        start: float = 1.0,
        trains_down: bool = True,
    ) -> None:
        super().__init__()
        chosen = choose_blocks(blocks, backbone.depth, default=backbone.depth)
        vit = _checked(backbone, parts, chosen)
        self.ranks = (r,) if isinstance(r, int) else tuple(r)
        if not self.ranks or min(self.ranks) < 1:
            raise ConfigError(f"r={r} must be a rank from 1 on, or a list of at least one")
        self.scales = None
        if scales != "fixed":
            self.scales = PairScales(
                start, shared=scales == "shared", n_places=len(chosen), n_parts=len(parts)
            )
        layers: dict[str, PairedLinear] = {}

        def replace(module: Any) -> None:
            for place, index in enumerate(chosen):
                attention = module.blocks[index].attn
                attention.qkv = layers[str(index)] = PairedLinear(
                    attention.qkv,
                    parts,
                    r=max(self.ranks),
                    scale=scale,
                    dropout=dropout,
                    scales=self.scales,
                    place=place,
                )

        object.__setattr__(self, "_view", view_of(vit, replace))  # its weights are the backbone's
        self.layers = nn.ModuleDict(layers)
        self.shares_start, self.trains_down = 0 not in chosen, trains_down
        for layer in layers.values():
            layer.down.requires_grad_(trains_down)
            with torch.no_grad():
                layer.down[:, self.ranks[0] :] = 0
        self.train()

    def network(self, backbone: Backbone) -> Backbone:
        """Return the view with the replaced layers, whatever ``backbone`` is."""
        return self._view

    def paired(self) -> list[PairedLinear]:
        """Return the replaced layers, in the order of the blocks."""
        return [layer for layer in self.layers.values() if isinstance(layer, PairedLinear)]

    def start_experience(self, number: int) -> None:
        """Freeze the present pairs and begin new ones; factors that train get one more."""
        layers = self.paired()
        begun = [layer.start(number) for layer in layers]
        if not all(begun):
            return
        if self.scales is not None:
            self.scales.add(torch.stack([layer.normalise() for layer in layers]))
        for layer in layers:
            layer.down.requires_grad_(self.trains_down)
            layer.draw(self.ranks[min(len(layer), len(self.ranks)) - 1])


def _checked(backbone: Backbone, parts: Sequence[Part], blocks: Sequence[int]) -> ViTBackbone:
    if not parts or len(set(parts)) < len(parts) or not set(parts) <= set(_PARTS):
        raise ConfigError(f"parts={list(parts)} must be some of q, k and v, each once")
    if not isinstance(backbone, ViTBackbone):
        raise ConfigError(
            f"the map to queries, keys and values is found by its name in timm's vision "
            f"transformers, which a {type(backbone).__name__} is none of; take a method that "
            "tunes adapters with this backbone"
        )
    for index in blocks:
        backbone.attention(index)  # refuses what has no plain map
    return backbone
