"""What a run costs: parameters, stored floats, forward passes, seconds, memory."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import stream_type
from torch import Tensor, nn

from avalanche_peftcl.evaluation.accuracy_matrix import trained_experience
from avalanche_peftcl.registry.offers import ModelOffers, PluginOffers

Summary = dict[str, int | float | list[float] | None]


class CostMetric(PluginMetric[Summary]):
    """Measure the cost of any Avalanche strategy.

    Emitted after each training experience (``Trainable_Parameters/train_phase/train_stream``, and
    the share, stored floats, forward passes, seconds, peak memory) and after each evaluation
    (``Evaluation_Seconds/eval_phase/test_stream``).

    Example:
        >>> CostMetric().summary()["training_seconds"]
        []
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget the run."""
        self.trainable: list[tuple[str, tuple[int, ...]]] = []
        """Name and shape of what is counted as ``trainable_parameters``."""
        self._trainable = self._total = self._stored = 0
        self._forward_passes = 1
        self._peak: int | None = None
        self._earlier_peak = 0  # of a process that this run goes on from
        self._training: dict[int, float] = {}
        self._evaluation: dict[int, float] = {}
        self._row: int | None = None  # of the experience last trained
        self._running: list[tuple[dict[int, float], int]] = []  # innermost last
        self._mark = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the cost so far, the time since the last reading included."""
        training, evaluation = dict(self._training), dict(self._evaluation)
        if self._running:
            seconds, row = self._running[-1]
            copy = training if seconds is self._training else evaluation
            copy[row] = copy.get(row, 0.0) + time.perf_counter() - self._mark
        return {
            "trainable": self._trainable,
            "total": self._total,
            "stored": self._stored,
            "forward_passes": self._forward_passes,
            "peak": self._peak,
            "training": training,
            "evaluation": evaluation,
            "row": self._row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; a running clock starts again from here."""
        self._trainable, self._total = state["trainable"], state["total"]
        self._stored, self._forward_passes = state["stored"], state["forward_passes"]
        self._peak, self._earlier_peak = state["peak"], state["peak"] or 0
        self._row = state["row"]
        # the clocks that run refer to these two
        for kept, saved in ((self._training, "training"), (self._evaluation, "evaluation")):
            kept.clear()
            kept.update(state[saved])
        self._mark = time.perf_counter()

    def summary(self) -> Summary:
        """Return the cost so far.

        Returns:
            ``trainable_parameters`` (the most that trained at once in the last experience),
            ``total_parameters`` and ``trainable_share``, their quotient; ``stored_floats``, see
            :func:`stored_floats`; ``forward_passes``, of the backbone for one test image;
            ``training_seconds``, one value a training experience, without the evaluations in it;
            ``evaluation_seconds``, all evaluations since that experience began, one value each;
            ``peak_memory_bytes``, see :func:`peak_memory_bytes`. ``None`` where undefined.
        """
        rows = range(max([-1, *self._training, *self._evaluation]) + 1)
        return {
            "trainable_parameters": self._trainable,
            "total_parameters": self._total,
            "trainable_share": self._trainable / self._total if self._total else None,
            "stored_floats": self._stored,
            "forward_passes": self._forward_passes,
            "training_seconds": [self._training.get(row, 0.0) for row in rows],
            "evaluation_seconds": [self._evaluation.get(row, 0.0) for row in rows],
            "peak_memory_bytes": self._peak,
        }

    def result(self) -> Summary:
        """Return :meth:`summary`."""
        return self.summary()

    def before_training(self, strategy: Any) -> None:
        """Drop the clocks of a training that was interrupted."""
        self._running.clear()

    def before_train_dataset_adaptation(self, strategy: Any) -> None:
        """Start the clock of a training experience."""
        self._lap(strategy)
        self._row = int(trained_experience(strategy).current_experience)
        self._running = [(self._training, self._row)]
        self._trainable = 0

    def before_training_exp(self, strategy: Any) -> None:
        """Count what trains; the model has been adapted."""
        if not self._running:  # a strategy that adapts no dataset
            self.before_train_dataset_adaptation(strategy)
        self._count_trainable(strategy.model)

    def before_training_epoch(self, strategy: Any) -> None:
        """Count what trains; a later stage may train other parameters."""
        self._count_trainable(strategy.model)

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Emit the cost of the experience."""
        self._lap(strategy)
        self._measure(strategy)
        summary = self.summary()
        summary["training_seconds"] = self._training.get(-1 if self._row is None else self._row)
        del summary["total_parameters"], summary["evaluation_seconds"]
        suffix = f"train_phase/{stream_type(strategy.experience)}_stream"
        return [
            MetricValue(self, f"{name.title()}/{suffix}", value, strategy.clock.train_iterations)
            for name, value in summary.items()
            if isinstance(value, int | float)
        ]

    def after_training(self, strategy: Any) -> None:
        """Stop the clock; it includes what the strategy did after the plugins' last call."""
        self._lap(strategy)
        self._running.clear()
        self._measure(strategy)

    def before_eval(self, strategy: Any) -> None:
        """Pause the clock of the training, start that of the evaluation."""
        self._lap(strategy)
        self._running.append((self._evaluation, -1 if self._row is None else self._row))

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Emit the seconds of all evaluations since the last training experience began."""
        self._lap(strategy)
        seconds, row = self._running.pop()
        self._measure(strategy)
        if strategy.experience is None:
            return []
        name = f"Evaluation_Seconds/eval_phase/{stream_type(strategy.experience)}_stream"
        return [MetricValue(self, name, seconds[row], strategy.clock.train_iterations)]

    def __str__(self) -> str:
        return "Cost"

    def _lap(self, strategy: Any) -> None:
        """Book the time since the last lap on the innermost clock."""
        if strategy.device.type == "cuda":
            torch.cuda.synchronize(strategy.device)
        elif strategy.device.type == "mps":
            torch.mps.synchronize()
        now = time.perf_counter()
        if self._running:
            seconds, row = self._running[-1]
            seconds[row] = seconds.get(row, 0.0) + now - self._mark
        self._mark = now

    def _count_trainable(self, model: nn.Module) -> None:
        trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        count = sum(p.numel() for _, p in trainable)
        if count >= self._trainable:
            self.trainable = [(name, tuple(p.shape)) for name, p in trainable]
            self._trainable = count

    def _measure(self, strategy: Any) -> None:
        self._total = sum(p.numel() for p in strategy.model.parameters())
        self._stored = stored_floats(strategy)
        self._forward_passes = int(ModelOffers.of(strategy.model).forward_passes)
        peak = peak_memory_bytes(strategy.device)
        self._peak = None if peak is None else max(peak, self._earlier_peak)


def cost_metrics() -> CostMetric:
    """Build the cost metric."""
    return CostMetric()


def stored_floats(strategy: Any) -> int:
    """Count the floats that a strategy has to keep besides the backbone.

    Args:
        strategy: Any Avalanche strategy.

    Returns:
        Elements of the floating-point tensors in the state dict of ``strategy.model``, each tensor
        once, without those of ``strategy.model.backbone`` if there is one; plus ``stored_floats``
        of every plugin that tells it.

    Example:
        >>> from types import SimpleNamespace
        >>> stored_floats(SimpleNamespace(model=nn.Linear(3, 2), plugins=[]))
        8
    """
    model = strategy.model
    backbone = ModelOffers.of(model).backbone
    frozen = set(_floats(backbone)) if isinstance(backbone, nn.Module) else set()
    own = sum(size for key, size in _floats(model).items() if key not in frozen)
    return own + sum(int(PluginOffers.of(plugin).stored_floats) for plugin in strategy.plugins)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Return the peak memory of this process.

    Args:
        device: Where the strategy computes.

    Returns:
        On CUDA the most bytes that tensors held on ``device``, elsewhere the largest resident set;
        ``None`` on Windows, which does not tell. Both since the process began.

    Example:
        >>> peak = peak_memory_bytes(torch.device("cpu"))
        >>> peak is None or peak > 0
        True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _floats(module: nn.Module) -> dict[int, int]:
    """Return the number of elements of each floating-point tensor by the tensor's id."""
    return {
        id(value): value.numel()
        for value in module.state_dict(keep_vars=True).values()
        if isinstance(value, Tensor) and value.is_floating_point()
    }
