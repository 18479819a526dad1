"""Measure what fitted heads cost: time to observe, to settle and to predict, and bytes held.

    python examples/head_cost.py --width 768 4608 --images 1000 10000

Features are random numbers of ten classes. Heads of random features (``random_ridge``,
``kernel_ridge``) read 768 numbers and make as many of them as the width says; the others read the
width. Times are the best of ``--rounds``, each on a new head, in seconds: on the CPU those of its
own, summed over threads, which other programs on the machine hardly change. "Held" is all that a
checkpoint keeps, "file" what an exported file does. Combinations that a head refuses are left out.
"""

import argparse
import time
from collections.abc import Callable

import torch

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Head,
    build_gaussian,
    build_kernel_ridge,
    build_lda,
    build_prototypes,
    build_random_ridge,
    build_ridge,
)

CLASSES, MINIBATCH, READ = 10, 64, 768
OF_WIDTH = {
    "prototypes": build_prototypes,
    "lda": build_lda,
    "gaussian": build_gaussian,
    "ridge": build_ridge,
}
OF_RANDOM_FEATURES = {"random_ridge": build_random_ridge, "kernel_ridge": build_kernel_ridge}


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return how long ``call`` takes: on the CPU in its own time, whatever else runs there."""
    if device.type != "cuda":
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def build(name: str, width: int) -> Head:
    """Return a new head, and with it how many numbers it reads."""
    if name in OF_WIDTH:
        return OF_WIDTH[name](in_features=width)
    return OF_RANDOM_FEATURES[name](in_features=READ, n_features=width, seed=0)


@torch.no_grad()
def measure(name: str, width: int, n: int, *, rounds: int, device: torch.device) -> str:
    """Return a line of the table."""
    best = [float("inf")] * 3
    for _ in range(rounds):
        head = build(name, width)
        head.grow(CLASSES)
        head.to(device).eval()
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(n, head.in_features, generator=generator).to(device)
        rows = (torch.arange(n) % CLASSES).to(device)

        def observe(head: Head = head, z: torch.Tensor = features, of: torch.Tensor = rows) -> None:
            for part, targets in zip(z.split(MINIBATCH), of.split(MINIBATCH), strict=True):
                head.observe(part, targets)

        def predict(head: Head = head, z: torch.Tensor = features) -> None:
            for part in z.split(MINIBATCH):
                head(part)

        taken = [seconds(call, device) for call in (observe, head.settle, predict)]
        best = [min(pair) for pair in zip(best, taken, strict=True)]
    held = {key: value.nbytes for key, value in head.state_dict().items()}
    file = sum(size for key, size in held.items() if key not in head.statistics)
    numbers = " | ".join(f"{value:.2f}" for value in best)
    sizes = f"{sum(held.values()) / 2**20:,.1f} | {file / 2**20:,.1f}"
    return f"| {name} | {width:,} | {n:,} | {numbers} | {sizes} |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, nargs="+", default=[768, 2_304, 4_608, 10_000])
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--heads", nargs="+", default=[*OF_WIDTH, *OF_RANDOM_FEATURES])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print("| head | width | images | observe, s | settle, s | predict, s | held, MiB | file, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.heads:
        for width in arguments.width:
            for n in arguments.images:
                try:
                    line = measure(name, width, n, rounds=arguments.rounds, device=device)
                except ConfigError:
                    continue  # too wide for this head
                print(line, flush=True)


if __name__ == "__main__":
    main()
