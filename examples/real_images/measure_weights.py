"""Measure what NTK-CL's loss terms weigh, and try other weights, on held-out training images.

    python examples/real_images/measure_weights.py --shares
    python examples/real_images/measure_weights.py --seeds 0

``--shares`` prints the part of each term in the gradient of the adapted modules; otherwise every
pair of weights is run on each stream and the table is printed: digits and CIFAR-10 on the bundled
network, CIFAR-10 and Omniglot on DeiT-Tiny. Runs whose record is complete are not repeated;
``--table`` runs nothing. No test image is used. A run takes some 10 seconds of one core, with
DeiT-Tiny a minute, on Omniglot two.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from measure import HERE, cells, folder, read
from rich.console import Console

from avalanche_peftcl.runs import run_from_file
from avalanche_peftcl.training.plugins import (
    PrototypeContrastPlugin,
    RetentionPlugin,
    TaskOrthogonalityPlugin,
)

# few and small images, so that a coarse search is cheap; the rates are those of the configurations
STREAMS = {  # configuration, and what is changed in it
    "digits": (
        HERE.parent / "quickstart.yaml",
        ["benchmark.train_per_class=20", "benchmark.validation_per_class=60"],
    ),
    "cifar10_glyph": (  # a network that has seen no photograph: much to learn
        HERE / "cifar10.yaml",
        [
            "backbone=vit_glyph",
            "strategy.lr=0.1",
            "benchmark.train_per_class=40",
            "benchmark.validation_per_class=40",
        ],
    ),
    "cifar10": (
        HERE / "cifar10.yaml",
        [
            "backbone.img_size=96",
            "benchmark.train_per_class=30",
            "benchmark.validation_per_class=20",
        ],
    ),
    "omniglot": (  # far from what the network has seen: features move most here
        HERE / "omniglot.yaml",
        ["backbone.img_size=96", "benchmark.validation_per_class=5"],
    ),
}
DEFAULTS = (1e-4, 1e-3)  # orthogonality, retention
PAIRS = [
    DEFAULTS,
    (1e-1, 1e-3),
    (1e-4, 1.0),
    (1e-2, 1e-3),
    (1e-4, 1e-1),
    (1e-1, 1.0),
    (1.0, 1e-3),
    (1e-4, 10.0),
    (1e-3, 1e-3),
    (1e-4, 1e-2),
]
TERMS = {
    "contrast": PrototypeContrastPlugin,
    "orthogonality": TaskOrthogonalityPlugin,
    "retention": RetentionPlugin,
}


def one(
    output: Path, stream: str, pair: tuple[float, float], seed: int, *, again: bool = False
) -> None:
    """Run one pair of weights on one stream unless its record is complete."""
    configuration, changes = STREAMS[stream]
    path = place(output, stream, pair, seed)
    overrides = [
        *changes,
        f"output={path}",
        f"seed={seed}",
        "num_threads=1",
        "strategy.train_mb_size=16",
        "strategy.mixed_precision='no'",
        f"strategy.orthogonality_weight={pair[0]}",
        f"strategy.retention_weight={pair[1]}",
    ]
    if again or not read(path):
        run_from_file(configuration, overrides, True, Console(quiet=True))
        print(f"{path}: {100 * read(path).accuracy.last_accuracy:.1f}", flush=True)


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
            numbers = " | ".join(cells(runs))
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
            # the first experience has nothing old; a third of the steps is enough
            old = strategy.clock.train_exp_counter > 0 and strategy.clock.train_iterations % 3 == 0
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
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=list(STREAMS))
    parser.add_argument("--output", type=Path, default=Path("runs/real_images_weights"))
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--shares", action="store_true", help="only print the terms' shares")
    arguments = parser.parse_args()
    if arguments.shares:
        for stream in arguments.streams:
            norms: dict[str, list[float]] = defaultdict(list)
            with watched(norms):
                one(arguments.output, stream, DEFAULTS, arguments.seeds[0], again=True)
            means = {name: statistics.mean(values) for name, values in norms.items()}
            total = sum(means.values())
            shares = (f"{name} {100 * mean / total:.2f} %" for name, mean in means.items())
            print(f"{stream}: {', '.join(shares)}", flush=True)
        return
    for stream in () if arguments.table else arguments.streams:
        for pair in PAIRS:
            for seed in arguments.seeds:
                one(arguments.output, stream, pair, seed)
    print(table(arguments.output, arguments.seeds))


if __name__ == "__main__":
    main()
