"""Time a strategy's own training and evaluation against plain passes of the same network."""

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_peftcl.models import Backbone, create_backbone
from avalanche_peftcl.registry import discover
from gpu_check_parts.watch import WARM_UP, Stopwatch, Watch

PRECISIONS = ("float32", "TF32", "bf16")
PASSES = {"NTK-CL": (2, 2), "PEGP": (0, 1)}  # without and with a backward pass
OPTIONS: dict[str, dict[str, Any]] = {
    "NTK-CL": {"name": "ntk_cl", "train_epochs": 1},
    "PEGP": {
        "name": "pegp",
        "train_epochs": 1,
        "head_epochs": 0,
        "merge_epochs": 0,
        "n_samples": 64,
    },
}


@dataclass
class Budget:
    """Seconds that may be spent."""

    seconds: float
    start: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Return the seconds spent."""
        return time.monotonic() - self.start

    def left(self) -> float:
        """Return the seconds left."""
        return self.seconds - self.elapsed()

    def without(self, seconds: float) -> "Budget":
        """Return the same budget less what is kept for something else."""
        return Budget(self.seconds - seconds, self.start)


class RandomImages(Dataset[tuple[Tensor, int]]):
    """Images of noise, a few of them over and over, of two classes in turn."""

    def __init__(self, count: int, img_size: int, first_class: int) -> None:
        self.images = torch.randn(16, 3, img_size, img_size)
        self.targets = [first_class + i % 2 for i in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index % len(self.images)], self.targets[index]


def measure(
    device: torch.device, *, tiny: bool, budget: Budget, each: Callable[[dict[str, Any]], None]
) -> None:
    """Measure every cell that the budget allows, small ones first; the others say why not.

    Args:
        device: Where.
        tiny: Toys instead.
        budget: Seconds that may be spent.
        each: Called with all there is after each cell.
    """
    rates = {p: matmul_rate(device, p, 256 if tiny else 8192) for p in known(device)}
    cells: list[dict[str, Any]] = []
    took: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for batch in (4,) if tiny else (16, 64, 256):
        for precision in reversed(PRECISIONS):
            for method in PASSES:
                cell: dict[str, Any] = {"method": method, "batch": batch, "precision": precision}
                cells.append(cell)
                before = took.setdefault((method, precision), [])
                if precision not in rates:
                    cell["why"] = f"skipped: there is no {precision} on this device"
                elif estimate(before, batch) >= budget.left():
                    cell["why"] = "skipped: not in the time there is"
                else:
                    began = time.monotonic()
                    cell |= measure_cell(device, method, batch, precision, tiny=tiny)
                    before.append((batch, time.monotonic() - began))
                if "flops" in cell:
                    rate = cell["flops"] / (cell["step_ms"] / 1000)
                    cell["share_of_matmul"] = rate / rates[precision]
                each({"matmul_flops": rates, "cells": cells})


def estimate(before: list[tuple[int, float]], batch: int) -> float:
    """Return how long a cell will take, from the times of smaller batches; 0 if there are none.

    Args:
        before: Batches and seconds. From two on their line goes on, since a part of the time is
            not the images'; one is taken in proportion.
        batch: Of the cell.
    """
    if len(before) < 2:
        return sum(seconds * batch / smaller for smaller, seconds in before)
    (one, first), (other, last) = before[-2:]
    return last + max(0.0, last - first) * (batch - other) / (other - one)


def known(device: torch.device) -> list[str]:
    """Return the precisions that the device has."""
    tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    return [p for p in PRECISIONS if p != "TF32" or tf32]


def measure_cell(
    device: torch.device, method: str, batch: int, precision: str, *, tiny: bool
) -> dict[str, Any]:
    """Train on two experiences and evaluate; measure in the second."""
    try:
        with precise(precision):
            return _measure_cell(device, method, batch, precision, tiny=tiny)
    except Exception as error:
        if not out_of_memory(error):
            raise
        return {"why": "out of memory"}
    finally:
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether the device had no memory left, whatever the error was turned into since."""
    while error is not None:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _measure_cell(
    device: torch.device, method: str, batch: int, precision: str, *, tiny: bool
) -> dict[str, Any]:
    torch.manual_seed(0)
    size = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2} if tiny else {}
    backbone = create_backbone("vit_base_patch16_224", **size)
    timed = 3 if batch > 64 or tiny else 9
    steps = WARM_UP + timed + 2
    sizes = [2 * batch, steps * batch]
    pixels = backbone.input_config.img_size
    streams = {
        part: [
            as_classification_dataset(RandomImages(count, pixels, 2 * t))
            for t, count in enumerate(counts)
        ]
        for part, counts in {"train": sizes, "test": [batch, (timed + 1) * batch]}.items()
    }
    benchmark = benchmark_from_datasets(**streams)
    bf16 = precision == "bf16"
    watch = Watch(device, lambda images, train: plain_passes(backbone, images, method, train, bf16))
    name, options = (
        OPTIONS[method]["name"],
        {k: v for k, v in OPTIONS[method].items() if k != "name"},
    )
    options |= {"train_mb_size": batch, "eval_mb_size": batch}
    given = {"backbone": backbone, "device": str(device), "plugins": [watch]}
    strategy = discover().build(
        "strategy",
        name,
        options | {"mixed_precision": "bf16" if bf16 else "no"},
        given | {"evaluator": EvaluationPlugin(strict_checks=False)},
    )
    strategy.plugins.append(watch.last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for experience in benchmark.train_stream:
            watch.on = experience.current_experience == 1
            strategy.train(experience)
        watch.on = False
        strategy.eval(benchmark.test_stream[:1])
        watch.on = True
        strategy.eval(benchmark.test_stream[1:])
    clocks = {name: clock.median_ms() for name, clock in watch.clocks.items()}
    return {
        "step_ms": clocks["step"],
        "plain_ms": clocks["plain"],
        "eval_ms_per_image": clocks["eval"] / batch,
        "plain_eval_ms_per_image": clocks["plain_eval"] / batch,
        "peak_bytes": watch.peak if device.type == "cuda" else None,
        "flops": watch.flops,
        "timed_steps": timed,
        **watch.counts,
    }


def plain_passes(backbone: Backbone, images: Tensor, method: str, train: bool, bf16: bool) -> None:
    """Pass through the unadapted network as often as the method does, one pass after another."""
    without, backward = PASSES[method]
    for i in range(without + backward):
        graph = train and i >= without
        with torch.set_grad_enabled(graph):
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                tokens = backbone.embed(images).detach().requires_grad_(graph)
                features = backbone.pool(backbone.blocks(tokens))
            if graph:
                features.float().sum().backward()


@contextmanager
def precise(precision: str) -> Iterator[None]:
    """Let float32 products be computed in TF32 or not."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "TF32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def matmul_rate(device: torch.device, precision: str, size: int) -> float:
    """Return the FLOPs a second of a product of two square matrices."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    clock = Stopwatch(device)
    with precise(precision):
        for _ in range(WARM_UP):
            a @ b
        for _ in range(10):
            clock.start()
            a @ b
            clock.stop()
    return 2 * size**3 / (clock.median_ms() / 1000)
