"""Frozen vision transformer behind one small interface."""

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.attention import Extend, attend, is_plain
from avalanche_peftcl.models.backbones.timm_api import (
    Block,
    VisionTransformer,
    VisionTransformerDistilled,
)

MAX_SIDE = 8192
"""Pixels a side, of the input and of the resized image that it is cut from."""
INTERPOLATIONS = ("bicubic", "bilinear")
_FAR = 1e6  # of channels in [0, 1]


@dataclass(frozen=True, slots=True)
class InputConfig:
    """What a backbone expects of an image; a benchmark makes its transforms from it.

    Args:
        img_size: Height and width in pixels.
        mean: Mean of each channel, subtracted after scaling to [0, 1].
        std: Standard deviation of each channel, divided by.
        interpolation: ``"bicubic"`` or ``"bilinear"``.
        crop_pct: Share of the resized image that the central test crop keeps, in (0, 1].

    Raises:
        ConfigError: If a number is out of range or not finite, there are not three channels, or the
            interpolation is another one.
    """

    img_size: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no image can be made by, or only in memory without end."""
        if not 1 <= self.img_size <= MAX_SIDE:
            raise ConfigError(f"img_size={self.img_size} is not from 1 to {MAX_SIDE:,} pixels")
        if not 0 < self.crop_pct <= 1 or self.img_size / self.crop_pct > MAX_SIDE:
            raise ConfigError(
                f"crop_pct={self.crop_pct} is not in (0, 1], or resizes images of "
                f"{self.img_size} pixels to more than {MAX_SIDE:,}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError(
                f"interpolation={self.interpolation!r} is not one of "
                f"{', '.join(map(repr, INTERPOLATIONS))}"
            )
        for name, values, least in (("mean", self.mean, -_FAR), ("std", self.std, 1 / _FAR)):
            if len(values) != 3 or not all(least <= value <= _FAR for value in values):
                raise ConfigError(
                    f"{name}={values} is not three numbers from {least:g} to {_FAR:g}, one for "
                    "each channel"
                )


class Backbone(nn.Module):
    """A frozen ViT: its parameters never train and it stays in eval mode.

    Args:
        vit: A timm ``VisionTransformer`` of pre-norm blocks; its classifier is not used.
        input_config: What the network expects of an image.
        model_name: What timm calls it, with the tag of the weights if they are timm's.

    Raises:
        ConfigError: If ``vit`` computes anything else than pre-norm blocks one after the other and
            a pooling: then the passes here would not be the network's own.

    Example:
        >>> import torch
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> backbone(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 192])
    """

    def __init__(
        self, vit: VisionTransformer, input_config: InputConfig, *, model_name: str | None = None
    ) -> None:
        super().__init__()
        if reason := not_plain(vit):
            raise ConfigError(
                f"{type(vit).__name__} is not a plain vision transformer: {reason}; "
                f"try one of timm.list_models('vit_*') or timm.list_models('deit_*')"
            )
        self.vit = vit.requires_grad_(False)
        self.input_config = input_config
        self.model_name = model_name
        self.train(False)

    @property
    def embed_dim(self) -> int:
        """Width ``D`` of a token."""
        return int(self.vit.embed_dim)

    @property
    def blocks(self) -> nn.Sequential:
        """The ``L`` transformer blocks."""
        return cast(nn.Sequential, self.vit.blocks)

    @property
    def depth(self) -> int:
        """Number ``L`` of blocks."""
        return len(self.blocks)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens in front of the patches: CLS, distillation and registers."""
        return int(self.vit.num_prefix_tokens)

    @property
    def num_tokens(self) -> int:
        """Number ``N`` of tokens that enter the first block."""
        return int(self.vit.patch_embed.num_patches) + self.num_prefix_tokens

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode, whatever ``mode`` says: dropout of a frozen network stays off."""
        super().train(False)
        return self

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens that enter the first block: ``(B, 3, H, W)`` to ``(B, N, D)``."""
        vit = self.vit
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        return cast(Tensor, tokens)  # (B, N, D)

    def attend(
        self,
        index: int,
        tokens: Tensor,
        *,
        queries: int | None = None,
        extend: Extend | None = None,
    ) -> Tensor:
        """Return tokens plus their attention in block ``index``.

        Args:
            index: Which block, from 0.
            tokens: ``(B, N, D)``.
            queries: Return the first so many tokens only; the others still serve as keys.
            extend: Returns the keys and values to attend to instead of the tokens' own.

        Returns:
            ``(B, N, D)``, or ``(B, queries, D)``: equal to the slice of the whole.

        Raises:
            ConfigError: If keys are to be added to an attention that takes none.
        """
        block: Any = self.blocks[index]
        normed = block.norm1(tokens)
        if is_plain(block.attn) and (queries is not None or extend is not None):
            attended = attend(block.attn, normed[:, :queries], normed, extend=extend)
        elif extend is None:
            attended = block.attn(normed)[:, :queries]
        else:
            raise ConfigError(
                f"the attention of block {index} is a {type(block.attn).__name__} that takes no "
                "further keys; use an adapter or LoRA with this backbone"
            )
        return cast(Tensor, tokens[:, :queries] + block.drop_path1(block.ls1(attended)))

    def feed(self, index: int, tokens: Tensor) -> Tensor:
        """Return what the MLP of block ``index`` adds to ``tokens``, without the residual."""
        block: Any = self.blocks[index]
        return cast(Tensor, block.drop_path2(block.ls2(block.mlp(block.norm2(tokens)))))

    def norm(self, tokens: Tensor) -> Tensor:
        """Return the last block's tokens after the final norm, ``(B, N, D)``."""
        return cast(Tensor, self.vit.norm(tokens))

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the image's feature from the last block's tokens: ``(B, N, D)`` to ``(B, D)``."""
        return cast(Tensor, self.vit.forward_head(self.norm(tokens), pre_logits=True))

    @property
    def pools_cls(self) -> bool:
        """Whether :meth:`pool` reads the first token only."""
        both = isinstance(self.vit, VisionTransformerDistilled)  # CLS and the distillation token
        return self.vit.global_pool == "token" and self.vit.attn_pool is None and not both

    def forward(self, images: Tensor) -> Tensor:
        """Return the frozen features of ``images``: ``(B, 3, H, W)`` to ``(B, D)``."""
        return self.pool(self.blocks(self.embed(images)))


def not_plain(vit: nn.Module) -> str | None:
    """Return why the passes here are not those of ``vit``, ``None`` if they are.

    Example:
        >>> from avalanche_peftcl.models.backbones.timm_api import create_model
        >>> not_plain(create_model("vit_tiny_patch16_224", depth=1, img_size=32))
        >>> not_plain(create_model("vit_base_patch16_rpn_224", depth=1, img_size=32))
        'its blocks are a ResPostBlock'
    """
    if not isinstance(vit, VisionTransformer):
        return "it is built of other parts"
    if type(vit).forward_features is not VisionTransformer.forward_features:
        return "it has a forward pass of its own"
    if not len(vit.blocks):
        return "it has no blocks"
    for block in vit.blocks:
        if type(block).forward is not Block.forward:
            return f"its blocks are a {type(block).__name__}"
    return None if vit.global_pool or vit.attn_pool is not None else "it pools no tokens"
