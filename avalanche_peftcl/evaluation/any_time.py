"""The accuracy on all that was seen, at every so many training iterations."""

import math
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation.accuracy_matrix import trained_experience
from avalanche_peftcl.evaluation.inside import Probe, first_tests
from avalanche_peftcl.functional.any_time import (
    any_time_area,
    average_minimum_accuracy,
    minimum_since_learned,
    worst_case_accuracy,
)
from avalanche_peftcl.registry.offers import ExperienceOffers
from avalanche_peftcl.registry.ranges import Count, Seed

Summary = dict[str, Any]


class AnyTimeMetric(PluginMetric[Summary]):
    """Evaluate while a strategy trains: on test images of all experiences that it has come to.

    There is a point at every ``every`` training iterations, counted over the whole run, and one at
    the end of each experience; chunks of an online stream are parts of one. Where nothing trains by
    iterations (``closed_form``), an experience, or a chunk, counts as one. Joint training comes to
    all experiences at once; none is older than another, and what looks at older ones is undefined.

    How images are predicted, and that training does not notice, stands in :class:`.Probe`. A head
    that is fitted and cannot follow minibatches is fitted for each point, see
    :class:`.HeadPlugin`: that is a pass over the experience's training images.

    After each experience ``Any_Time_Accuracy/eval_phase/test_stream`` is emitted, and
    ``Average_Minimum_Accuracy`` and ``Worst_Case_Accuracy`` likewise, where they are defined. Their
    formulas are in :mod:`avalanche_peftcl.functional.any_time`.

    Args:
        every: Training iterations between two points.
        images_per_experience: At most so many test images of each experience, a seeded choice that
            stays; ``None``, all.
        seed: Of the choice.
        stream_name: The stream that is tested on: of the benchmark that the training experiences
            are of, or where they do not know it, among the ``eval_streams`` of ``train()``. Its
            experiences line up with those of the training stream.

    Raises:
        ConfigError: In training, if there is no such stream.
        NotFiniteError: In training, if the outputs for an image are not finite numbers.

    Source:
        De Lange et al., Continual evaluation for lifelong learning: identifying the stability gap,
        ICLR 2023; area: Koh et al., ICLR 2022.
        Differs: a point at the end of each experience too.

    Example:
        >>> from avalanche.logging import BaseLogger
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> from avalanche_peftcl.testing import toy_backbone, toy_benchmark
        >>> from avalanche_peftcl.training.naive import build_naive
        >>> metric = AnyTimeMetric(every=2)
        >>> strategy = build_naive(
        ...     backbone=toy_backbone(),
        ...     train_epochs=1,
        ...     train_mb_size=4,
        ...     evaluator=EvaluationPlugin(metric, loggers=[BaseLogger()]),
        ... )
        >>> for experience in toy_benchmark().train_stream:  # of three minibatches each
        ...     _ = strategy.train(experience, eval_streams=[])
        >>> metric.summary()["iterations"], metric.summary()["experience"]
        ([2, 3, 4, 6, 8, 9], [0, 0, 1, 1, 2, 2])
    """

    remembers = ("steps", "iterations", "trained", "rows", "learned", "_trains")

    def __init__(
        self,
        *,
        every: int = 10,
        images_per_experience: int | None = 100,
        seed: int = 0,
        stream_name: str = "test",
    ) -> None:
        super().__init__()
        if every < 1:
            raise ConfigError(f"every={every} is not a positive number of training iterations")
        if images_per_experience is not None and images_per_experience < 1:
            raise ConfigError(
                f"images_per_experience={images_per_experience} is not a positive number; leave it "
                "open (None) for all"
            )
        self.every, self.stream_name = every, stream_name
        self.images_per_experience, self.seed = images_per_experience, seed
        self.reset()

    def reset(self) -> None:
        """Forget the run."""
        self.steps = 0
        """Training iterations so far."""
        self.iterations: list[int] = []
        """Those done at each point."""
        self.trained: list[int] = []
        """Number of the experience in training at each point."""
        self.rows: list[list[float]] = []
        """Accuracy on each experience that it has come to, at each point."""
        self.learned: list[int] = []
        """Iterations done at the end of each experience."""
        self._trains = False  # whether there was an iteration of the present experience
        self._probe = Probe(images_per_experience=self.images_per_experience, seed=self.seed)

    def summary(self) -> Summary:
        """Return the curve, and what follows from it.

        Returns:
            ``every``; one entry a point: ``iterations``, ``experience`` (the number of the one in
            training), ``accuracy`` (mean over the experiences that it has come to, each of the same
            weight) and ``per_experience`` (a row of them, ``None`` where it has not come to one);
            ``area``, ``average_minimum``, ``worst_case``; ``minimum``, one an experience. ``None``
            where undefined.
        """
        x, table, learned = self._tensors()
        parts = x, table, learned
        curve = [sum(row) / len(row) for row in self.rows]
        return {
            "every": self.every,
            "iterations": list(self.iterations),
            "experience": list(self.trained),
            "accuracy": curve,
            "per_experience": [_defined(row) for row in table],
            "area": _number(any_time_area(x, torch.tensor(curve, dtype=torch.float64))),
            "minimum": _defined(minimum_since_learned(*parts)),
            "average_minimum": _number(average_minimum_accuracy(*parts)),
            "worst_case": _number(worst_case_accuracy(*parts)),
        }

    def result(self) -> Summary:
        """Return :meth:`summary`."""
        return self.summary()

    def before_training_exp(self, strategy: Any) -> None:
        """Wait for the first iteration of the experience."""
        self._trains = False

    def after_training_iteration(self, strategy: Any) -> None:
        """Evaluate, if it is time."""
        self.steps += 1
        self._trains = True
        if self.steps % self.every == 0:
            self._evaluate(strategy)

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Evaluate at the end of the experience and emit what is defined."""
        ends = ExperienceOffers.of(strategy.experience).is_last_subexp is not False
        self.steps += not self._trains
        if ends or (not self._trains and self.steps % self.every == 0):
            self._evaluate(strategy)
        if not ends:
            return []
        number = int(trained_experience(strategy).current_experience)
        self.learned += [self.steps] * (number + 1 - len(self.learned))
        found = self.summary()
        named = {
            "Any_Time_Accuracy": found["area"],
            "Average_Minimum_Accuracy": found["average_minimum"],
            "Worst_Case_Accuracy": found["worst_case"],
        }
        where = f"eval_phase/{self.stream_name}_stream"
        x = strategy.clock.train_iterations
        return [MetricValue(self, f"{k}/{where}", v, x) for k, v in named.items() if v is not None]

    def __str__(self) -> str:
        return "Any_Time"

    def _evaluate(self, strategy: Any) -> None:
        """Add a point; that of an experience's end takes the place of the last iteration's."""
        if self.iterations[-1:] == [self.steps]:
            for points in (self.iterations, self.trained, self.rows):
                del points[-1]
        experience = trained_experience(strategy)
        number = int(experience.current_experience)
        what = "accuracy at any time"
        tests = first_tests(strategy, experience, self.stream_name, number + 1, what=what)
        self.rows.append(self._probe.accuracies(strategy, tests))
        self.iterations.append(self.steps)
        self.trained.append(number)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the points, the table and the ends, as the formulas take them."""
        width = max(map(len, self.rows), default=0)
        table = torch.full((len(self.rows), width), math.nan, dtype=torch.float64)
        for p, row in enumerate(self.rows):
            table[p, : len(row)] = torch.tensor(row, dtype=torch.float64)
        learned = torch.full((width,), math.inf, dtype=torch.float64)
        ends = self.learned[:width]
        learned[: len(ends)] = torch.tensor(ends, dtype=torch.float64)
        return torch.tensor(self.iterations, dtype=torch.float64), table, learned


def any_time_metrics(
    *, every: Count = 10, images_per_experience: Count | None = 100, seed: Seed = 0
) -> AnyTimeMetric:
    """Build the metric of accuracy while the strategy trains.

    Args:
        every: Training iterations between two points; there is one at the end of each experience
            too.
        images_per_experience: At most so many test images of each experience, a seeded choice that
            stays; ``None``, all.
        seed: Of the choice, the same whatever the run's seed.
    """
    return AnyTimeMetric(every=every, images_per_experience=images_per_experience, seed=seed)


def _defined(values: Tensor) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
