"""Measure what NTK-CL's loss terms weigh, and try other weights, on held-out training images.

    python examples/real_images/measure_weights.py --shares
    python examples/real_images/measure_weights.py --seeds 0

``--shares`` prints the part of each term in the gradient of the adapted modules; otherwise every
pair of weights is run on both streams and the table is printed. Runs whose record is complete are
not repeated; ``--table`` runs nothing. No test image is used. A run takes about a minute and a half
of one core.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from measure import folder, read, run

from avalanche_peftcl.training.plugins import (
    PrototypeContrastPlugin,
    RetentionPlugin,
    TaskOrthogonalityPlugin,
)

# 96 pixels and few images, so that a coarse search is cheap; the rates are those of README
SMALL = ["backbone.img_size=96", "num_threads=1"]
STREAMS = {  # images a class for training and held out, epochs, rate
    "cifar10": (40, 30, 3, 0.03),
    "omniglot": (3, 2, 3, 0.1),
}
DEFAULTS = (1e-4, 1e-3)  # orthogonality, retention
PAIRS = [
    DEFAULTS,
    (1e-2, 1e-3),
    (1e-4, 1e-1),
    (1e-1, 1e-3),
    (1e-4, 1.0),
    (1e-3, 1e-3),
    (1e-4, 1e-2),
    (1e-2, 1e-1),
    (1.0, 1e-3),
    (1e-4, 10.0),
]
TERMS = {
    "contrast": PrototypeContrastPlugin,
    "orthogonality": TaskOrthogonalityPlugin,
    "retention": RetentionPlugin,
}
COLUMNS = ("average_incremental_accuracy", "last_accuracy", "forgetting")


def one(output: Path, stream: str, pair: tuple[float, float], seed: int) -> Path:
    """Run one pair of weights on one stream unless its record is complete; return its folder."""
    train, held, epochs, rate = STREAMS[stream]
    path = place(output, stream, pair, seed)
    strategy = (
        f"{{name: ntk_cl, lr: {rate}, train_epochs: {epochs}, train_mb_size: 16, "
        f"mixed_precision: 'no', orthogonality_weight: {pair[0]}, retention_weight: {pair[1]}}}"
    )
    images = [f"benchmark.train_per_class={train}", f"benchmark.validation_per_class={held}"]
    run(path, stream, strategy, seed, [*SMALL, *images])
    return path


def place(output: Path, stream: str, pair: tuple[float, float], seed: int) -> Path:
    """Return the folder of one run's record."""
    return folder(output, stream, f"orthogonality {pair[0]:g} retention {pair[1]:g}", seed)


def table(output: Path, seeds: list[int]) -> str:
    """Return mean and spread of what has been run as Markdown."""
    lines = [
        "| stream | orthogonality | retention | average | last | forgetting | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for stream in STREAMS:
        for pair in PAIRS:
            found = [read(place(output, stream, pair, seed)) for seed in seeds]
            runs = [metrics for metrics in found if metrics]
            if not runs:
                continue
            cells = []
            for column in COLUMNS:
                values = [100 * metrics["accuracy"][column] for metrics in runs]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            numbers = " | ".join(cells)
            lines.append(f"| {stream} | {pair[0]:g} | {pair[1]:g} | {numbers} | {len(runs)} |")
    return "\n".join(lines)


@contextmanager
def watched(norms: dict[str, list[float]]) -> Iterator[None]:
    """Collect the length of each term's gradient in the adapted modules while this is open."""

    def length(loss: torch.Tensor, strategy: Any) -> float:
        adapted = [
            p
            for name, p in strategy.model.named_parameters()
            if p.requires_grad and name.startswith(("channel.", "patch.", "fusion."))
        ]
        gradients = torch.autograd.grad(loss, adapted, retain_graph=True, allow_unused=True)
        return sum(float(g.square().sum()) for g in gradients if g is not None) ** 0.5

    def watch(name: str, original: Any) -> Any:
        def before_backward(plugin: Any, strategy: Any, **kwargs: Any) -> None:
            old = strategy.clock.train_exp_counter > 0  # the first experience has nothing old
            before = strategy.loss
            if old and name == "contrast":  # the first of the terms
                norms["cross-entropy"].append(length(before, strategy))
            original(plugin, strategy, **kwargs)
            term = strategy.loss - before
            if old and term.requires_grad:
                norms[name].append(length(term, strategy))

        return before_backward

    with ExitStack() as back:
        for name, plugin in TERMS.items():
            original = plugin.before_backward
            back.callback(setattr, plugin, "before_backward", original)
            plugin.before_backward = watch(name, original)
        yield


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("runs/real_images_weights"))
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--shares", action="store_true", help="only print the terms' shares")
    arguments = parser.parse_args()
    if arguments.shares:
        for stream in STREAMS:
            norms: dict[str, list[float]] = defaultdict(list)
            with watched(norms):
                one(arguments.output / "shares", stream, DEFAULTS, arguments.seeds[0])
            means = {name: statistics.mean(values) for name, values in norms.items()}
            total = sum(means.values())
            shares = (f"{name} {100 * mean / total:.2f} %" for name, mean in means.items())
            print(f"{stream}: {', '.join(shares)}", flush=True)
        return
    for pair in () if arguments.table else PAIRS:
        for stream in STREAMS:
            for seed in arguments.seeds:
                one(arguments.output, stream, pair, seed)
    print(table(arguments.output, arguments.seeds))


if __name__ == "__main__":
    main()
