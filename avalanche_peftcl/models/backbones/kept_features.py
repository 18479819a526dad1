"""Frozen features of test images, which come again after each experience: computed once."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_MOST = 2**28  # bytes of a network's features
_KEEPS: ContextVar[bool] = ContextVar("_KEEPS", default=False)
_FIRST: ContextVar[bool] = ContextVar("_FIRST", default=False)


class KeptFeatures:
    """What a frozen network gave for a minibatch, by all that the bits of it depend on.

    That is what enters its first block, to the bit, the precision, the threads and the weights. So
    what is found is what would be computed, laid out in memory as it was, since sums over it round
    by that. Those that were not asked for longest are dropped.

    Args:
        most: Bytes that are kept.

    Attributes:
        computed: How many minibatches were computed.

    Example:
        >>> kept, tokens = KeptFeatures(), torch.ones(2, 3, 4)
        >>> network = nn.Linear(4, 4).requires_grad_(False)
        >>> first, again = (kept.get(network, tokens, lambda: tokens.sum(1)) for _ in range(2))
        >>> torch.equal(first, again), kept.computed
        (True, 1)
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most, self._bytes = most, 0
        self._found: OrderedDict[bytes, tuple[Tensor, tuple[int, ...]]] = OrderedDict()
        self._weights: tuple[tuple[int, int, int], ...] = ()
        self.computed = 0

    def get(
        self, network: nn.Module, tokens: Tensor, compute: Callable[[], Tensor], what: str = ""
    ) -> Tensor:
        """Return the features of a minibatch, which are the caller's.

        Args:
            network: The frozen network.
            tokens: What enters its first block, ``(B, N, D)``, on the CPU.
            compute: Computes them, ``(B, E)``.
            what: Which features; of one network there may be several.
        """
        tensors = (*network.parameters(), *network.buffers())
        weights = tuple((id(t), t.data_ptr(), t._version) for t in tensors)
        if weights != self._weights:
            self._found.clear()
            self._weights, self._bytes = weights, 0
        key = _key(tokens, what)
        if key in self._found:
            self._found.move_to_end(key)
            flat, strides = self._found[key]
            return torch.empty_strided(flat.shape, strides, dtype=flat.dtype).copy_(flat)
        found = compute()
        self.computed += 1
        flat = found.detach().clone(memory_format=torch.contiguous_format)
        self._found[key] = flat, found.stride()
        self._bytes += flat.nbytes
        while self._bytes > self._most:
            _, (dropped, _) = self._found.popitem(last=False)
            self._bytes -= dropped.nbytes
        return found


_KEPT: WeakKeyDictionary[nn.Module, KeptFeatures] = WeakKeyDictionary()


@contextmanager
def keeping_features(keeps: bool) -> Iterator[None]:
    """Let frozen features that are asked for in it be kept, or as ``keeps`` says not.

    On the CPU alone: elsewhere to read all that enters a network takes as long as a pass.
    """
    with _set(_KEEPS, keeps):
        yield


@contextmanager
def as_first_seen() -> Iterator[None]:
    """Let every image be computed as if it came for the first time."""
    with _set(_FIRST, True):
        yield


@contextmanager
def _set(variable: ContextVar[bool], value: bool) -> Iterator[None]:
    before = variable.set(value)
    try:
        yield
    finally:
        variable.reset(before)


def kept_feature(
    network: nn.Module, tokens: Tensor, compute: Callable[[], Tensor], what: str = ""
) -> Tensor:
    """Return what :meth:`KeptFeatures.get` does where features are kept, else compute them."""
    if torch.compiler.is_compiling() or not _KEEPS.get() or _FIRST.get():
        return compute()
    if tokens.device.type != "cpu":
        return compute()
    return _KEPT.setdefault(network, KeptFeatures()).get(network, tokens, compute, what)


def _key(tokens: Tensor, what: str) -> bytes:
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    around = what, tokens.dtype, tuple(tokens.shape), tokens.stride(), low, torch.get_num_threads()
    digest = hashlib.sha256(repr(around).encode())
    flat = tokens.detach().contiguous().flatten()
    digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()
