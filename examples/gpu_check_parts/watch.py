"""Clocks, counters and the profiler around a strategy's own steps."""

import re
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

WARM_UP = 3  # steps before those that count
STEP = "one training step"  # its name in the profile


class Stopwatch:
    """Times what lies between its ``start`` and its ``stop``; on CUDA by events."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []
        self._start: Any = None

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        """Begin a span."""
        self._start = self._now()

    def stop(self) -> None:
        """End the span."""
        self._spans.append((self._start, self._now()))

    def forget(self) -> None:
        """Forget the spans so far."""
        self._spans.clear()

    def median_ms(self) -> float:
        """Return the median length of the spans in milliseconds."""
        if self.cuda:
            torch.cuda.synchronize()
            return statistics.median(a.elapsed_time(b) for a, b in self._spans)
        return 1000 * statistics.median(b - a for a, b in self._spans)


class Watch(SupervisedPlugin):
    """Stands before all other plugins: begins what a step or an evaluated minibatch is measured by.

    Its ``last`` stands behind all others, ends it, and then lets the plain passes have their turn.
    The last two steps are not timed: one is counted by its FLOPs, one runs under the profiler.
    """

    def __init__(self, device: torch.device, plain: Callable[[Tensor, bool], None]) -> None:
        super().__init__()
        self.device, self.plain, self.last = device, plain, _Last(self)
        self.on, self.flops, self.peak = False, 0, 0
        self.counts: dict[str, int | None] = {}
        clocks = ("step", "plain", "eval", "plain_eval")
        self.clocks = {name: Stopwatch(device) for name in clocks}
        self._step, self._steps = 0, 0
        self._measuring = ExitStack()

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Count the epoch's steps."""
        self._step, self._steps = -1, len(strategy.dataloader)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Begin a step."""
        self._step += 1
        if not self.on:
            return
        self._settle()
        if self._step == self._steps - 2:
            self._counter = self._measuring.enter_context(FlopCounterMode(display=False))
        elif self._step == self._steps - 1:
            activities = [ProfilerActivity.CPU]
            activities += [ProfilerActivity.CUDA] if self.device.type == "cuda" else []
            self._profile = self._measuring.enter_context(profile(activities=activities))
            self._measuring.enter_context(record_function(STEP))
        else:
            self.clocks["step"].start()

    def end_step(self, strategy: Any) -> None:
        """End a step; then the plain passes."""
        if not self.on:
            return
        if self._step >= self._steps - 2:
            self._measuring.close()
            if self._step == self._steps - 2:
                self.flops = self._counter.get_total_flops()
            else:
                self.counts = count(self._profile, self.device)
            return
        self._timed("step", "plain", strategy.mb_x, keep=self._step >= WARM_UP)

    def before_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Begin an evaluated minibatch."""
        if self.on:
            self._settle()
            self.clocks["eval"].start()

    def end_eval(self, strategy: Any) -> None:
        """End an evaluated minibatch; then the plain passes."""
        if self.on:
            self._timed("eval", "plain_eval", strategy.mb_x, keep=True)

    def _timed(self, mine: str, other: str, images: Tensor, *, keep: bool) -> None:
        self.clocks[mine].stop()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self.peak = max(self.peak, torch.cuda.max_memory_allocated(self.device))
        self.clocks[other].start()
        self.plain(images, mine == "step")
        self.clocks[other].stop()
        if not keep:
            for name in (mine, other):
                self.clocks[name].forget()

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats(self.device)


class _Last(SupervisedPlugin):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.watch.end_step(strategy)

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.watch.end_eval(strategy)


def count(profiled: profile, device: torch.device) -> dict[str, int | None]:
    """Return what one step did: kernels, waits of the host, numbers read, copies to the host."""
    events = profiled.events()
    step = next(e for e in events if e.name == STEP and e.device_type.name == "CPU")
    start, end = step.time_range.start, step.time_range.end
    host = [
        e.name for e in events if e.device_type.name == "CPU" and start <= e.time_range.start <= end
    ]
    device_side = [e for e in events if e.device_type.name == "CUDA"]
    names = [e.name for e in device_side if not e.is_user_annotation]
    moved = [name for name in names if name.startswith(("Memcpy", "Memset"))]
    return {
        "kernels": len(names) - len(moved) if device.type == "cuda" else None,
        "syncs": sum(bool(re.match(r"cu(da)?[A-Z]\w*Synchronize", name)) for name in host),
        "items": host.count("aten::_local_scalar_dense"),
        "copies": sum(name.startswith("Memcpy DtoH") for name in moved),
    }
