"""Values of metrics that a run was asked for beside its own, for its record."""

from collections.abc import Iterable
from typing import Any

from avalanche.evaluation.metric_results import MetricValue
from avalanche.logging import BaseLogger
from torch import Tensor


class LastValues(BaseLogger):
    """An Avalanche logger that keeps the last value of every name.

    Args:
        besides: Metrics whose values are left alone.

    Attributes:
        values: By name; numbers only.

    Example:
        >>> last = LastValues(besides=[])
        >>> last.log_metrics([MetricValue("a metric", "drift", 0.5, 1)])
        >>> last.values
        {'drift': 0.5}
    """

    def __init__(self, *, besides: Iterable[Any]) -> None:
        super().__init__()
        self.values: dict[str, float] = {}
        self._besides = list(besides)

    def log_metrics(self, metric_values: list[MetricValue]) -> None:
        """Keep the numbers among values that were emitted."""
        for value in metric_values:
            if not any(value.origin is metric for metric in self._besides):
                self.log_single_metric(value.name, value.value, value.x_plot)

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Keep a value if it is a number, also one in a tensor."""
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
            self.values[name] = float(value)
