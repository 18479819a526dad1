"""How many images pass through a backbone, counted where they reach its last block."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn


class _Tally:
    """What was counted in this process; copies and views of a network count as it does."""

    def __init__(self) -> None:
        self.passes = 0
        self.listeners: WeakSet[Any] = WeakSet()
        self.muted = 0  # contexts in which nothing counts

    @property
    def hears(self) -> bool:
        return bool(self.listeners) and not self.muted and not torch.compiler.is_compiling()


_tally = _Tally()


def passes_so_far() -> int:
    """Return how many images have reached a last block while somebody listened, ever."""
    return _tally.passes


def listen_for_passes(listener: object) -> None:
    """Let passes be counted as long as ``listener`` lives, or until it stops listening."""
    _tally.listeners.add(listener)


def stop_listening(listener: object) -> None:
    """Let nothing be counted for ``listener`` any more."""
    _tally.listeners.discard(listener)


@contextmanager
def uncounted_passes() -> Iterator[None]:
    """Count no passes inside the context, which may decorate a function too.

    For what is no part of a method: a metric that runs images through the network when an
    experience begins or ends.

    Example:
        >>> with uncounted_passes():
        ...     features = nn.Identity()(torch.zeros(2, 3))
    """
    _tally.muted += 1
    try:
        yield
    finally:
        _tally.muted -= 1


def count_passes_of(kind: type) -> None:
    """Let a class of backbones count the images that pass through it; twice is as once.

    An image counts where it comes to the last block, in whatever view, or to ``forward``. What
    :func:`torch.compile` runs is not counted.

    Args:
        kind: It has ``attend(index, tokens)`` and ``depth``.
    """
    for name, wrap in (("attend", _counting_attend), ("forward", _counting_forward)):
        method = getattr(kind, name)
        if not counts(method):
            setattr(kind, name, wrap(method))


def counts(method: Callable[..., Any]) -> bool:
    """Whether a method counts the images that it is handed."""
    return bool(getattr(method, "counts_passes", False))


def count_calls_of(network: nn.Module) -> torch.utils.hooks.RemovableHandle:
    """Let every call of a network count its images, until the handle is removed."""
    return network.register_forward_pre_hook(_count_call)


def counts_calls(network: nn.Module) -> bool:
    """Whether :func:`count_calls_of` was called for it, or for what it is a copy of."""
    return _count_call in network._forward_pre_hooks.values()


def _count_call(network: nn.Module, images: tuple[Any, ...]) -> None:
    if _tally.hears and images and isinstance(images[0], Tensor):
        _tally.passes += len(images[0])


def _counting_attend(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def attend(self: Any, index: int, tokens: Tensor, *args: Any, **options: Any) -> Tensor:
        if index != self.depth - 1 or not _tally.hears:
            return method(self, index, tokens, *args, **options)
        return _counted(len(tokens), method, self, index, tokens, *args, **options)

    attend.counts_passes = True  # type: ignore[attr-defined]  # what counts() asks for
    return attend


def _counting_forward(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def forward(self: Any, images: Tensor, *args: Any, **options: Any) -> Tensor:
        if not _tally.hears:
            return method(self, images, *args, **options)
        return _counted(len(images), method, self, images, *args, **options)

    forward.counts_passes = True  # type: ignore[attr-defined]  # what counts() asks for
    return forward


def _counted(images: int, method: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """Count images once, whatever else that counts is called inside."""
    _tally.passes += images
    with uncounted_passes():
        return method(*args, **options)
