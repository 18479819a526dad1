"""Values for the loggers of the host's evaluator."""

from typing import Any

from avalanche.evaluation.metric_results import MetricValue


def publish(strategy: Any, source: Any, name: str, value: float, *, of: str = "") -> None:
    """Hand a value of training to the evaluator, which hands it to its loggers.

    Args:
        strategy: Any Avalanche strategy, while it trains.
        source: What measured the value.
        name: Of the value, as ``Loss_Epoch``; the host's phase and stream follow it.
        value: A number.
        of: Of which part, a last word in the name.
    """
    full_name = f"{name}/train_phase/train_stream" + (f"/{of}" if of else "")
    told = MetricValue(source, full_name, value, strategy.clock.train_iterations)
    strategy.evaluator.publish_metric_value(told)
