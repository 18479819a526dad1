"""What every plugin metric that a configuration can name must do."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from avalanche_peftcl.models import Backbone
from avalanche_peftcl.registry.offers import MetricOffers
from avalanche_peftcl.testing.learnable import blind_backbone
from avalanche_peftcl.testing.probes import differing
from avalanche_peftcl.testing.resuming import carried_over, obstacles
from avalanche_peftcl.testing.stage import Kept, stream, tuned, tuning
from avalanche_peftcl.training import PEFTTemplate

Told = dict[str, list[float]]


class MetricContract:
    """Subclass, write :meth:`create_metric`, and the suite is yours.

    Attributes:
        measures: Words in the names of values that no two runs have alike, such as seconds.

    Example:
        >>> from avalanche_peftcl.evaluation import AccuracyMatrix
        >>> class TestAccuracyMatrix(MetricContract):
        ...     def create_metric(self):
        ...         return AccuracyMatrix()
        >>> TestAccuracyMatrix().test_values_are_numbers()
    """

    measures: tuple[str, ...] = ()

    def create_metric(self) -> Any:
        """Return the plugin metric under test, or a list of them, new at each call."""
        raise NotImplementedError

    def create_backbone(self) -> Backbone:
        """Return the frozen network of the runs; one with a text side for a metric of such."""
        return blind_backbone()

    def tuning(self, **options: Any) -> PEFTTemplate:
        """Return a strategy to train, see :func:`.stage.tuning`."""
        return tuning(backbone=self.create_backbone(), **options)

    def metrics(self) -> list[Any]:
        """Return what :meth:`create_metric` does, as a list."""
        made = self.create_metric()
        return list(made) if isinstance(made, list | tuple) else [made]

    def test_does_not_change_the_run(self) -> None:
        """A run ends with the same weights and generators with it and without, bit for bit."""
        _, plain = tuned(self.tuning)
        _, beside = tuned(lambda: self.tuning(metrics=self.metrics()))
        assert not differing(plain, beside)

    def test_values_are_numbers(self) -> None:
        """It says something, each time a number under a name."""
        kept = Kept()
        tuned(lambda: self.tuning(metrics=self.metrics(), loggers=[kept]))
        assert kept.told
        for name, value, x in kept.told:
            assert isinstance(name, str)
            assert isinstance(value, int | float) or (
                torch.is_tensor(value) and value.numel() == 1
            ), f"{name} is {value!r}"
            assert isinstance(x, int)

    def test_what_it_tells_is_plain(self) -> None:
        """Its summary, if it has one, is a dict of what JSON can hold, trained or not."""
        used = self.metrics()
        self._check_summaries(used)
        tuned(lambda: self.tuning(metrics=used))
        self._check_summaries(used)

    def test_goes_on_from_its_state(self) -> None:
        """A run that goes on after an experience tells what the whole run does.

        Between experiences a metric may forget what its values no longer depend on.
        """
        if problems := obstacles(self.tuning(metrics=self.metrics())):
            pytest.skip(f"runs with the metric cannot be resumed: {'; '.join(problems)}")
        assert self._told(resumed=False) == self._told(resumed=True)

    def test_reset_forgets(self) -> None:
        """After ``reset()`` it has the result of a new one."""
        used, new = self.metrics(), self.metrics()
        tuned(lambda: self.tuning(metrics=used))
        for metric, fresh in zip(used, new, strict=True):
            metric.reset()
            assert str(metric.result()) == str(fresh.result())

    @staticmethod
    def _check_summaries(metrics: list[Any]) -> None:
        for metric in metrics:
            summary = MetricOffers.of(metric).summary
            told = {} if summary is None else summary()
            assert isinstance(told, Mapping), f"the summary of {metric} is {told!r}"
            try:
                json.dumps(told)
            except TypeError as error:
                raise AssertionError(f"the summary of {metric} is not plain: {error}") from error

    def _told(self, *, resumed: bool) -> Told:
        kept = Kept()

        def build() -> Any:
            return self.tuning(metrics=self.metrics(), loggers=[kept])

        def again(old: Any) -> Any:
            return carried_over(old, build, stream())

        tuned(build, again if resumed else None)
        found: Told = {}
        for name, value, _ in kept.told:
            if not any(word in name for word in self.measures):
                found.setdefault(name, []).append(float(value))
        return found
