"""What every Avalanche plugin that a configuration can name must do."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from avalanche_peftcl.models.rng import random_state
from avalanche_peftcl.registry.offers import PluginOffers
from avalanche_peftcl.testing.learnable import blind_backbone
from avalanche_peftcl.testing.probes import Watch, differing, outputs, weights
from avalanche_peftcl.testing.resuming import ends_elsewhere, obstacles
from avalanche_peftcl.testing.stage import stream, tuning
from avalanche_peftcl.testing.strategy import SCENARIOS
from avalanche_peftcl.training.feature_pass import network_of

CPU = torch.device("cpu")


class PluginContract:
    """Subclass, write :meth:`create_plugin`, and the suite is yours.

    Attributes:
        scenarios: The scenarios in which the plugin works; the others are skipped.

    Example:
        >>> from avalanche_peftcl.training.plugins import RetentionPlugin
        >>> class TestRetention(PluginContract):
        ...     def create_plugin(self):
        ...         return RetentionPlugin(0.1)
        >>> TestRetention().test_goes_on_from_its_state()
    """

    scenarios: tuple[str, ...] = SCENARIOS

    def create_plugin(self) -> Any:
        """Return the plugin under test, new at each call."""
        raise NotImplementedError

    def create_strategy(self, plugins: Sequence[Any]) -> Any:
        """Return a strategy with these plugins on :func:`.blind_backbone`, for another network."""
        return tuning(plugins=plugins)

    def build(self, *more: Any, seed: int = 0) -> Any:
        """Return a new strategy with the plugin under test, and further ones."""
        torch.manual_seed(seed)
        return self.create_strategy([self.create_plugin(), *more])

    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_trains_and_evaluates(self, scenario: str) -> None:
        """Two experiences train with it to finite weights, and are evaluated."""
        if scenario not in self.scenarios:
            pytest.skip(f"the plugin does not claim scenario {scenario!r}")
        strategy, benchmark = self.build(), stream(scenario)
        for experience in benchmark.train_stream:
            strategy.train(experience)
        assert all(p.isfinite().all() for p in strategy.model.parameters())
        for experience in benchmark.test_stream:
            assert outputs(strategy, experience).isfinite().all()

    def test_frozen_network_is_left_alone(self) -> None:
        """The backbone is bit-identical, in eval mode, and got no gradient at any step."""
        watch = Watch()
        strategy = self.build(watch)
        strategy.train(stream().train_stream)
        backbone: Any = network_of(strategy).backbone
        assert not differing(backbone.state_dict(), blind_backbone().state_dict())
        assert not any(module.training for module in backbone.modules())
        assert not [name for name in watch.not_optimized if name.startswith("backbone.")]

    def test_no_effect_in_evaluation(self) -> None:
        """Without it what is trained puts out the same, and is evaluated to the same state."""
        torch.manual_seed(0)
        plugin, benchmark = self.create_plugin(), stream()
        strategy = self.create_strategy([plugin])
        strategy.train(benchmark.train_stream[0])
        before, test = weights(strategy.model), benchmark.test_stream[0]
        torch.manual_seed(0)
        beside = outputs(strategy, test), random_state(CPU)["torch"]
        assert not differing(weights(strategy.model), before)
        strategy.plugins = [other for other in strategy.plugins if other is not plugin]
        torch.manual_seed(0)
        alone = outputs(strategy, test), random_state(CPU)["torch"]
        assert all(torch.equal(one, other) for one, other in zip(beside, alone, strict=True))

    def test_same_seed_same_numbers(self) -> None:
        """Two runs of one seed end with the same weights, bit for bit."""
        ends = []
        for _ in range(2):
            strategy = self.build(seed=1)
            strategy.train(stream().train_stream)
            ends.append(weights(strategy.model))
        assert not differing(*ends)

    def test_goes_on_from_its_state(self) -> None:
        """A run goes on with it to the same weights, from between and from inside experiences."""
        if problems := obstacles(self.build()):
            pytest.skip(f"runs with the plugin cannot be resumed: {'; '.join(problems)}")
        experiences = list(stream().train_stream)
        assert not ends_elsewhere(self.build, experiences, after=3)

    def test_what_it_tells_is_plain(self) -> None:
        """What it has for record, user and cost is plain values, a line, a number of floats."""
        plugin = self.create_plugin()
        self.create_strategy([plugin]).train(stream().train_stream)
        offers = PluginOffers.of(plugin)
        if offers.summary is not None:
            json.dumps(offers.summary())
        if offers.headline is not None:
            line = offers.headline()
            assert line is None or (isinstance(line, str) and "\n" not in line)
        stored = offers.stored_floats
        assert isinstance(stored, int)
        assert stored >= 0
