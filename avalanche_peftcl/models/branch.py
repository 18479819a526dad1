"""What a PEFT module is: an adapted pass through the frozen blocks."""

from typing import Any, Literal

from torch import Tensor, nn

from avalanche_peftcl.models.backbones.backbone import Backbone, out_features
from avalanche_peftcl.models.backbones.embedded import Embedded
from avalanche_peftcl.models.exportable import exportable

Reads = Literal["pooled", "tokens", "blocks"]


class Branch(nn.Module):
    """One pass through the frozen blocks; this base class leaves them as they are.

    A subclass adapts a block after its attention: it says how the pass leaves the first block
    (:meth:`enter`, which is handed what all branches share) and every later one (:meth:`step`).
    Or it adapts the attention itself (:meth:`attend`), or the network (:meth:`network`). What it
    wants to know of each image beforehand it asks in :meth:`begin`; what is classified it says by
    :attr:`reads` and :meth:`pool`.

    Attributes:
        shares_start: Whether the first block's attention sees nothing of this branch.
        reads: What :meth:`pool` is handed: ``"pooled"``, the last block's tokens that the
            backbone's pooling reads, or more; ``"tokens"``, all of them; ``"blocks"``, a list with
            all tokens after every block.
        forward_passes: Passes that an image costs: 2 where :meth:`begin` asks for the query.
        adapts_pooled: Whether :meth:`pool` adapts what is pooled, of which tokens say nothing.
        terms: What the last pass adds to the loss by name, weighted; empty again before the next,
            and in copies.
        text: What it has put into the text side, a :class:`.TunedText`; ``None`` for nothing.

    Example:
        A prompt an image, chosen by what the frozen network sees in it, as in L2P (Wang et al.,
        CVPR 2022), in front of the first block's attention:

        >>> import torch
        >>> from torch.nn import functional as F
        >>> from avalanche_peftcl.models import (
        ...     PEFTModel, attend_with_prompts, create_backbone, exportable
        ... )
        >>> class ChosenPrompt(Branch):
        ...     shares_start = False
        ...     forward_passes = 2
        ...
        ...     def __init__(self, embed_dim, *, size=10, length=5, pull=0.1):
        ...         super().__init__()
        ...         self.keys = nn.Parameter(torch.randn(size, embed_dim))
        ...         self.prompts = nn.Parameter(0.02 * torch.randn(size, length, embed_dim))
        ...         self.pull = pull
        ...
        ...     def begin(self, backbone, embedded):
        ...         fit = F.normalize(embedded.query()) @ F.normalize(self.keys).T  # (B, size)
        ...         best, index = fit.max(dim=1)
        ...         self.terms["pull"] = self.pull * (1 - best).mean()
        ...         return self.prompts[index]  # (B, P, D)
        ...
        ...     def attend(self, backbone, index, tokens, *, queries=None, context=None):
        ...         if index:
        ...             return backbone.attend(index, tokens, queries=queries)
        ...         return attend_with_prompts(backbone, index, tokens, context, queries=queries)
        >>> @exportable
        ... def build_chosen_prompt(*, backbone, size: int = 10, length: int = 5):
        ...     return ChosenPrompt(backbone.embed_dim, size=size, length=length)
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> model = PEFTModel(backbone, build_chosen_prompt(backbone=backbone))
        >>> model.start_experience([(0, 0), (0, 1)])
        >>> model(torch.randn(3, 3, 32, 32)).shape, list(model.losses()), model.forward_passes
        (torch.Size([3, 2]), ['pull'], 2)
    """

    shares_start: bool = True
    reads: Reads = "pooled"
    forward_passes: int = 1
    adapts_pooled: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, Tensor] = {}
        self.text: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"terms": {}}  # a graph of a pass can be neither copied nor pickled

    # --- how a pass goes -----------------------------------------------------------------------

    def network(self, backbone: Backbone) -> Backbone:
        """Return the network that this pass runs through, ``backbone`` or a tuned view of it.

        It is what all that follow are handed as ``backbone``.
        """
        return backbone

    def begin(self, backbone: Backbone, embedded: Embedded) -> Any:
        """Return what this pass has to know of the images, before any block.

        Args:
            backbone: The frozen network.
            embedded: The minibatch; :meth:`.Embedded.query` is its frozen feature.

        Returns:
            Anything; it is handed as ``context`` to :meth:`attend`, :meth:`enter`, :meth:`step` and
            :meth:`leave`.
        """
        return None

    def attend(
        self,
        backbone: Backbone,
        index: int,
        tokens: Tensor,
        *,
        queries: int | None = None,
        context: Any = None,
    ) -> Tensor:
        """Return tokens plus their attention in block ``index``, see :meth:`Backbone.attend`.

        Of the first block it is asked only where :attr:`shares_start` is false.
        """
        return backbone.attend(index, tokens, queries=queries)

    def enter(
        self, backbone: Backbone, hidden: Tensor, output: Tensor, *, context: Any = None
    ) -> Tensor:
        """Return the tokens after the first block.

        Args:
            backbone: The frozen network.
            hidden: Tokens after the first block's attention and residual, ``(B, N, D)``.
            output: The frozen block's output of them, ``(B, N, D)``.
            context: What :meth:`begin` returned.

        Returns:
            ``(B, N, D)``, or more tokens than entered; the prefix tokens stay in front.
        """
        return output

    def step(
        self, backbone: Backbone, index: int, hidden: Tensor, *, context: Any = None
    ) -> Tensor:
        """Return the tokens after block ``index``.

        Args:
            backbone: The frozen network.
            index: Which block, from 1.
            hidden: Tokens after the block's attention and residual, ``(B, N, D)``; of the last
                block only the first token, where no other is read.
            context: What :meth:`begin` returned.

        Returns:
            As many tokens as in ``hidden``.
        """
        return hidden + backbone.feed(index, hidden)

    def leave(self, backbone: Backbone, tokens: Tensor, *, context: Any = None) -> Tensor:
        """Return those of a block's tokens that it would have alone, for :meth:`pool`."""
        return tokens

    # --- how a stream makes it grow ------------------------------------------------------------

    def start_experience(self, number: int) -> None:
        """Hear that an experience begins, before its optimizer is made; nothing here.

        A module that has a part an experience makes it here, see :class:`.ExperienceParts`; what it
        freezes (``requires_grad``) is not optimized.

        Args:
            number: Of the experience in its stream, from 1; of chunks whose experience nobody knows
                always 1. The same one again is no new experience: a run goes on inside it.
        """

    # --- what comes of it ----------------------------------------------------------------------

    def pool(self, backbone: Backbone, tokens: Any) -> Tensor:
        """Return the feature that is classified, ``(B, out_features)``.

        Args:
            backbone: The network of this pass.
            tokens: As :attr:`reads` says, each ``(B, N, D)`` before the final norm.
        """
        return backbone.pool(tokens[-1] if self.reads == "blocks" else tokens)

    def out_features(self, backbone: Backbone) -> int:
        """Return the width of the feature."""
        return out_features(backbone)

    def text_side(self, backbone: Backbone) -> Any:
        """Return what encodes texts beside this pass: :attr:`text`, or ``backbone`` itself."""
        return backbone if self.text is None else self.text

    def losses(self) -> dict[str, Tensor]:
        """Return by name what the last pass adds to the loss, weighted."""
        return dict(self.terms)


@exportable
class FrozenBranch(Branch):
    """The frozen network as it is, computed to the bit as ``backbone(images)`` computes it.

    A plain :class:`Branch` leaves out what the pooling does not read, which is equal to rounding.

    Example:
        >>> import torch
        >>> from avalanche_peftcl.models import create_backbone, forward_branches
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> images = torch.randn(2, 3, 32, 32)
        >>> torch.equal(forward_branches(backbone, [FrozenBranch()], images)[0], backbone(images))
        True
    """

    reads: Reads = "tokens"


@exportable
def build_frozen(*, backbone: Backbone) -> Branch:
    """Build a pass that leaves ``backbone`` as it is: the head alone trains (linear probing)."""
    return Branch()
