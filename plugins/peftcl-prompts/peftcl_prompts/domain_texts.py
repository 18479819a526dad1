"""Texts of class names behind vectors that train, anew in each experience, one for an image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import ClassTexts, TextContextHead, ZeroShotHead
from peftcl_prompts.experience_heads import OfExperiences, by_class


class DomainTexts(OfExperiences):
    r"""Logits :math:`\tau \cos(z, w_{t,c})` of the experience :math:`t` that a feature comes with.

    The last entry of a feature is the number of its experience, from 0. The text :math:`w_{t,c}` is
    that of the class's name behind the context of the experience, see
    :class:`~avalanche_peftcl.models.TextContextHead`. Of experiences that ended the embeddings
    stay; a class that was not in the image's experience has the logit -1000.

    Args:
        in_features: ``E + 1``.
        text_width: ``D``, width of a token's vector on the text side.
        n_context: Vectors in front of a name.
        init_std: Standard deviation of a new context.

    Attributes:
        texts: From names to words, with the text side; ``None`` in a network that learns no more.
        past: The texts of experiences that ended.
        current: The context of the experience that trains, and its texts.
        classes: Class row of each text, ``(N,)``, those of the past first.
        owners: Number of its experience, ``(N,)``.
    """

    named = True
    free_tensors = ("names", "classes", "owners")
    names: Tensor
    classes: Tensor
    owners: Tensor

    def __init__(
        self, in_features: int, *, text_width: int, n_context: int, init_std: float
    ) -> None:
        super().__init__(in_features)
        self.text_width, self.n_context, self.init_std = text_width, n_context, init_std
        self.texts: ClassTexts | None = None
        self.past = ZeroShotHead(in_features - 1)
        self.current = self._fresh()
        self.register_buffer("names", torch.zeros(0, dtype=torch.uint8))  # of all rows, as UTF-8
        for name in ("classes", "owners"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.long))
        self._begins: list[int] = []

    def _fresh(self) -> TextContextHead:
        return TextContextHead(
            self.in_features - 1,
            text_width=self.text_width,
            n_context=self.n_context,
            init_std=self.init_std,
        )

    def learn_rows(self, rows: Sequence[int]) -> None:
        """Hear the rows of the classes of the experience that begins."""
        self._begins = list(rows)

    def start(self, names: Sequence[str]) -> None:
        """Hear what the classes of new rows are called."""
        letters = list("\0".join([*self._named(), *names]).encode())
        self.names = torch.tensor(letters, dtype=torch.uint8, device=self.names.device)

    def _named(self) -> list[str]:
        text = bytes(self.names.tolist()).decode()
        return text.split("\0") if text else []

    @torch.no_grad()
    def begin_experience(self, number: int) -> None:
        """Begin the context of an experience.

        Raises:
            ConfigError: If it has no text side any more.
        """
        if len(self.owners) and int(self.owners[-1]) == number:
            return
        if self.texts is None:
            raise ConfigError(
                "the texts of an exported network are those of the domains that it was made with; "
                "for others build it with a backbone that has a text side"
            )
        past, now = self.past, self.current
        now.refresh()
        past.rows = torch.cat([past.rows, now.rows])
        past.scale.copy_(now.scale)
        fresh = self.current = self._fresh().to(now.rows.device)
        fresh.texts = self.texts
        fresh.scale.copy_(now.scale)
        fresh.grow(len(self._begins))
        named = self._named()
        fresh.start([named[row] for row in self._begins])
        begun = torch.tensor(self._begins, device=self.classes.device)
        self.classes = torch.cat([self.classes, begun])
        self.owners = torch.cat([self.owners, torch.full_like(begun, number)])

    def forward(self, features: Tensor) -> Tensor:
        """Return logits: ``(B, E + 1)`` to ``(B, R)``."""
        z = features[:, :-1]
        logits = torch.cat([self.past(z), self.current(z)], dim=1)
        return by_class(logits, features[:, -1].round(), self.classes, self.owners)
