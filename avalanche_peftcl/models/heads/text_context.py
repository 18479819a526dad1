"""Logits that are cosines to class names behind vectors that train, anew in each experience."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import Backbone, ContextSide
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.zero_shot import (
    ClassTexts,
    ZeroShotHead,
    check_reads_embedding,
)
from avalanche_peftcl.registry.ranges import FeatureWidth, InitBound, Width

_STD = 0.02


@exportable
class TextContextHead(ZeroShotHead):
    r"""Logits from the texts of class names, each behind the context of its experience.

    .. math:: \tau \cos(z, w_r), \qquad w_r = f(p_1, \dots, p_P, \text{name of } r)

    with :math:`f` the frozen text side, through which gradients flow to the vectors :math:`p` in
    front of the name. All classes that come together share them. When the next ones come, new
    vectors are drawn and the old ones are forgotten: of them the embeddings of their classes stay,
    in buffers, so that old logits are the same to the bit as long as the image's embedding is. An
    exported network needs no text side.

    A class that is met again keeps its row; where no class is new, the last context trains on. No
    prediction knows of experiences: all rows stand side by side.

    Args:
        in_features: ``E``, width of the space of images and texts.
        text_width: ``D``, width of a token's vector on the text side.
        n_context: ``P``.
        init_std: Standard deviation of a new context.

    Attributes:
        context: Vectors of the last classes, ``(P, D)``.
        texts: From names to words, with the text side; ``None`` in a network that learns no more.

    Source:
        Zhou et al., CoOp, arXiv 2109.01134; a context an experience: Qiao et al., arXiv 2405.13383,
        released code 4662b80 (``clip_pegp_prompt``).
        Differs: no full stop behind the name; embeddings of old classes are kept instead of their
        contexts; the text side runs in float32, and cosines as in :class:`ZeroShotHead`.

    Example:
        >>> from types import SimpleNamespace
        >>> head = TextContextHead(2, text_width=2, n_context=1)
        >>> def behind(context, words):
        ...     signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
        ...     return torch.nn.functional.normalize(signs[: len(words)] * context, dim=1)
        >>> side = SimpleNamespace(encode_context=behind)
        >>> head.texts = SimpleNamespace(words=list, side=side)
        >>> head.grow(2)
        >>> head.start(["cat", "dog"])
        >>> head.context.data = torch.tensor([[3.0, 4.0]])
        >>> head(torch.tensor([[0.0, 1.0]])).tolist()
        [[0.800000011920929, -0.800000011920929]]
    """

    free_tensors = ("words",)
    first: Tensor
    words: Tensor
    told: Tensor

    def __init__(
        self,
        in_features: int,
        *,
        text_width: int,
        n_context: int = 16,
        init_std: float = _STD,
    ) -> None:
        super().__init__(in_features)
        self.init_std = init_std
        self.context = nn.Parameter(torch.zeros(n_context, text_width))
        self.register_buffer("told", torch.zeros(n_context, text_width))  # what rows were made of
        self.register_buffer("first", torch.zeros((), dtype=torch.long))  # row of the last context
        self.register_buffer("words", torch.zeros(0, dtype=torch.uint8))  # of its rows, as UTF-8
        self._names: tuple[str, ...] = ()

    def read_texts(self, side: Any) -> bool:
        """Read no text side that trains: its contexts stand in front of the frozen one."""
        return self.texts is None

    def grow(self, n_rows: int) -> None:
        """Lengthen to ``n_rows``; old rows stay, with what their context has learnt."""
        self.refresh()
        super().grow(n_rows)

    @torch.no_grad()
    def start(self, names: Sequence[str]) -> None:
        """Begin the last rows with a new context.

        Raises:
            ConfigError: If it has no text side any more, there is no word for a class, or one is
                too long to stand behind a context.
        """
        if self.texts is None:
            raise ConfigError(
                "a text_context head of an exported network knows the classes that it was made "
                "with; for others build it with a backbone that has a text side"
            )
        words = self.texts.words(names)
        context = self.init_std * torch.randn(self.context.shape)
        self.context = nn.Parameter(context.to(self.context))  # another one: no momentum of the old
        self._names = tuple(words)
        letters = list("\0".join(words).encode())
        self.words = torch.tensor(letters, dtype=torch.uint8, device=self.words.device)
        self.first.fill_(len(self.rows) - len(words))
        self._write()

    def forward(self, features: Tensor) -> Tensor:
        """Return logits: ``(B, E)`` to ``(B, R)``; -1000 for rows that have no text yet.

        With gradient the last classes go through the text side; without, only where their context
        has changed since.
        """
        if torch.is_grad_enabled() and self.context.requires_grad and self._learns:
            return self._cosines(features, self._with(self._embed()))
        self.refresh()
        return self._cosines(features, self.rows)

    def refresh(self) -> None:
        """Let the rows of the last classes be those of their context."""
        if self._learns and not torch.equal(self.told, self.context):
            self._write()

    @property
    def _learns(self) -> bool:
        return self.texts is not None and bool(self._names)

    def _embed(self) -> Tensor:
        embeddings: Tensor = self.texts.side.encode_context(self.context, self._names)
        return embeddings.to(self.rows.dtype)

    def _with(self, last: Tensor) -> Tensor:
        start = int(self.first)
        return torch.cat([self.rows[:start], last, self.rows[start + len(last) :]])

    @torch.no_grad()
    def _write(self) -> None:
        self.rows = self._with(self._embed())
        self.told.copy_(self.context)

    # --- what is kept --------------------------------------------------------------------------

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.refresh()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        text = bytes(self.words.tolist()).decode(errors="replace")
        self._names = tuple(text.split("\0")) if text else ()


def build_text_context(
    *,
    in_features: FeatureWidth,
    backbone: Backbone,
    class_words: dict[str, str] | None = None,
    n_context: Width = 16,
    init_std: InitBound = _STD,
) -> TextContextHead:
    """Build a :class:`TextContextHead`: prompts of the text side, of each experience its own.

    Args:
        in_features: ``E``.
        backbone: The frozen network, with a text side.
        class_words: What each class is called in the texts, see :func:`build_zero_shot`.
        n_context: Vectors in front of a name.
        init_std: Standard deviation of a new context.

    Raises:
        ConfigError: If the backbone has no text side that takes vectors, or something else than
            its embedding is read.
    """
    texts = ClassTexts(backbone, words=class_words)
    if not isinstance(backbone, ContextSide) or not backbone.text_width:
        raise ConfigError(
            f"the text side of a {type(backbone).__name__} takes no vectors in front of a name; "
            "take backbone 'open_clip' or 'dual_encoder', or head 'zero_shot'"
        )
    check_reads_embedding("text_context", backbone, in_features)
    head = TextContextHead(
        in_features, text_width=backbone.text_width, n_context=n_context, init_std=init_std
    )
    head.texts = texts
    head.scale.fill_(texts.side.logit_scale)
    return head
