"""A vision transformer of timm with a map to the space of images and texts, and its text side."""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.models.backbones.text_tower import TextTower
from avalanche_peftcl.models.backbones.timm_api import VisionTransformer
from avalanche_peftcl.models.backbones.vit import ViTBackbone
from avalanche_peftcl.models.backbones.weights import check_weights, weights_sha256


class ImageTextBackbone(ViTBackbone):
    """The image tower of a CLIP-like model as a frozen backbone, and its text side.

    What :meth:`pool` returns is projected to the joint space, and not normalised. All modules and
    projection sites that run on a :class:`.ViTBackbone` run on it.

    Of the text side the state dict holds a hash alone: a network that is exported predicts without
    it, and one with another text side is another network.

    Args:
        vit: As of :class:`.ViTBackbone`; its own classifier is not used.
        projection: Behind the pooling, ``(B, D)`` to ``(B, E)``.
        input_config: What the network expects of an image.
        out_features: ``E``.
        logit_scale: Factor of the cosine between an image's embedding and a text's.
        text: The text side; ``None`` where nothing needs it any more.
        model_name: What it is called, for the record.

    Raises:
        ConfigError: As :class:`.ViTBackbone`.
        NotFiniteError: If a weight of the text side is not a finite number.

    Source:
        Radford et al., CLIP, arXiv 2103.00020. Differs: the bias of a model that has one (SigLIP)
        is left out: it is the same for all classes.

    Example:
        >>> from avalanche_peftcl.models import InputConfig, create_backbone
        >>> vit = create_backbone("vit_tiny_patch16_224", img_size=32, depth=1).vit
        >>> backbone = ImageTextBackbone(
        ...     vit, nn.Linear(192, 64), InputConfig(img_size=32), out_features=64, logit_scale=20.0
        ... )
        >>> backbone(torch.zeros(2, 3, 32, 32)).shape, round(backbone.logit_scale, 3)
        (torch.Size([2, 64]), 20.0)
    """

    log_scale: Tensor
    text_sha256: Tensor

    def __init__(
        self,
        vit: VisionTransformer,
        projection: nn.Module,
        input_config: InputConfig,
        *,
        out_features: int,
        logit_scale: float,
        text: TextTower | None = None,
        model_name: str | None = None,
    ) -> None:
        super().__init__(vit, input_config, model_name=model_name)
        self.projection = projection.requires_grad_(False)
        self.text = text
        self.has_text = text is not None
        self._out_features = out_features
        self.register_buffer("log_scale", torch.tensor(math.log(logit_scale)))
        digest = bytes(32)
        if text is not None:
            check_weights(text.module, "the text side")
            digest = bytes.fromhex(weights_sha256(text.module))
        self.register_buffer("text_sha256", torch.tensor(list(digest), dtype=torch.uint8))
        self.train(False)

    @property
    def out_features(self) -> int:
        """Width ``E`` of the joint space."""
        return self._out_features

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine between the embedding of an image and that of a text."""
        return math.exp(float(self.log_scale))

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the image's embedding: ``(B, N, D)`` to ``(B, E)``."""
        embedding: Tensor = self.projection(super().pool(tokens))
        return embedding

    def encode_text(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return the embedding of each class name, see :meth:`.TextSide.encode_text`.

        Raises:
            ConfigError: If it was built without its text side, or as :meth:`.TextTower.encode`.
        """
        return self._text_side().encode(names, templates)

    @property
    def text_width(self) -> int:
        """Width of a token's vector on the text side; 0 without one."""
        return 0 if self.text is None else self.text.width

    def encode_context(self, context: Tensor, names: Sequence[str]) -> Tensor:
        """Return the embedding of each class name behind vectors, with gradient.

        See :meth:`.ContextSide.encode_context`.

        Raises:
            ConfigError: If it was built without its text side, or as
                :meth:`.TextTower.encode_context`.
        """
        return self._text_side().encode_context(context, names)

    def _text_side(self) -> TextTower:
        if self.text is None:
            raise ConfigError(
                "this network was built without its text side, so no class name can be encoded; "
                "an exported network predicts what it has learnt, and learns nothing new"
            )
        return self.text

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Let the text side go where the rest goes."""
        if self.text is not None:
            self.text.module._apply(fn)  # type: ignore[no-untyped-call]  # torch's own
        moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        return moved
