"""What a run costs: parameters, stored floats, passes, steps, seconds, memory."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import stream_type
from avalanche.training.supervised import JointTraining
from torch import nn

from avalanche_peftcl.evaluation.accuracy_matrix import trained_experience
from avalanche_peftcl.models.meter import Meter
from avalanche_peftcl.models.stored import stored_floats as stored_floats
from avalanche_peftcl.registry.offers import ModelOffers

Summary = dict[str, int | float | list[float] | list[int] | None]


class CostMetric(PluginMetric[Summary]):
    """Measure the cost of any Avalanche strategy.

    Emitted after each training experience (``Trainable_Parameters/train_phase/train_stream``, and
    the share, stored floats, passes, seconds, peak memory) and after each evaluation
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
        self._meter = Meter()
        self._steps: dict[int, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the cost so far, the time since the last reading included."""
        return {
            "trainable": self._trainable,
            "total": self._total,
            "stored": self._stored,
            "forward_passes": self._forward_passes,
            "peak": self._peak,
            "meter": self._meter.state_dict(),
            "steps": dict(self._steps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; a running clock starts again from here."""
        self._trainable, self._total = state["trainable"], state["total"]
        self._stored, self._forward_passes = state["stored"], state["forward_passes"]
        self._peak, self._earlier_peak = state["peak"], state["peak"] or 0
        self._meter.load_state_dict(state["meter"])
        self._steps = dict(state["steps"])

    def summary(self) -> Summary:
        """Return the cost so far.

        Returns:
            ``trainable_parameters`` (the most that trained at once in the last experience),
            ``total_parameters`` and ``trainable_share``, their quotient; ``stored_floats``, see
            :func:`stored_floats`; ``forward_passes``, of the backbone for one test image;
            ``training_passes``, one value a training experience: images that passed through the
            backbone in its training, by the training images it has, whatever they passed for (an
            epoch, a second view, statistics, what a plugin measures), but for evaluations, the
            metrics of this package and features that lay in a :class:`.FeatureCache`;
            ``training_steps``, of the
            optimizer, and ``training_seconds``, likewise, without the evaluations in it;
            ``evaluation_seconds``, all evaluations since that experience began, one value each;
            ``peak_memory_bytes``, see :func:`peak_memory_bytes`. ``None`` where undefined.
        """
        training, evaluation = (self._meter.seconds[k] for k in ("training", "evaluation"))
        rows = range(max([-1, *training, *evaluation]) + 1)
        return {
            "trainable_parameters": self._trainable,
            "total_parameters": self._total,
            "trainable_share": self._trainable / self._total if self._total else None,
            "stored_floats": self._stored,
            "forward_passes": self._forward_passes,
            "training_passes": [self._meter.passes_per_image(row) for row in rows],
            "training_steps": [self._steps.get(row, 0) for row in rows],
            "training_seconds": [training.get(row, 0.0) for row in rows],
            "evaluation_seconds": [evaluation.get(row, 0.0) for row in rows],
            "peak_memory_bytes": self._peak,
        }

    def result(self) -> Summary:
        """Return :meth:`summary`."""
        return self.summary()

    def before_training(self, strategy: Any) -> None:
        """Drop the clocks of a training that was interrupted."""
        self._meter.drop()

    def before_train_dataset_adaptation(self, strategy: Any) -> None:
        """Start the clock of a training experience."""
        self._meter.lap(strategy.device)
        row = int(trained_experience(strategy).current_experience)
        self._meter.begin(strategy.model, row=row, images=training_images(strategy))
        self._trainable = 0

    def before_training_exp(self, strategy: Any) -> None:
        """Count what trains; the model has been adapted."""
        if not self._meter.runs:  # a strategy that adapts no dataset
            self.before_train_dataset_adaptation(strategy)
        self._count_trainable(strategy.model)

    def before_training_epoch(self, strategy: Any) -> None:
        """Count what trains; a later stage may train other parameters."""
        self._count_trainable(strategy.model)

    def after_update(self, strategy: Any) -> None:
        """Count a step of the optimizer."""
        row = self._meter.row
        self._steps[row] = self._steps.get(row, 0) + 1

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Emit the cost of the experience."""
        self._meter.lap(strategy.device)
        self._measure(strategy)
        summary, row = self.summary(), self._meter.row
        summary["training_seconds"] = self._meter.seconds["training"].get(row)
        summary["training_passes"] = self._meter.passes_per_image(row)
        del summary["total_parameters"], summary["evaluation_seconds"]
        suffix = f"train_phase/{stream_type(strategy.experience)}_stream"
        return [
            MetricValue(self, f"{name.title()}/{suffix}", value, strategy.clock.train_iterations)
            for name, value in summary.items()
            if isinstance(value, int | float)
        ]

    def after_training(self, strategy: Any) -> None:
        """Stop the clock; it includes what the strategy did after the plugins' last call."""
        self._meter.lap(strategy.device)
        self._meter.end()
        self._measure(strategy)

    def before_eval(self, strategy: Any) -> None:
        """Pause the clock of the training, start that of the evaluation."""
        self._meter.lap(strategy.device)
        self._meter.enter_evaluation()

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Emit the seconds of all evaluations since the last training experience began."""
        self._meter.lap(strategy.device)
        self._meter.leave_evaluation()
        self._measure(strategy)
        if strategy.experience is None:
            return []
        name = f"Evaluation_Seconds/eval_phase/{stream_type(strategy.experience)}_stream"
        seconds = self._meter.seconds["evaluation"][self._meter.row]
        return [MetricValue(self, name, seconds, strategy.clock.train_iterations)]

    def __str__(self) -> str:
        return "Cost"

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


def training_images(strategy: Any) -> int:
    """Return how many images there are to train on: of an experience, or of a chunk of one."""
    host = isinstance(strategy, JointTraining)
    experiences = strategy._experiences if host else [strategy.experience]
    return sum(len(each.dataset) for each in experiences)


def cost_metrics() -> CostMetric:
    """Build the cost metric."""
    return CostMetric()


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
