"""One accuracy matrix per run, and every number that follows from it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.training.supervised import JointTraining
from torch import Tensor

from avalanche_peftcl.evaluation.running_matrix import RunningMatrix
from avalanche_peftcl.functional.finite import check_decided, undecided
from avalanche_peftcl.functional.matrix_vectors import mean
from avalanche_peftcl.registry.offers import ExperienceOffers

Summary = dict[str, float | list[float | None] | None]


class AccuracyMatrix(PluginMetric[Summary]):
    """Record the accuracy on each test experience after each training experience.

    Rows are training experiences (of online streams: the origin experience of the chunk), columns
    are test experiences. A row holds the last evaluation made while, or after, its experience was
    the last one trained; so periodic evaluation during training is overwritten by the final one.
    Works with every strategy that has ``mb_output`` and ``mb_y``, with and without task labels.

    The numbers are emitted after each ``eval()``, as ``Average_Accuracy/eval_phase/test_stream``
    and so on; their formulas are in :mod:`avalanche_peftcl.functional.accuracy_matrix`.

    Args:
        stream_name: The stream whose evaluations are recorded; others are left alone.

    Raises:
        NotFiniteError: In evaluation, if the outputs for an image are not finite numbers: that is
            no prediction, and nothing is recorded of the experience.

    Source:
        Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017.
        Differs: nothing.

    Example:
        >>> metric = AccuracyMatrix()
        >>> metric.record(None, 0, correct=1, total=10)  # the evaluator does this
        >>> metric.record(0, 0, correct=9, total=10)
        >>> metric.matrix, metric.baseline, metric.summary()["last_accuracy"]
        (tensor([[0.9000]], dtype=torch.float64), tensor([0.1000], dtype=torch.float64), 0.9)
    """

    def __init__(self, *, stream_name: str = "test") -> None:
        super().__init__()
        self.stream_name = stream_name
        self.reset()

    def reset(self) -> None:
        """Forget the run."""
        self._running = RunningMatrix()
        self._counted = 0  # columns whose number of images was asked for
        self.kept_elsewhere = 0
        """So many rows, from the first, are kept by the run's record: left out of the state."""
        self._row: int | None = None  # of the experience last trained
        self._correct: Tensor | int = 0
        self._undecided = torch.tensor(0)
        self._total = 0
        self._recorded = False  # anything, since before_eval

    @property
    def matrix(self) -> Tensor:
        """``(T, T)``, float64, fractions; ``nan`` where not evaluated."""
        return self._running.matrix

    @property
    def counts(self) -> Tensor:
        """Test images of each experience, ``(T,)``, int64; 0 where there are none."""
        return self._running.counts

    @property
    def baseline(self) -> Tensor:
        """Accuracies before any training, ``(T,)``, float64; ``nan`` where not evaluated."""
        return self._running.baseline

    def state_dict(self) -> dict[str, Any]:
        """Return what is recorded, without the rows that are kept elsewhere."""
        first = self.kept_elsewhere
        return {
            "size": len(self._running),
            "first": first,
            "rows": self.matrix[first : self._running.recorded].clone(),
            "counts": self.counts.clone(),
            "baseline": self.baseline.clone(),
            "row": self._row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned; rows kept elsewhere stay as they are."""
        if self.kept_elsewhere < state["first"]:
            raise ValueError(f"the first {state['first']} rows of the accuracy matrix are missing")
        earlier = self.matrix[: state["first"]].clone()
        self._running = RunningMatrix()
        self._running.grow(state["size"])
        self._running.counts.copy_(state["counts"])
        self._running.baseline.copy_(state["baseline"])
        self._running.fill(0, earlier)
        self._running.fill(state["first"], state["rows"])
        self._row, self._counted, self.kept_elsewhere = state["row"], 0, state["first"]

    def keep_elsewhere(self, rows: Tensor | int) -> None:
        """Leave rows out of the state, from the first, which the run's record keeps.

        Args:
            rows: How many; or the rows themselves, ``(N, T)``, as read from there.
        """
        if isinstance(rows, Tensor):
            self._running.fill(0, rows)
        self.kept_elsewhere = rows if isinstance(rows, int) else len(rows)

    def record(self, row: int | None, column: int, *, correct: int, total: int) -> None:
        """Enter the result on one test experience.

        Args:
            row: Training experience last trained; ``None`` before any training.
            column: Test experience.
            correct: Images predicted right.
            total: Images.
        """
        self._running.record(row, column, correct=correct, total=total)

    def summary(self) -> Summary:
        """Return all derived numbers.

        Returns:
            Fractions; ``None`` where undefined. ``average_accuracy`` weighs experiences equally,
            ``last_accuracy`` and ``accuracy_curve`` weigh images equally, and
            ``average_incremental_accuracy`` is the mean of the curve. ``per_task`` is the final
            row: one value a task or, if experiences are domains, a domain. ``forgetting`` is the
            mean of ``forgetting_by_experience``: one value an experience but the last.
        """
        vectors, curve = self._running.vectors(), self._running.curve()
        scalars = {
            "average_accuracy": vectors.average_accuracy(),
            "average_incremental_accuracy": mean(torch.tensor(curve, dtype=torch.float64)),
            "last_accuracy": curve[-1] if curve else math.nan,
            "forgetting": vectors.forgetting(),
            "clipped_forgetting": vectors.clipped_forgetting(),
            "backward_transfer": vectors.backward_transfer(),
            "forward_transfer": vectors.forward_transfer(self.baseline),
            "learning_accuracy": vectors.learning_accuracy(),
        }
        return {
            **{name: _defined(value) for name, value in scalars.items()},
            "accuracy_curve": [_defined(value) for value in curve],
            "per_task": [_defined(value) for value in vectors.final.tolist()],
            "forgetting_by_experience": [_defined(value) for value in vectors.drops().tolist()],
        }

    def result(self) -> Summary:
        """Return :meth:`summary`."""
        return self.summary()

    def before_training_exp(self, strategy: Any) -> None:
        """Note the row; the length of the stream, where known, is the size of the matrix."""
        experience = trained_experience(strategy)
        self._row = int(experience.current_experience)
        self._running.grow(max(self._row + 1, _length(full_stream(experience))))

    def before_eval(self, strategy: Any) -> None:
        """Begin an evaluation."""
        self._recorded = False

    def before_eval_exp(self, strategy: Any) -> None:
        """Start counting; note how many images the other test experiences have, where known."""
        self._correct, self._total, self._undecided = 0, 0, torch.tensor(0)
        if not self._is_ours(strategy):
            return
        stream = full_stream(strategy.experience)
        self._running.grow(_length(stream))
        for column in range(self._counted, _length(stream)):  # once, not at every experience
            if not self.counts[column]:
                self._running.count(column, len(stream[column].dataset))
        self._counted = max(self._counted, _length(stream))

    def after_eval_iteration(self, strategy: Any) -> None:
        """Count a minibatch; the sum stays on the device."""
        if self._is_ours(strategy):
            self._correct = self._correct + (strategy.mb_output.argmax(1) == strategy.mb_y).sum()
            self._undecided = undecided(strategy.mb_output) + self._undecided
            self._total += len(strategy.mb_y)

    def after_eval_exp(self, strategy: Any) -> None:
        """Enter the accuracy on a test experience."""
        if self._is_ours(strategy):
            column = int(strategy.experience.current_experience)
            where = f"experience {column + 1} of stream {self.stream_name}"
            check_decided(self._undecided, self._total, where)
            self.record(self._row, column, correct=int(self._correct), total=self._total)
            self._recorded = True

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Emit the numbers that are defined."""
        if not self._recorded or self._row is None:
            return []
        return [
            MetricValue(
                self,
                f"{name.title()}/eval_phase/{self.stream_name}_stream",
                value,
                strategy.clock.train_iterations,
            )
            for name, value in self.summary().items()
            if isinstance(value, float)
        ]

    def __str__(self) -> str:
        return "Accuracy_Matrix"

    def _is_ours(self, strategy: Any) -> bool:
        return bool(strategy.experience.origin_stream.name == self.stream_name)


def accuracy_matrix_metrics() -> AccuracyMatrix:
    """Build the accuracy matrix of the test stream."""
    return AccuracyMatrix()


def trained_experience(strategy: Any) -> Any:
    """Return the experience that ``strategy`` trains on, as an experience of the original stream.

    Args:
        strategy: Any Avalanche strategy, while it trains on an experience.

    Returns:
        For a chunk of an online stream its origin experience; for joint training, which visits the
        first experience only, the last of the list.
    """
    experience = strategy.experience
    if isinstance(strategy, JointTraining):
        experience = strategy._experiences[-1]
    origin = ExperienceOffers.of(experience).origin_experience
    return experience if origin is None else origin


def full_stream(experience: Any) -> Any:
    """Return the whole stream of ``experience``, which may have been taken from a slice."""
    stream = experience.origin_stream
    return streams_beside(stream).get(stream.name, stream)


def streams_beside(stream: Any) -> Mapping[str, Any]:
    """Return all streams of the benchmark that a stream is of; none where it does not know it."""
    streams: Mapping[str, Any] = getattr(getattr(stream, "benchmark", None), "streams", {})
    return streams


def _length(stream: Any) -> int:
    """Return the number of experiences of a stream that can be indexed; 0 if it is lazy."""
    return len(stream) if hasattr(stream, "__len__") and hasattr(stream, "__getitem__") else 0


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value
