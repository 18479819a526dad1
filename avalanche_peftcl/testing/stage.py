"""A run to try plugins, metrics and loggers in: a small network tuned on two experiences."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl.models import Backbone, PEFTModel
from avalanche_peftcl.models.modules.attention_adapter import build_attention_adapters
from avalanche_peftcl.models.rng import random_state
from avalanche_peftcl.testing.learnable import blind_backbone, learnable_benchmark
from avalanche_peftcl.testing.probes import weights
from avalanche_peftcl.training import PEFTTemplate


class Kept(BaseLogger):
    """Keeps what it is told: ``told`` has a name, a value and a place on the x-axis each time."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[Any, Any, Any]] = []

    def log_single_metric(self, name: Any, value: Any, x_plot: Any) -> None:
        """Keep a value."""
        self.told.append((name, value, x_plot))


def tuning(
    *,
    plugins: Sequence[Any] = (),
    metrics: Sequence[Any] = (),
    loggers: Sequence[Any] = (),
    backbone: Backbone | None = None,
) -> PEFTTemplate:
    """Return a strategy that tunes attention adapters and a linear head, two epochs each time."""
    torch.manual_seed(0)
    backbone = backbone or blind_backbone()
    model = PEFTModel(backbone, build_attention_adapters(backbone=backbone))
    return PEFTTemplate(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        train_epochs=2,
        train_mb_size=8,
        eval_mb_size=8,
        plugins=plugins,
        evaluator=EvaluationPlugin(*metrics, loggers=[*loggers] or [BaseLogger()]),
    )


def stream(scenario: str = "class") -> Any:
    """Return the benchmark that it is tuned on, of two experiences."""
    return learnable_benchmark(
        scenario, per_class=4 if scenario == "domain" else 8, test_per_class=4
    )


def tuned(
    build: Callable[[], PEFTTemplate], between: Callable[[Any], Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Train and evaluate on two experiences.

    Args:
        build: Returns the strategy.
        between: Called with it after the first experience; returns the one that goes on.

    Returns:
        The strategy, and where it ends: its weights, and the state of torch's generator.
    """
    strategy, benchmark = build(), stream()
    for number, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[benchmark.test_stream])
        strategy.eval(benchmark.test_stream)
        if number == 0 and between is not None:
            strategy = between(strategy)
    cpu = torch.device("cpu")
    ends = weights(strategy.model) | {"random": random_state(cpu)["torch"]}
    return strategy, ends
