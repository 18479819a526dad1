"""Logits that are cosines to the texts of class names: nothing is learnt of any image."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.precision import in_double
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.backbones.text_tower import check_templates
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.head import Head
from avalanche_peftcl.models.heads.rows import MASK_VALUE
from avalanche_peftcl.registry.ranges import FeatureWidth
from avalanche_peftcl.registry.wording import join

_MOST = 3  # names in a message


class ClassTexts:
    """From names of classes to the embeddings of their texts.

    Args:
        side: A backbone with a text side.
        words: What each class is called in the texts, by its name; of a name like ``"photo/dog"``
            the last part will do. ``None``: the last part of the name, with spaces for ``_``.
        templates: Sentences with ``{}`` where the word stands, as of
            :meth:`.TextSide.encode_text`.

    Raises:
        ConfigError: If there is no text side, or a template has no ``{}``.

    Example:
        >>> from types import SimpleNamespace
        >>> texts = ClassTexts(
        ...     SimpleNamespace(has_text=True), words={"n02099601": "golden retriever"}
        ... )
        >>> texts.words(["n02099601", "photo/n02099601"])
        ['golden retriever', 'golden retriever']
        >>> texts.words(["n01443537"])
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: class_words has no word for n01443537; give one for \
each class, or leave class_words out where the names are words
    """

    def __init__(
        self,
        side: Backbone,
        *,
        words: Mapping[str, str] | None = None,
        templates: Sequence[str] | None = None,
    ) -> None:
        if not side.has_text:
            raise ConfigError(
                f"a {type(side).__name__} has no text side, which the names of classes are encoded "
                "by; take backbone 'open_clip' or 'dual_encoder', or another head"
            )
        self.side: Any = side  # has what TextSide says
        self._words = None if words is None else dict(words)
        self._templates = check_templates(templates)

    def words(self, names: Sequence[str]) -> list[str]:
        """Return what classes are called in the texts.

        Raises:
            ConfigError: If there is no word for one of them.
        """
        last = [name.rsplit("/", 1)[-1] for name in names]
        if self._words is None:
            return [name.replace("_", " ") for name in last]
        found = [self._words.get(a, self._words.get(b)) for a, b in zip(names, last, strict=True)]
        if missing := [name for name, word in zip(names, found, strict=True) if word is None]:
            raise ConfigError(
                f"class_words has no word for {join(missing, most=_MOST)}; give one for each "
                "class, or leave class_words out where the names are words"
            )
        return [word for word in found if word is not None]

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Return the embeddings of classes by their names, ``(C, E)``, on unit norm."""
        return self.of_words(self.words(names))

    def of_words(self, words: Sequence[str]) -> Tensor:
        """Return the embeddings of classes by what they are called, ``(C, E)``, on unit norm."""
        embeddings: Tensor = self.side.encode_text(words, self._templates)
        return embeddings


@exportable
class ZeroShotHead(Head):
    r"""Logits from the texts of class names.

    .. math:: \tau \cos(z, w_r)

    with :math:`\tau` the factor of the backbone and :math:`w_r` the embedding of a class's name in
    all templates. What trains in front of it trains by these logits. Embeddings are computed when
    a class comes and are kept in buffers: an exported network needs no text side.

    **Where a module trains the text side** (:meth:`read_texts`) the texts move with it, those of
    old classes too. With gradient the classes of the experience go through the text side in each
    step; all others are held as they were when it began. Without gradient, and in what is saved,
    all are as the text side is now: old classes are known by texts that have moved, unless a
    projection keeps them.

    Args:
        in_features: ``E``, width of the space of images and texts.

    Attributes:
        texts: From names to embeddings; ``None`` in a network that learns no more classes.

    Source:
        Radford et al., CLIP, arXiv 2103.00020. Differs: cosines are summed in float64, under
        autocast too, so that logits are the same to the bit however many classes come.

    Example:
        >>> head = ZeroShotHead(2)
        >>> head.texts = lambda names: torch.tensor([[1.0, 0.0], [0.0, 1.0]])[: len(names)]
        >>> head.grow(2)
        >>> head.start(["cat", "dog"])
        >>> head(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    named = True
    row_tensors: tuple[str, ...] = ("rows",)
    rows: Tensor
    scale: Tensor
    held: Tensor
    at_hand: Tensor
    called: Tensor

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features)
        self.texts: Any = None
        self.register_buffer("rows", torch.zeros(0, in_features))
        self.register_buffer("scale", torch.ones(()))
        self._side: Any = None  # of texts that move
        self._words: list[str] = []  # of each row, where they do

    def read_texts(self, side: Any) -> bool:
        """Take the text side of a module that trains it; a network that learns no more needs none.

        Args:
            side: As of :meth:`.Head.read_texts`.
        """
        if self.texts is None or self._side is not None:
            return True
        self._side = self.texts.side = side
        self.register_buffer("held", torch.zeros_like(self.rows))  # as the experience began
        self.register_buffer("at_hand", torch.zeros(0, dtype=torch.long))  # its rows
        self.register_buffer("called", torch.zeros(0, dtype=torch.uint8))  # the words, as UTF-8
        self.row_tensors = ("rows", "held")
        self.free_tensors = ("at_hand", "called")
        self.statistics = ("held", "at_hand", "called")
        return True

    def grow(self, n_rows: int) -> None:
        """Lengthen to ``n_rows``; old rows stay, as their texts are now."""
        self.refresh()
        super().grow(n_rows)
        if self._side is not None:
            self.held = self.rows.clone()

    def learn_rows(self, rows: Sequence[int]) -> None:
        """Hear which rows' classes are in the experience that begins."""
        if self._side is not None:
            self.at_hand = torch.tensor(rows, dtype=torch.long, device=self.rows.device)

    @torch.no_grad()
    def start(self, names: Sequence[str]) -> None:
        """Begin the last rows with the texts of their classes.

        Raises:
            ConfigError: If it has no text side any more, or there is no word for a class.
        """
        if self.texts is None:
            raise ConfigError(
                f"a {type(self).__name__} of an exported network knows the classes that it was "
                "made with; for others build it with a backbone that has a text side"
            )
        self.rows[len(self.rows) - len(names) :] = self.texts(names).to(self.rows)
        if self._side is not None:
            self.held = self.rows.clone()
            self._words += self.texts.words(names)
            letters = list("\0".join(self._words).encode())
            self.called = torch.tensor(letters, dtype=torch.uint8, device=self.rows.device)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits: ``(B, E)`` to ``(B, R)``; -1000 for rows that have no text yet."""
        if self._side is None:
            return self._cosines(features, self.rows)
        if torch.is_grad_enabled() and self._side.trains:
            words = [self._words[row] for row in self.at_hand.tolist()]
            texts = self.texts.of_words(words).to(self.held)
            return self._cosines(features, self.held.index_copy(0, self.at_hand, texts))
        self.refresh()
        return self._cosines(features, self.rows)

    @torch.no_grad()
    def refresh(self) -> None:
        """Let all rows be as the text side is now, where it may have moved."""
        if self._side is not None and self._words and len(self._words) == len(self.rows):
            self.rows = self.texts.of_words(self._words).to(self.rows)

    # --- what is kept --------------------------------------------------------------------------

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.refresh()
        super()._save_to_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self._side is not None:
            text = bytes(self.called.tolist()).decode(errors="replace")
            self._words = text.split("\0") if text else []

    def _cosines(self, features: Tensor, rows: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            z = in_double(F.normalize(features.float(), dim=1))
            logits = (self.scale * (z @ rows.T.to(z.dtype))).float()
        return logits.masked_fill(~rows.any(dim=1), MASK_VALUE)


def check_reads_embedding(head: str, backbone: Backbone, in_features: int) -> None:
    """Refuse to compare texts with anything but the embedding of an image.

    Raises:
        ConfigError: If a head of that name reads features of another width.
    """
    if backbone.out_features != in_features:
        raise ConfigError(
            f"a {head} head reads the embedding of an image, of width {backbone.out_features}, "
            f"and not {in_features} features; leave out features and frozen_section"
        )


def build_zero_shot(
    *,
    in_features: FeatureWidth,
    backbone: Backbone,
    class_words: dict[str, str] | None = None,
    templates: list[str] | None = None,
) -> ZeroShotHead:
    """Build a :class:`ZeroShotHead`: a classifier by the names of classes alone.

    Args:
        in_features: ``E``.
        backbone: The frozen network, with a text side.
        class_words: What each class is called in the texts, by its name, which for a folder of
            images is that of the class's folder; of a name like ``"photo/dog"`` the last part will
            do. ``None``: that part itself, with spaces for ``_``.
        templates: Sentences with ``{}`` where the word stands, such as ``"a photo of a {}."``;
            their embeddings are averaged. ``None``: the word alone.

    Raises:
        ConfigError: If the backbone has no text side, something else than its embedding is read, or
            a template has no ``{}``.
    """
    head = ZeroShotHead(in_features)
    head.texts = ClassTexts(backbone, words=class_words, templates=templates)
    check_reads_embedding("zero_shot", backbone, in_features)
    head.scale.fill_(head.texts.side.logit_scale)
    return head
