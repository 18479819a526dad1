"""Measure what gradient projection costs a training step, as a ratio in one process.

    python examples/projection_cost.py

ViT-Tiny with random weights at 224 pixels, minibatches of 16, a basis of 50 directions (or all,
where there are fewer) at every site of five blocks. Steps with and without projection take turns;
the ratio is that of their median times.
"""

import argparse
import statistics
import time
from functools import partial
from types import SimpleNamespace

import torch

from avalanche_peftcl.models import (
    PEFTModel,
    build_attention_adapters,
    build_lora,
    build_prefix,
    build_prompt,
    create_backbone,
    projection_sites,
)
from avalanche_peftcl.training.plugins import GradientProjectionPlugin

KINDS = {
    "adapter": partial(build_attention_adapters, r=10),
    "lora": partial(build_lora, r=10),
    "prefix": partial(build_prefix, length=10),
    "prompt": partial(build_prompt, length=10),
}


def measure(kind: str, device: torch.device, *, where: str, rounds: int, size: int) -> float:
    """Return the time of a projected step over that of a plain one."""
    torch.manual_seed(0)
    backbone = create_backbone("vit_tiny_patch16_224")
    module = KINDS[kind](backbone=backbone, blocks=[0, 1, 2, 3, 4])
    model = PEFTModel(backbone, module).to(device)
    model.start_experience([(0, c) for c in range(10)])
    model.to(device)
    plugin = GradientProjectionPlugin(where=where)
    for site in projection_sites(model):
        groups, _, dim = site.view(site.parameter.detach()).shape
        vectors = torch.randn(groups, dim, min(size, dim), device=device)
        plugin.bases[site.name] = list(torch.linalg.qr(vectors).Q)
    strategy = SimpleNamespace(model=model, experience=SimpleNamespace())
    plugin.before_training_exp(strategy)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    images = torch.randn(16, 3, 224, 224, device=device)
    targets = torch.arange(16, device=device) % 10
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds + 1):
        for plugin.active in (True, False):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter() if device.type == "cuda" else time.process_time()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), targets).backward()
            plugin.before_update(strategy)
            optimizer.step()
            plugin.after_update(strategy)
            if device.type == "cuda":
                torch.cuda.synchronize()
            end = time.perf_counter() if device.type == "cuda" else time.process_time()
            seconds[plugin.active].append(end - start)
    return statistics.median(seconds[True][1:]) / statistics.median(seconds[False][1:])


def main() -> None:
    """Print a line for each kind of module."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=50, help="directions a site")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    for kind in KINDS:
        for where in ("step", "gradient"):
            ratio = measure(
                kind,
                torch.device(arguments.device),
                where=where,
                rounds=arguments.rounds,
                size=arguments.size,
            )
            print(f"{kind}, {where}: {100 * (ratio - 1):+.1f} % of a step", flush=True)


if __name__ == "__main__":
    main()
