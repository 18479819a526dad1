"""Seconds and passes that a strategy takes, of training and of evaluation apart."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import nn

from avalanche_peftcl.models.counting import (
    count_calls_of,
    count_passes_of,
    counts,
    counts_calls,
    listen_for_passes,
    passes_so_far,
    stop_listening,
)
from avalanche_peftcl.registry.offers import ModelOffers

Phase = Literal["training", "evaluation"]
_SAVED = ("seconds", "passes", "images", "row")
_measuring: "WeakSet[Meter]" = WeakSet()


@contextmanager
def measured_as_evaluation(device: torch.device) -> Iterator[None]:
    """Let every meter that measures a training take what happens inside for an evaluation.

    Args:
        device: Whose work is waited for, before and after.
    """
    meters = list(_measuring)
    for meter in meters:
        meter.lap(device)
        meter.enter_evaluation()
    yield
    for meter in meters:
        meter.lap(device)
        meter.leave_evaluation()


class Meter:
    """Clock and counter of a strategy's experiences; whoever has one tells it what happens.

    Attributes:
        seconds: Of each phase by experience, from 0.
        passes: Images through the backbone, likewise.
        images: Training images of each experience, of an online stream those seen so far.
        row: The experience last trained; -1 before the first.

    Example:
        >>> meter = Meter()
        >>> network = nn.Linear(2, 2)
        >>> meter.begin(network, row=0, images=4)
        >>> for _ in range(3):
        ...     _ = network(torch.zeros(4, 2))
        >>> meter.end()
        >>> meter.passes_per_image(0)
        3.0
    """

    def __init__(self) -> None:
        self.seconds: dict[Phase, dict[int, float]] = {"training": {}, "evaluation": {}}
        self.passes: dict[Phase, dict[int, int]] = {"training": {}, "evaluation": {}}
        self.images: dict[int, int] = {}
        self.row = -1
        self._running: list[tuple[Phase, int]] = []  # innermost last
        self._mark = time.perf_counter(), passes_so_far()
        self._handle: Any = None

    @property
    def runs(self) -> bool:
        """Whether anything is measured now."""
        return bool(self._running)

    def begin(self, model: nn.Module, *, row: int, images: int) -> None:
        """Start to measure a training experience, or the next chunk of one.

        Args:
            model: Whose passes count: those of its backbone, or its own where it has none.
            row: Number of the experience, from 0.
            images: Its training images, or those of the chunk.
        """
        self.end()
        self._listen(model)
        self.row = row
        self.images[row] = self.images.get(row, 0) + images
        self._running = [("training", row)]
        _measuring.add(self)
        self._mark = time.perf_counter(), passes_so_far()

    def enter_evaluation(self) -> None:
        """Measure an evaluation from here, inside training or not."""
        self.lap()
        self._running.append(("evaluation", self.row))

    def leave_evaluation(self) -> None:
        """Go on with what was measured before."""
        self.lap()
        self._running.pop()

    def lap(self, device: torch.device | None = None) -> None:
        """Book what was taken since the last lap.

        Args:
            device: Whose work is waited for; ``None`` waits for none.
        """
        _wait_for(device)
        now = time.perf_counter(), passes_so_far()
        if self._running:
            phase, row = self._running[-1]
            for kept, end, start in (
                (self.seconds, now[0], self._mark[0]),
                (self.passes, now[1], self._mark[1]),
            ):
                rows: dict[int, Any] = kept[phase]
                rows[row] = rows.get(row, 0) + end - start
        self._mark = now

    def end(self) -> None:
        """Book what was taken and measure nothing more."""
        self.lap()
        self.drop()

    def drop(self) -> None:
        """Measure nothing more: what runs was interrupted."""
        self._running.clear()
        _measuring.discard(self)
        stop_listening(self)
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def passes_per_image(self, row: int) -> float:
        """Return the passes that training took for each training image of an experience."""
        images = self.images.get(row, 0)
        return self.passes["training"].get(row, 0) / images if images else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far, what was taken since the last lap included."""
        self.lap()
        state = {name: getattr(self, name) for name in _SAVED}
        return {name: _copied(value) for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; what runs is measured from here."""
        for name in _SAVED:
            setattr(self, name, _copied(state[name]))
        self._mark = time.perf_counter(), passes_so_far()

    def _listen(self, model: nn.Module) -> None:
        """Let passes be counted, by the class of the backbone or by calls of what has none."""
        listen_for_passes(self)
        told = ModelOffers.of(model).backbone
        part: Any = told if isinstance(told, nn.Module) else model
        if any(counts(type(each).forward) or counts_calls(each) for each in part.modules()):
            return
        if callable(getattr(part, "attend", None)) and isinstance(
            getattr(part, "depth", None), int
        ):
            count_passes_of(type(part))
        else:
            self._handle = count_calls_of(part)


def _copied(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {key: _copied(inner) for key, inner in value.items()}


def _wait_for(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()
