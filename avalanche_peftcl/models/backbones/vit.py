"""A plain vision transformer of timm as a frozen backbone."""

from typing import Any, cast

from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.attention import Extend, SelfAttention, attend, is_plain
from avalanche_peftcl.models.backbones.backbone import Backbone, InputConfig
from avalanche_peftcl.models.backbones.timm_api import (
    Block,
    VisionTransformer,
    VisionTransformerDistilled,
)


class ViTBackbone(Backbone):
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
        self.embed_dim, self.depth = int(vit.embed_dim), len(vit.blocks)
        self.num_prefix_tokens = int(vit.num_prefix_tokens)
        self.num_tokens = int(vit.patch_embed.num_patches) + self.num_prefix_tokens
        both = isinstance(vit, VisionTransformerDistilled)  # CLS and the distillation token
        self.pools_cls = vit.global_pool == "token" and vit.attn_pool is None and not both
        self.train(False)

    @property
    def blocks(self) -> nn.Sequential:
        """The ``L`` transformer blocks."""
        return cast(nn.Sequential, self.vit.blocks)

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
        """Return tokens plus their attention in block ``index``, see :meth:`.Backbone.attend`."""
        if extend is not None:
            self.attention(index)  # refuses what takes no further keys
        block: Any = self.blocks[index]
        normed = block.norm1(tokens)
        if is_plain(block.attn) and (queries is not None or extend is not None):
            attended = attend(block.attn, normed[:, :queries], normed, extend=extend)
        else:
            attended = block.attn(normed)[:, :queries]
        return cast(Tensor, tokens[:, :queries] + block.drop_path1(block.ls1(attended)))

    def feed(self, index: int, tokens: Tensor) -> Tensor:
        """Return what the MLP of block ``index`` adds to ``tokens``, without the residual."""
        block: Any = self.blocks[index]
        return cast(Tensor, block.drop_path2(block.ls2(block.mlp(block.norm2(tokens)))))

    def norm(self, tokens: Tensor) -> Tensor:
        """Return the last block's tokens after the final norm, ``(B, N, D)``."""
        return cast(Tensor, self.vit.norm(tokens))

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the image's feature from the last block's tokens: ``(B, N, D)`` to ``(B, E)``."""
        return cast(Tensor, self.vit.forward_head(self.norm(tokens), pre_logits=True))

    def normed(self, index: int, tokens: Tensor) -> Tensor:
        """Return the tokens after the first norm of block ``index``."""
        block: Any = self.blocks[index]
        return cast(Tensor, block.norm1(tokens))

    def attention(self, index: int) -> SelfAttention:
        """Return the attention of block ``index``, if it takes further keys and values."""
        block: Any = self.blocks[index]
        if not is_plain(block.attn):
            raise ConfigError(
                f"the attention of block {index} is a {type(block.attn).__name__} that takes no "
                "further keys; use an adapter or LoRA with this backbone"
            )
        return cast(SelfAttention, block.attn)

    def forward(self, images: Tensor) -> Tensor:
        """Return the frozen features of ``images``: ``(B, 3, H, W)`` to ``(B, E)``."""
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


def as_vit(backbone: Backbone, what: str) -> ViTBackbone:
    """Return ``backbone``, whose layers have the names of timm's.

    Args:
        backbone: Any.
        what: What needs the names.

    Raises:
        ConfigError: If it is another kind of network.
    """
    if not isinstance(backbone, ViTBackbone):
        raise ConfigError(
            f"{what} finds layers by their names in timm's vision transformers, which a "
            f"{type(backbone).__name__} is none of; use an adapter with this backbone"
        )
    return backbone
