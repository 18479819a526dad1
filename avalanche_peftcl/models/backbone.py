"""Frozen vision transformer behind one small interface; the only file that imports timm."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import timm
import torch
from pydantic import Field
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.models.attention import Extend, attend, is_plain

Normalize = Literal["data_config", "none"]


@dataclass(frozen=True, slots=True)
class InputConfig:
    """What a backbone expects of an image; a benchmark makes its transforms from it.

    Args:
        img_size: Height and width in pixels.
        mean: Mean of each channel, subtracted after scaling to [0, 1].
        std: Standard deviation of each channel, divided by.
        interpolation: ``"bicubic"`` or ``"bilinear"``.
        crop_pct: Share of the resized image that the central test crop keeps, in (0, 1].
    """

    img_size: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0


class Backbone(nn.Module):
    """A frozen ViT: its parameters never train and it stays in eval mode.

    Args:
        vit: A timm ``VisionTransformer`` of pre-norm blocks; its classifier is not used.
        input_config: What the network expects of an image.

    Raises:
        ConfigError: If ``vit`` is not built of pre-norm transformer blocks.

    Example:
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> backbone(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 192])
    """

    def __init__(self, vit: VisionTransformer, input_config: InputConfig) -> None:
        super().__init__()
        if not isinstance(vit, VisionTransformer) or not all(
            hasattr(block, part)
            for block in vit.blocks
            for part in ("norm1", "attn", "norm2", "mlp")
        ):
            raise ConfigError(
                f"{type(vit).__name__} is not a plain vision transformer; "
                f"try one of timm.list_models('vit_*') or timm.list_models('deit_*')"
            )
        self.vit = vit.requires_grad_(False)
        self.input_config = input_config
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
        """Tokens in front of the patches: CLS and registers."""
        return int(self.vit.num_prefix_tokens)

    @property
    def num_tokens(self) -> int:
        """Number ``N`` of tokens that enter the first block."""
        prefix = 0 if self.vit.no_embed_class else self.num_prefix_tokens
        return int(self.vit.pos_embed.shape[1]) - prefix + self.num_prefix_tokens

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
        return self.vit.global_pool == "token" and self.vit.attn_pool is None

    def forward(self, images: Tensor) -> Tensor:
        """Return the frozen features of ``images``: ``(B, 3, H, W)`` to ``(B, D)``."""
        return self.pool(self.blocks(self.embed(images)))


def create_backbone(
    model_name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    img_size: int | None = None,
    normalize: Normalize = "data_config",
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = None,
    interpolation: Literal["bicubic", "bilinear"] | None = None,
    **model_args: Any,
) -> Backbone:
    """Build any timm ViT as a frozen backbone.

    Args:
        model_name: Name known to timm, for example ``"vit_base_patch16_224"``, with the tag of its
            weights if there are several: ``"vit_base_patch16_224.augreg_in21k"``.
        pretrained: Download timm's weights.
        checkpoint: A safetensors file, or a torch file loaded with ``weights_only=True``. Every
            weight must be there and fit; only the file's classifier is left out.
        img_size: Side of the square input in pixels; the position embedding is resampled.
            ``None`` takes the model's own.
        normalize: ``"data_config"`` follows the model's data config; ``"none"`` feeds [0, 1].
        crop_pct: Share of the resized image that the central test crop keeps; 1 for images that
            are cut tightly, such as CIFAR's. ``None`` takes the model's own.
        interpolation: How images are resized; ``None`` takes the model's own.
        **model_args: Passed on to timm (``patch_size``, ``embed_dim``, ``depth``, ...).

    Returns:
        The frozen backbone in eval mode.

    Raises:
        ConfigError: Unknown name, not a plain ViT, impossible size, or both ``pretrained`` and
            ``checkpoint``.
        CheckpointError: The download failed, or the file is missing, unreadable or does not fit.
    """
    if pretrained and checkpoint is not None:
        raise ConfigError("pretrained=True and checkpoint= exclude each other; give one of them")
    base, _, tag = model_name.partition(".")
    known = timm.list_pretrained(f"{base}.*") if tag else timm.list_models()
    if model_name not in known:
        near = _nearest(model_name, known or timm.list_pretrained())
        raise ConfigError(f"timm has no model {model_name!r}{near}; see timm.list_pretrained()")
    functions = (create_backbone, timm.create_model, VisionTransformer)
    allowed = [name for function in functions for name in signature(function).parameters]
    for option in model_args:
        if option not in allowed:
            raise ConfigError(
                f"backbone {model_name!r} has no option {option!r}{_nearest(option, allowed)}"
            )
    size = {} if img_size is None else {"img_size": img_size}
    try:
        with _downloads(model_name, pretrained):
            vit = timm.create_model(
                model_name, pretrained=pretrained, num_classes=0, **size, **model_args
            )
    except (TypeError, AssertionError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"timm cannot build {model_name!r} with {size | model_args}: {error}"
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise ConfigError(
            f"{model_name!r} is a {type(vit).__name__}, not a plain vision transformer"
        )
    height, patch = vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0]
    if height < patch or height % patch:
        raise ConfigError(f"img_size={height} is not a multiple of the patch size {patch}")
    if checkpoint is not None:
        load_checkpoint(vit, checkpoint)
    input_config = _input_config(vit, img_size, normalize)
    if crop_pct is not None:
        input_config = replace(input_config, crop_pct=crop_pct)
    if interpolation is not None:
        input_config = replace(input_config, interpolation=interpolation)
    return Backbone(vit, input_config)


def load_checkpoint(vit: VisionTransformer, path: str | Path) -> None:
    """Load a weights file into ``vit``; position embedding and patch size are resampled.

    Args:
        vit: The network, changed in place.
        path: A ``.safetensors`` file or a torch file of tensors.

    Raises:
        CheckpointError: The file is missing or unreadable, or keys are missing, unexpected or of
            another shape; the message lists them. Keys of the classifier are left out.
    """
    path = Path(path)
    state = read_state_dict(path)
    classifier = vit.default_cfg.get("classifier") or "head"
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    try:
        state = checkpoint_filter_fn(state, vit)
    except (KeyError, RuntimeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} does not fit {type(vit).__name__}: {error}") from error
    state = {k: v for k, v in state.items() if not k.startswith(tuple(f"{h}." for h in heads))}
    own = vit.state_dict()
    wrong = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
            for k in sorted(own.keys() & state.keys())
            if own[k].shape != state[k].shape
        ],
    }
    if any(wrong.values()):
        told = "; ".join(f"{len(v)} {k}: {', '.join(v)}" for k, v in wrong.items() if v)
        raise CheckpointError(f"{path} does not fit the model: {told}")
    vit.load_state_dict(state)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file of tensors without executing anything in it.

    Raises:
        CheckpointError: If the file is missing, unreadable, or holds anything but tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile and pickle each raise their own kind
        raise CheckpointError(f"{path} cannot be read as weights: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{path} holds no state dict (a mapping of names to tensors)")
    return dict(state)


def _input_config(
    vit: VisionTransformer, img_size: int | None, normalize: Normalize
) -> InputConfig:
    config = timm.data.resolve_model_data_config(vit)
    shape = {"mean": config["mean"], "std": config["std"]} if normalize == "data_config" else {}
    return InputConfig(
        img_size=img_size or config["input_size"][-1],
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        **shape,
    )


def _nearest(name: str, known: list[str]) -> str:
    match = get_close_matches(name, known, n=1)
    return f"; did you mean {match[0]!r}?" if match else ""


@contextmanager
def _downloads(model_name: str, pretrained: bool) -> Iterator[None]:
    """Turn whatever a failed download raises into one error that says the way out."""
    try:
        yield
    except Exception as error:
        if not pretrained or isinstance(error, TypeError | AssertionError | ZeroDivisionError):
            raise
        raise CheckpointError(
            f"the weights of {model_name!r} could not be downloaded "
            f"({type(error).__name__}: {error}); download them elsewhere and give the file as "
            "checkpoint="
        ) from error
