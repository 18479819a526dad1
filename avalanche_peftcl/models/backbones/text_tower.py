"""The frozen text side of a backbone: class names to embeddings, each computed once."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.wording import show

Tokenize = Callable[[list[str]], Tensor]
"""From texts to token ids, ``(B, n)``, all of one length."""
_PROBES = ("a", "zebra", "7")  # texts that begin differently
_ROWS = 8


class TextTower:
    r"""What encodes texts, frozen and in eval mode.

    It is no child of the backbone that has it: no state dict, optimizer or exported file holds it.
    It goes to the backbone's device with it, and copies of a backbone share it.

    .. math:: w_c = \mathrm{norm}\Bigl(\sum_t \mathrm{norm}(f(t(c)))\Bigr)

    Args:
        module: From token ids ``(B, n)`` to embeddings ``(B, E)``; they need not be normalised.
        tokenize: From texts to token ids, or what returns that when it is first needed.
        masked: Whether the network sees nothing of padding, which can then be left out.

    Attributes:
        module: The network.

    Source:
        Ensembles of templates: Radford et al., CLIP, arXiv 2103.00020. Differs: nothing.

    Example:
        >>> def count(texts):
        ...     return torch.tensor([[len(text), text.count(" ")] for text in texts])
        >>> class Double(nn.Module):
        ...     def forward(self, tokens):
        ...         return 2.0 * tokens
        >>> tower = TextTower(Double(), count)
        >>> tower.encode(["my cat", "gnu"], ["{}"]).mul(10).round()
        tensor([[10.,  2.],
                [10.,  0.]])
    """

    def __init__(self, module: nn.Module, tokenize: Tokenize, *, masked: bool = False) -> None:
        self.module = module.requires_grad_(False).eval()
        self.tokenize, self.masked = tokenize, masked
        self._known: dict[tuple[Any, ...], Tensor] = {}
        self._known_of: tuple[Any, ...] = ()  # the weights that these are of
        self._rooms: dict[tuple[tuple[str, ...], int], tuple[Tensor, int]] = {}  # the last one

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return token ids of texts where the network is, ``(B, n)``."""
        device = next((t.device for t in self.module.state_dict().values()), None)
        return self.tokenize(list(texts)).to(device)

    @torch.no_grad()
    def encode(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return the embedding of each name, see :meth:`.TextSide.encode_text`.

        That of a class is computed once and kept; it is computed again where a weight has changed
        or goes by another precision. What the network runs of a sentence has a shape that its own
        length says: 8 sentences of that length, missing ones filled with copies, without padding
        where the network sees nothing of it. So it is the same whatever was asked for beside it:
        to rounding anywhere, and to the bit where a product's rows do not depend on each other.

        Args:
            names: ``C`` names.
            templates: Sentences with ``{}`` where the name stands; ``None``: the name alone.

        Returns:
            ``(C, E)`` in float32, where the network is.

        Raises:
            ConfigError: If there are no names, one is empty, or a template has no ``{}``.
        """
        templates = check_templates(templates)
        check_names(names)
        tensors = [*self.module.parameters(), *self.module.buffers()]
        state = tuple((t.data_ptr(), t._version, t.dtype, t.device) for t in tensors)
        if state != self._known_of:
            self._known, self._known_of = {}, state
        if new := [n for n in dict.fromkeys(names) if (n, templates) not in self._known]:
            sentences = [t.replace("{}", name) for name in new for t in templates]
            texts = self._embed(sentences).view(len(new), len(templates), -1)  # (C, T, E)
            for name, own in zip(new, texts, strict=True):
                self._known[name, templates] = F.normalize(own.mean(dim=0), dim=0)
        return torch.stack([self._known[name, templates] for name in names])

    def compute(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return what :meth:`encode` returns, computed now and with gradient; nothing is kept.

        Texts of one length go through the network together, without copies that fill up.

        Args:
            names: As there.
            templates: As there.
        """
        templates = check_templates(templates)
        check_names(names)
        place = {name: i for i, name in enumerate(dict.fromkeys(names))}
        sentences = [t.replace("{}", name) for name in place for t in templates]
        texts = self._embed(sentences, fill_up=False).view(len(place), len(templates), -1)
        rows = F.normalize(texts.mean(dim=1), dim=1)  # (C, E)
        return rows[[place[name] for name in names]]

    @property
    def width(self) -> int:
        """Width ``D`` of a token's vector, as the network's first embedding has it; 0 without."""
        table = self._table()
        return 0 if table is None else table.embedding_dim

    def encode_context(self, context: Tensor, names: Sequence[str]) -> Tensor:
        """Return the embedding of each name behind vectors that stand for words.

        They take the places between the token that begins every text, if there is one, and the
        name's own tokens. Gradients flow to them, and to nothing else.

        Args:
            context: Vectors, ``(P, D)``.
            names: ``C`` names.

        Returns:
            ``(C, E)`` in float32, on unit norm.

        Raises:
            ConfigError: If there are no names or one is empty, the network embeds no tokens or
                tokens of another width, or a name and its context are longer than a text may be.
        """
        check_names(names)
        table = self._table()
        if table is None or context.shape[1] != table.embedding_dim:
            raise ConfigError(
                f"vectors of width {context.shape[1]} stand for no words of a "
                f"{type(self.module).__name__}, whose own have {self.width}"
            )
        ids, start = self._with_room(tuple(names), len(context))
        words = slice(start, start + len(context))

        def put(layer: nn.Module, args: tuple[Any, ...], vectors: Tensor) -> Tensor:
            given = context.to(vectors).expand(len(vectors), -1, -1)
            return torch.cat([vectors[:, : words.start], given, vectors[:, words.stop :]], dim=1)

        handle = table.register_forward_hook(put)
        try:
            with torch.autocast(ids.device.type, enabled=False):
                return F.normalize(self.module(ids).float(), dim=1)
        finally:
            handle.remove()

    def _with_room(self, names: tuple[str, ...], length: int) -> tuple[Tensor, int]:
        """Return token ids of names with so many places, ``(C, n)``, and where these begin.

        At the places stand ids of the names' own words, which are neither padding nor an end.
        """
        if (names, length) in self._rooms:
            ids, start = self._rooms[names, length]
            return ids.to(self.tokens(names[:1]).device), start
        ids, probe = self.tokens(names), self.tokens(_PROBES)
        start = int((torch.cat([ids[:, 0], probe[:, 0]]) == ids[0, 0]).all())
        cut = ids[:, ids.shape[1] - length :] if length < ids.shape[1] else ids
        full = (cut != probe[0, -1]).any(dim=1).nonzero()[:, 0].tolist()
        if full:
            raise ConfigError(
                f"{length} vectors of context and the name {show(names[full[0]])} are longer than "
                f"the {ids.shape[1]} tokens of a text; take a smaller n_context, or shorter words"
            )
        own = ids[:, start : start + 1].expand(-1, length)
        whole = torch.cat([ids[:, :start], own, ids[:, start : ids.shape[1] - length]], dim=1)
        if self.masked:
            whole = whole[:, : int((whole != probe[0, -1]).any(dim=0).nonzero().max()) + 1]
        self._rooms = {(names, length): (whole, start)}
        return whole, start

    def _table(self) -> nn.Embedding | None:
        return next((m for m in self.module.modules() if isinstance(m, nn.Embedding)), None)

    def _embed(self, texts: Sequence[str], *, fill_up: bool = True) -> Tensor:
        """Return the embedding of each text, ``(n, E)``, on unit norm."""
        fill, device = self._fill(), self.tokens(_PROBES[:1]).device
        by_length: dict[int, list[tuple[int, Tensor]]] = {}
        for i, text in enumerate(texts):
            ids = self.tokenize([text])[0]
            if fill is not None:
                ids = ids[: int((ids != fill).nonzero().max()) + 1]
            by_length.setdefault(len(ids), []).append((i, ids))
        found: dict[int, Tensor] = {}
        for rows in by_length.values():
            size = _ROWS if fill_up else len(rows)
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                filled = [ids for _, ids in some] + [some[-1][1]] * (size - len(some))
                with torch.autocast(device.type, enabled=False):
                    made = F.normalize(self.module(torch.stack(filled).to(device)).float(), dim=1)
                found |= zip((i for i, _ in some), made[: len(some)], strict=True)
        return torch.stack([found[i] for i in range(len(texts))])

    def _fill(self) -> int | None:
        """Return the token behind the end of a text, if the network sees nothing of it."""
        short = self.tokenize(list(_PROBES[:1]))[0]
        padded = self.masked and len(short) > 1 and bool(short[-1] == short[-2])
        return int(short[-1]) if padded else None


def check_names(names: Sequence[str]) -> None:
    """Refuse names that are none.

    Raises:
        ConfigError: If there are no names, or one is empty.

    Example:
        >>> check_names(["cat", ""])
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: class names must be words, one a class; got ['cat', '']
    """
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ConfigError(f"class names must be words, one a class; got {show(list(names))}")


class Later:
    """A tokenizer that is made when it is first called: a network that predicts needs none.

    Args:
        make: Makes it.
    """

    def __init__(self, make: Callable[[], Tokenize]) -> None:
        self._make = make
        self._made: Tokenize | None = None

    def __call__(self, texts: list[str]) -> Tensor:
        """Return token ids of texts, ``(B, n)``."""
        self._made = self._made or self._make()
        return self._made(texts)


def check_templates(templates: Sequence[str] | None) -> tuple[str, ...]:
    """Return templates that can be used; the name alone for ``None``.

    Raises:
        ConfigError: If there are none, or one has no ``{}``.

    Example:
        >>> check_templates(["a photo"])
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: a template is a sentence with {} where the name of \
the class stands, such as 'a photo of a {}.'; got ['a photo']
    """
    if templates is None:
        return ("{}",)
    if isinstance(templates, str) or not templates or not all("{}" in each for each in templates):
        raise ConfigError(
            "a template is a sentence with {} where the name of the class stands, such as "
            f"'a photo of a {{}}.'; got {show(templates)}"
        )
    return tuple(templates)
