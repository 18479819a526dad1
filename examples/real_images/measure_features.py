"""Which features a ridge regression should read: what NTK-CL's kernel recipe rests on.

    python examples/real_images/measure_features.py cifar10
    python examples/real_images/measure_features.py omniglot --training projected

A module is trained over a stream, and tested on training images that are held out. What the blocks
give of each experience's images before and after its training is kept, and one regression after
the other is made of it: what is read, how earlier sums move, how the penalty is chosen. *Read
again* is what could be had with the old images at hand. One training, one seed, many rows.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from measure import HELD_OUT, HERE
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.functional import (
    linear_drift,
    nearest_neighbour_drift,
    running_mean_,
    smoothed_ridge_drift,
)
from avalanche_peftcl.models import Drift, LinearDrift, PrototypeHead, RidgeHead, ShiftDrift
from avalanche_peftcl.registry import discover
from avalanche_peftcl.training import feature_pass

BLOCK = 2 * 192  # numbers a block of DeiT-Tiny
BLOCKS, UPPER, LAST = range(12), range(6, 12), range(11, 12)
OPTIONS = {
    "optimizer": "adamw", "lr": 0.001, "weight_decay": 0.0, "loss": "local", "train_epochs": 3,
    "train_mb_size": 16, "features": "blocks", "frozen_section": "blocks", "mixed_precision": "no",
}  # fmt: skip
PEGP = {"head_epochs": 0, "merge_epochs": 0, "threshold": 0.9, "n_samples": 256}
TRAININGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "adapters": ("adapter", "naive", {}),
    "patch prompts": ("patch_prompt", "naive", {}),
    "projected": ("adapter", "pegp", PEGP),
    "half projected": ("adapter", "pegp", PEGP | {"centred": True, "strength": 0.5}),
    "by ratio": ("adapter", "pegp", PEGP | {"rule": "ratio"}),
}
Map = Callable[[Tensor, Tensor], Drift] | None


class Read(NamedTuple):
    """Features of some images, frozen and adapted blocks side by side, and where they belong."""

    features: Tensor
    rows: Tensor
    tasks: Tensor


class Reader(SupervisedPlugin):
    """Reads each experience's images before and after its training, with the mean module too."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[Read] = []
        self.after: list[Read] = []
        self.by_mean: list[tuple[Read | None, Read]] = []
        self.mean: list[Tensor] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Read what the earlier modules see in the new images."""
        if self.after:
            self.before.append(read(strategy, strategy.experience.dataset))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Read what the new ones see, and what the mean before and after them does."""
        data, tuned = strategy.experience.dataset, list(strategy.network.branch.parameters())
        self.after.append(read(strategy, data))
        with lent(tuned, self.mean):
            old = read(strategy, data) if self.mean else None
        self.mean = self.mean or [p.detach().clone() for p in tuned]
        running_mean_(self.mean, tuned, count=len(self.after) - 1)
        with lent(tuned, self.mean):
            self.by_mean.append((old, read(strategy, data)))


@contextmanager
def lent(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> Any:
    """Let parameters have other values for a while."""
    own = [p.data for p in parameters]
    for p, value in zip(parameters, values, strict=False):
        p.data = value
    yield
    for p, value in zip(parameters, own, strict=True):
        p.data = value


def read(strategy: Any, dataset: Any) -> Read:
    """Return what the network sees in a dataset, with the test transforms."""
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    feature_pass(
        strategy, lambda b: found.append((b.features, b.rows, b.task_labels)), dataset=dataset
    )
    return Read(*(torch.cat(part) for part in zip(*found, strict=True)))


def train(stream: str, training: str, seed: int) -> tuple[Any, Any, Reader]:
    """Train a module over a stream whose test images are held-out training images."""
    config = yaml.safe_load((HERE / f"{stream}.yaml").read_text())
    registry, reader = discover(), Reader()
    backbone = registry.build("backbone", config["backbone"].pop("name"), config["backbone"], {})
    config["benchmark"]["validation_per_class"] = HELD_OUT[stream]
    if stream == "pacs":  # the file takes all 30 images a cell
        config["benchmark"]["train_per_class"] = 30 - HELD_OUT[stream]
    benchmark = registry.build(
        "benchmark", config["benchmark"].pop("name"), config["benchmark"] | {"seed": seed},
        {"input_config": backbone.input_config},
    )  # fmt: skip
    random.seed(seed)
    np.random.seed(seed)  # the host draws from the global generator
    torch.manual_seed(seed)
    module, name, own = TRAININGS[training]
    given = {"backbone": backbone, "plugins": [reader], "evaluator": EvaluationPlugin()}
    given["module"] = registry.build("module", module, {}, {"backbone": backbone})
    given["head"] = PrototypeHead  # one that is fitted: linear proxies train, on what is pooled
    strategy = registry.build("strategy", name, OPTIONS | own, given | {"device": "cpu"})
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
    return strategy, benchmark, reader


def section(features: Tensor, blocks: range, *, adapted: bool) -> Tensor:
    """Return some blocks of the frozen or of the adapted network, on unit norm."""
    start = BLOCK * (len(BLOCKS) * adapted + blocks.start)
    return F.normalize(features[:, start : start + BLOCK * len(blocks)], dim=1)


def accuracy(
    strategy: Any,
    old: Sequence[Read],
    new: Sequence[Read],
    test: Read,
    *,
    frozen: range | None = BLOCKS,
    adapted: range | None = UPPER,
    fit: Map = None,
    **penalty: Any,
) -> float:
    """Return the accuracy of the regression over all experiences on the test images, in percent.

    Args:
        strategy: Whose rows are those of the classes.
        old: Features of each experience but the first before its training.
        new: After it.
        test: Of the test images.
        frozen: Which blocks are read of the frozen network.
        adapted: And of the adapted one.
        fit: Makes the map of earlier sums; ``None`` leaves them.
        penalty: Options of the head.
    """

    def whole(features: Tensor) -> Tensor:
        parts = [(frozen, False), (adapted, True)]
        chosen = [section(features, blocks, adapted=a) for blocks, a in parts if blocks is not None]
        return torch.cat(chosen, dim=1)

    head = RidgeHead(whole(test.features[:1]).shape[1], **({"penalty": "scale_free"} | penalty))
    head.grow(len(strategy.network.classes))
    for i, each in enumerate(new):
        if i and fit is not None and adapted is not None:
            a, b = (section(r.features, adapted, adapted=True) for r in (old[i - 1], each))
            head.move(fit(a, b))
        head.observe(whole(each.features), each.rows)
    head.settle()
    classes = strategy.network.classes
    scores = classes.scatter(head(whole(test.features)), test.tasks)
    right = scores.argmax(dim=1) == classes.keys[test.rows, 1]
    return 100 * float(right.float().mean())


def linear(ridge: float, width: int, tau: float | None = None) -> Map:
    """Return what fits a linear map to the last ``width`` columns, smoothed where ``tau`` is."""
    columns = slice(-width, None)

    def fit(a: Tensor, b: Tensor) -> Drift:
        if tau is None:
            return LinearDrift(linear_drift(a, b, ridge=ridge), columns)
        return LinearDrift(smoothed_ridge_drift(a, b, ridge=ridge, tau=tau), columns)

    return fit


def nearest(width: int) -> Map:
    """Return what moves class means as the images do that look most like them."""

    def fit(a: Tensor, b: Tensor) -> Drift:
        def rule(means: Tensor) -> Tensor:
            moved = means.clone()
            moved[:, -width:] = nearest_neighbour_drift(a, b, means[:, -width:]).to(moved)
            return moved

        return ShiftDrift(rule)

    return fit


def rows(strategy: Any, benchmark: Any, reader: Reader) -> Any:
    """Yield the name of each row and its accuracy."""
    test = [read(strategy, each.dataset) for each in benchmark.test_stream]
    tests = Read(*(torch.cat(part) for part in zip(*test, strict=True)))
    again = [read(strategy, each.dataset) for each in benchmark.train_stream]

    def row(name: str, new: Sequence[Read] = reader.after, **how: Any) -> tuple[str, float]:
        return name, accuracy(strategy, reader.before, new, tests, **how)

    width = BLOCK * len(UPPER)
    one = linear(1.0, width)
    yield row("frozen blocks alone", adapted=None)
    yield row("upper half, as it was", frozen=None)
    yield row("upper half, moved", frozen=None, fit=one)
    yield row("upper half, read again", again, frozen=None)
    yield row("beside the frozen blocks, as it was")
    yield row("beside the frozen blocks, moved", fit=one)
    yield row("beside the frozen blocks, read again", again)
    yield row("all blocks beside them, moved", adapted=BLOCKS, fit=linear(1.0, BLOCK * len(BLOCKS)))
    yield row("last block beside them, moved", adapted=LAST, fit=linear(1.0, BLOCK * len(LAST)))
    for ridge in (0.1, 0.3, 3.0):
        yield row(f"moved, ridge {ridge}", fit=linear(ridge, width))
    yield row("moved, smoothed", fit=linear(1.0, width, tau=1.0))
    yield row("moved, class means by neighbours", fit=nearest(width))
    yield row("moved, penalty by GCV", fit=one, penalty="gcv")
    yield row("moved, penalty by GCV times 3", fit=one, penalty="gcv", penalty_factor=3.0)
    yield row("moved, penalty times 3", fit=one, penalty_factor=3.0)
    yield row("moved, penalty times 10", fit=one, penalty_factor=10.0)
    with lent(list(strategy.network.branch.parameters()), reader.mean):
        by_mean = [read(strategy, each.dataset) for each in benchmark.test_stream]
    tests = Read(*(torch.cat(part) for part in zip(*by_mean, strict=True)))
    old = [old for old, _ in reader.by_mean if old is not None]
    new = [new for _, new in reader.by_mean]
    yield "by the running mean, moved", accuracy(strategy, old, new, tests, fit=one)


def main() -> None:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("streams", nargs="+", choices=list(HELD_OUT))
    parser.add_argument("--training", default="adapters", choices=list(TRAININGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    for stream in arguments.streams:
        print(f"{stream}, {arguments.training}, seed {arguments.seed}", flush=True)
        for name, value in rows(*train(stream, arguments.training, arguments.seed)):
            print(f"| {name} | {value:.1f} |", flush=True)


if __name__ == "__main__":
    main()
