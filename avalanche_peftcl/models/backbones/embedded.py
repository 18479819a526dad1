"""What all passes of a minibatch share: its embedding, the first block, the frozen feature."""

import torch
from torch import Tensor

from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.backbones.kept_features import kept_feature


class Embedded:
    """A minibatch in front of the blocks; each of its parts is computed once, when first asked for.

    Args:
        backbone: The frozen network.
        images: ``(B, 3, H, W)``.

    Attributes:
        tokens: What enters the first block, ``(B, N, D)``.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> embedded = Embedded(backbone, torch.zeros(2, 3, 32, 32))
        >>> embedded.tokens.shape, embedded.query().shape
        (torch.Size([2, 5, 192]), torch.Size([2, 192]))
    """

    def __init__(self, backbone: Backbone, images: Tensor) -> None:
        self.tokens = backbone.embed(images)
        self._backbone = backbone
        self._start: tuple[Tensor, Tensor] | None = None
        self._query: Tensor | None = None

    def start(self) -> tuple[Tensor, Tensor]:
        """Return the frozen tokens after the first block's attention and after its MLP."""
        if self._start is None:
            hidden = self._backbone.attend(0, self.tokens)
            self._start = hidden, hidden + self._backbone.feed(0, hidden)
        return self._start

    def query(self) -> Tensor:
        """Return the frozen network's feature of each image, ``(B, E)``, without gradient.

        It costs one more pass, which :attr:`.Branch.forward_passes` of a branch that asks for it
        counts; of test images that a strategy evaluates again none, see :class:`.KeptFeatures`.
        """
        if self._query is None:
            self._query = kept_feature(self._backbone, self.tokens, self._ask, "query")
        return self._query

    def _ask(self) -> Tensor:
        backbone, (_, tokens) = self._backbone, self.start()
        with torch.no_grad():
            for index in range(1, backbone.depth):
                last = index == backbone.depth - 1
                queries = 1 if last and backbone.pools_cls else None
                hidden = backbone.attend(index, tokens, queries=queries)
                tokens = hidden + backbone.feed(index, hidden)
            return backbone.pool(tokens)
