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

        That of a class is computed from its own sentences alone and kept; it is computed again
        where a weight has changed or goes by another precision.

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
        found = []
        for name in names:
            key = name, templates
            if key not in self._known:
                self._known[key] = self._embed(name, templates)
            found.append(self._known[key])
        return torch.stack(found)

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

    def _embed(self, name: str, templates: tuple[str, ...]) -> Tensor:
        tokens = self.tokens([template.replace("{}", name) for template in templates])
        with torch.autocast(tokens.device.type, enabled=False):
            texts = F.normalize(self.module(tokens).float(), dim=1)  # (T, E)
            return F.normalize(texts.mean(dim=0), dim=0)


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
