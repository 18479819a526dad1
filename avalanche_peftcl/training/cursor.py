"""Where a strategy is inside an experience, and the way back to there."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from avalanche.benchmarks.utils.data_loader import MultiDatasetDataLoader
from torch import Tensor
from torch.utils.data import DataLoader

from avalanche_peftcl.models.rng import random_state, set_random_state


class Cursor:
    """Hands out the minibatches of an experience, and says after how many of them it stands.

    A strategy that goes on redoes the start of the experience, draws the minibatches that were
    trained already from a loader that shuffles as it did then, and has its state restored before
    the first new one.

    Args:
        device: Whose random generator is used.

    Attributes:
        every: Call :attr:`save` after so many minibatches, once a step is complete; ``None`` never.
        save: Called with the position, plain values and tensors.
        epoch: The epoch that runs, from 0.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.every: int | None = None
        self.save: Callable[[dict[str, Any]], None] | None = None
        self.epoch = 0
        self._goal: tuple[Mapping[str, Any], Callable[[], None]] | None = None
        self._trained = 0  # minibatches since the last call of save
        self._start: dict[str, Any] = {}  # generators before the epoch's first minibatch
        self._before: list[Tensor] = []  # torch's generator before each, if that matters
        self._active = True

    def go_to(self, position: Mapping[str, Any], restore: Callable[[], None]) -> None:
        """Let the next experience go on from a position that :attr:`save` was called with.

        Args:
            position: The goal.
            restore: Brings the strategy and the random generators to their state there.
        """
        self._goal = position, restore

    @property
    def goes_on(self) -> bool:
        """Whether the epoch that begins is one that had begun, and goes on at its goal."""
        return self._goal is not None

    def epochs(self, count: int) -> Iterator[int]:
        """Return the epochs to run of ``count``; those before the goal are left out."""
        first = 0
        if self._goal is not None:
            position, restore = self._goal
            first = position["epoch"]
            restore()  # what the epoch's start looks at
        for self.epoch in range(first, count):
            yield self.epoch

    def minibatches(self, loader: Any) -> Iterator[tuple[int, Any]]:
        """Return the minibatches of ``loader`` to train on, each with its number in the epoch."""
        skipped = 0
        if self._goal is not None:
            position, restore = self._goal
            batches, skipped = self._skip(loader, position), position["iteration"]
            restore()
            self._goal = None
        else:
            batches = self._noted(loader)
        yield from enumerate(batches, start=skipped)

    def advance(self, iteration: int, *, stepped: bool) -> None:
        """Say that ``iteration`` minibatches of the epoch are trained.

        Args:
            iteration: How many.
            stepped: Whether the last of them completed a step; in the midst of one there are
                gradients that no position holds.
        """
        if self.every is None or self.save is None or not self._active:
            return
        due = self.due(stepped=stepped)
        self._trained += 1
        if due:
            self._trained = 0
            position = {"epoch": self.epoch, "iteration": iteration, "start": self._start}
            self.save(position | {"before": torch.stack(self._before) if self._before else None})

    def due(self, *, stepped: bool) -> bool:
        """Say whether :meth:`advance` will call :attr:`save` after the minibatch just trained."""
        if self.every is None or self.save is None or not self._active:
            return False
        return stepped and self._trained + 1 >= self.every

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Call :attr:`save` for nothing inside the context."""
        self._active = False
        try:
            yield
        finally:
            self._active = True

    def _noted(self, loader: Any) -> Iterator[Any]:
        if self.every is None or not self._active:
            yield from loader
            return
        self._start, self._before = random_state(self.device), []
        shuffles_once, source = _shuffles_once(loader), iter(loader)
        while True:
            before = None if shuffles_once else torch.get_rng_state()
            try:
                minibatch = next(source)
            except StopIteration:
                return
            if before is not None:
                self._before.append(before)
            yield minibatch

    def _skip(self, loader: Any, goal: Mapping[str, Any]) -> Iterator[Any]:
        """Draw the minibatches before the goal, then return the loader's iterator."""
        set_random_state(goal["start"], self.device)
        source = self._noted(loader) if self.every is not None else iter(loader)
        for i in range(goal["iteration"]):
            if goal["before"] is not None:
                torch.set_rng_state(goal["before"][i].clone())  # torch cannot read a view
            next(source)
        return source


def _shuffles_once(loader: Iterable[Any]) -> bool:
    """Whether ``loader`` draws an epoch's order at its start; one that balances draws later too."""
    if isinstance(loader, MultiDatasetDataLoader):
        return len(loader.datasets) == 1
    return type(loader) is DataLoader
