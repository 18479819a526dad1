"""What a backbone is: a frozen network of blocks, and what it expects of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.attention import Extend, SelfAttention
from avalanche_peftcl.models.counting import count_passes_of
from avalanche_peftcl.registry.offers import BackboneOffers

MAX_SIDE = 8192
"""Pixels a side, of the input and of the resized image that it is cut from."""
INTERPOLATIONS = ("bicubic", "bilinear")
RESIZE_MODES = ("shortest", "squash")
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
        resize_mode: What is resized: the ``"shortest"`` side, or both, ``"squash"``, which keeps
            the whole image and not its proportions.

    Raises:
        ConfigError: If a number is out of range or not finite, there are not three channels, or the
            interpolation or resize mode is another one.
    """

    img_size: int
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    resize_mode: str = "shortest"

    def __post_init__(self) -> None:
        """Refuse what no image can be made by, or only in memory without end."""
        if not 1 <= self.img_size <= MAX_SIDE:
            raise ConfigError(f"img_size={self.img_size} is not from 1 to {MAX_SIDE:,} pixels")
        if not 0 < self.crop_pct <= 1 or self.img_size / self.crop_pct > MAX_SIDE:
            raise ConfigError(
                f"crop_pct={self.crop_pct} is not in (0, 1], or resizes images of "
                f"{self.img_size} pixels to more than {MAX_SIDE:,}"
            )
        for name, value, allowed in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("resize_mode", self.resize_mode, RESIZE_MODES),
        ):
            if value not in allowed:
                raise ConfigError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")
        for name, values, least in (("mean", self.mean, -_FAR), ("std", self.std, 1 / _FAR)):
            if len(values) != 3 or not all(least <= value <= _FAR for value in values):
                raise ConfigError(
                    f"{name}={values} is not three numbers from {least:g} to {_FAR:g}, one for "
                    "each channel"
                )


class Backbone(nn.Module):
    """A frozen network of residual blocks: an attention, then an MLP, after an embedding.

    A subclass sets the attributes and writes :meth:`embed`, :meth:`attend`, :meth:`feed` and
    :meth:`pool`; all else has a default. Its parameters never train and it stays in eval mode.
    Nothing asks for this class: a module of torch that has all of its members is a backbone too.

    Attributes:
        input_config: What the network expects of an image.
        embed_dim: Width ``D`` of a token.
        depth: Number ``L`` of blocks.
        num_tokens: Number ``N`` of tokens that enter the first block.
        num_prefix_tokens: How many of these stand in front of the patches.
        pools_cls: Whether :meth:`pool` reads the first token only, so that of the last block
            nothing else has to be computed.
        model_name: What timm calls the network, with the tag of the weights if they are timm's;
            ``None`` for others.
        pretrained_on: Sets of labels that its weights were trained on, see
            :class:`.BackboneOffers`.
        has_text: Whether there is a text side, see :class:`TextSide`.

    Example:
        A complete one, of two blocks, whose feature is the mean of the tokens:

        >>> import torch
        >>> from avalanche_peftcl.models import PEFTModel, build_adapters
        >>> class Small(Backbone):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.input_config = InputConfig(img_size=8)
        ...         self.embed_dim, self.depth, self.num_tokens = 16, 2, 4
        ...         self.patches = nn.Conv2d(3, 16, kernel_size=4, stride=4)
        ...         self.attentions = nn.ModuleList(
        ...             nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2)
        ...         )
        ...         self.mlps = nn.ModuleList(
        ...             nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)) for _ in range(2)
        ...         )
        ...         self.requires_grad_(False).eval()
        ...
        ...     def embed(self, images):
        ...         return self.patches(images).flatten(2).transpose(1, 2)
        ...
        ...     def attend(self, index, tokens, *, queries=None, extend=None):
        ...         if extend is not None:
        ...             raise ConfigError("this network takes no further keys; use an adapter")
        ...         attended, _ = self.attentions[index](tokens[:, :queries], tokens, tokens)
        ...         return tokens[:, :queries] + attended
        ...
        ...     def feed(self, index, tokens):
        ...         return self.mlps[index](tokens)
        ...
        ...     def pool(self, tokens):
        ...         return tokens.mean(dim=1)
        >>> backbone = Small()
        >>> model = PEFTModel(backbone, build_adapters(backbone=backbone, r=2))
        >>> model.start_experience([(0, 0), (0, 1)])
        >>> model(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 2])
    """

    input_config: InputConfig
    embed_dim: int
    depth: int
    num_tokens: int
    num_prefix_tokens: int = 0
    pools_cls: bool = False
    model_name: str | None = None
    pretrained_on: Sequence[str] | None = None
    has_text: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let the images that pass through be counted, see :func:`.count_passes_of`."""
        super().__init_subclass__(**kwargs)
        count_passes_of(cls)

    # --- what a subclass says ------------------------------------------------------------------

    def embed(self, images: Tensor) -> Tensor:
        """Return the tokens that enter the first block: ``(B, 3, H, W)`` to ``(B, N, D)``."""
        raise NotImplementedError

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
        raise NotImplementedError

    def feed(self, index: int, tokens: Tensor) -> Tensor:
        """Return what the MLP of block ``index`` adds to ``tokens``, without the residual."""
        raise NotImplementedError

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the image's feature from the last block's tokens: ``(B, N, D)`` to ``(B, E)``."""
        raise NotImplementedError

    # --- what it may say -----------------------------------------------------------------------

    @property
    def out_features(self) -> int:
        """Width ``E`` of what :meth:`pool` returns; here that of a token."""
        return self.embed_dim

    def encode_text(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return the feature of each class name, see :class:`TextSide`.

        Raises:
            ConfigError: If there is no text side, as here.
        """
        raise ConfigError(
            f"a {type(self).__name__} has no text side, which class names are encoded by; take "
            "backbone 'open_clip' or 'dual_encoder'"
        )

    def norm(self, tokens: Tensor) -> Tensor:
        """Return the last block's tokens after the final norm, ``(B, N, D)``; here as they are."""
        return tokens

    def normed(self, index: int, tokens: Tensor) -> Tensor:
        """Return the tokens as the attention of block ``index`` reads them; here as they are."""
        return tokens

    def attention(self, index: int) -> SelfAttention:
        """Return the attention of block ``index``, to which modules put further keys and values.

        Raises:
            ConfigError: If it takes none, as here.
        """
        raise ConfigError(
            f"block {index} of a {type(self).__name__} takes no further keys; use an adapter with "
            "this backbone"
        )

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever ``mode`` says: dropout of a frozen network stays off."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the frozen features of ``images``: ``(B, 3, H, W)`` to ``(B, E)``."""
        tokens = self.embed(images)
        for index in range(self.depth):
            hidden = self.attend(index, tokens)
            tokens = hidden + self.feed(index, hidden)
        return self.pool(tokens)


_MEMBERS = ("input_config", "embed_dim", "depth", "num_tokens", "embed", "attend", "feed", "pool")


def check_backbone(backbone: object) -> None:
    """Refuse what is no backbone, before a network is built of it.

    Raises:
        ConfigError: If a member of :class:`Backbone` is missing.
    """
    missing = [name for name in _MEMBERS if not hasattr(backbone, name)]
    if missing:
        raise ConfigError(
            f"a {type(backbone).__name__} is no backbone: it has no {', '.join(missing)}; make one "
            "with create_backbone(), or write one like avalanche_peftcl.models.Backbone"
        )


@runtime_checkable
class TextSide(Protocol):
    """What a backbone has too that was trained on images and texts.

    Its ``pool`` then returns the image's embedding in the space of both, projected and not
    normalised, and its ``has_text`` is true.

    Attributes:
        logit_scale: Factor of the cosine between the embedding of an image and that of a text.
    """

    logit_scale: float

    def encode_text(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return the embedding of each class name, on unit norm.

        Args:
            names: ``C`` names, in words.
            templates: Sentences with ``{}`` where the name stands; the embeddings of a class in
                all of them are normalised, averaged and normalised again. ``None``: the name alone.

        Returns:
            ``(C, E)`` in float32; that of a class does not depend on the others.
        """


@runtime_checkable
class ContextSide(TextSide, Protocol):
    """A text side whose names may stand behind vectors that train, as prompts of a text.

    Attributes:
        text_width: Width ``D`` of a vector that stands for a word; 0 where it takes none.
    """

    text_width: int

    def encode_context(self, context: Tensor, names: Sequence[str]) -> Tensor:
        """Return the embedding of each class name behind vectors, on unit norm.

        Args:
            context: ``(P, D)``; gradients flow to it.
            names: ``C`` names, in words.

        Returns:
            ``(C, E)`` in float32.
        """


def out_features(backbone: Backbone) -> int:
    """Return the width ``E`` of what a backbone pools; that of a token where it says no other."""
    told = BackboneOffers.of(backbone).out_features
    return backbone.embed_dim if told is None else told
