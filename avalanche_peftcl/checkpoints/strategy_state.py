"""All that a strategy remembers: its own, the model's, the optimizer's and the plugins'."""

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.supervised import EWC, Cumulative, LwF, Naive, Replay
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from avalanche_peftcl.checkpoints.host_plugins import (
    Surroundings,
    load_plugin_state,
    obstacle,
    plugin_state,
)
from avalanche_peftcl.checkpoints.model_state import (
    has_tensors_of,
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
)
from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.models.frozen import Frozen
from avalanche_peftcl.training.streams import starts_experience

# Avalanche's strategies that remember nothing beside model, optimizer, plugins and images seen
_HOST = (SupervisedTemplate, Naive, Cumulative, EWC, LwF, Replay)


class StrategyState:
    """Takes down what a strategy remembers, and brings a new one to the same point.

    The strategy itself and each of its plugins and metrics is asked by ``state_dict()`` and told
    by ``load_state_dict()``; Avalanche's own, which have neither, are known. What has no attributes
    has no state.

    Args:
        strategy: Any Avalanche strategy with ``state_dict()`` and ``load_state_dict()``, such as a
            :class:`.PEFTTemplate`; or Avalanche's ``Naive``, ``Cumulative``, ``EWC``, ``LwF`` and
            ``Replay``.
        frozen: Networks that are built again as they are, or what of them is; left out.
    """

    def __init__(self, strategy: Any, *, frozen: Iterable[nn.Module] | Frozen = ()) -> None:
        self.strategy = strategy
        self.frozen = frozen if isinstance(frozen, Frozen) else Frozen(frozen)

    def obstacles(self) -> list[str]:
        """Return why the state cannot be known: a line for the strategy and each plugin."""
        own = ("state_dict", "load_state_dict")
        found = [problem for plugin in self.strategy.plugins if (problem := obstacle(plugin))]
        known = type(self.strategy) in _HOST
        if not known and not all(callable(getattr(self.strategy, name, None)) for name in own):
            found.insert(0, f"{type(self.strategy).__name__} has no {own[0]}() and {own[1]}()")
        return found

    def save(self, *, trained: Sequence[Any]) -> dict[str, Any]:
        """Return the state, between two steps or two experiences.

        Args:
            trained: Training experiences visited so far, in order, the current one included.

        Raises:
            CheckpointError: If a part's state cannot be known.
        """
        if problems := self.obstacles():
            raise CheckpointError("; ".join(problems))
        around = Surroundings(self.strategy, self.frozen, trained)
        return {
            "strategy": {} if type(self.strategy) in _HOST else self.strategy.state_dict(),
            "model": model_state(self.strategy.model, frozen=self.frozen),
            "optimizer": optimizer_state(self.strategy),
            "plugins": [
                {"class": type(plugin).__name__, "state": plugin_state(plugin, around)}
                for plugin in self.strategy.plugins
            ],
        }

    def load(
        self,
        state: Mapping[str, Any],
        *,
        trained: Sequence[Any],
        tested: Sequence[Any] | None = None,
        perhaps_tested: Sequence[Any] = (),
    ) -> None:
        """Bring the strategy to a saved state.

        Args:
            state: What :meth:`save` returned.
            trained: As for :meth:`save`.
            tested: Test experiences evaluated so far; given for a strategy that is new, whose model
                has not been adapted to any experience yet.
            perhaps_tested: Of a new strategy too, further test experiences: the model is adapted to
                as many of them as it takes to have the saved tensors.

        Raises:
            CheckpointError: If the state is not that of such a strategy.
        """
        strategy = self.strategy
        around = Surroundings(strategy, self.frozen, trained)
        try:
            if tested is not None:
                strategy.model.to(strategy.device)  # the optimizer's state goes where the model is
                self._adapt(trained, tested)
                for experience in perhaps_tested:
                    if has_tensors_of(strategy.model, state["model"]):
                        break
                    self._adapt((), [experience])
            load_model_state(
                strategy.model, state["model"], missing=self.frozen.names(strategy.model)
            )
            load_optimizer_state(strategy, state["optimizer"])
            if type(strategy) not in _HOST:
                strategy.load_state_dict(state["strategy"])
            elif isinstance(strategy, Cumulative) and trained:
                parts = [experience.dataset for experience in trained]
                strategy.dataset = reduce(lambda one, more: concat_datasets([one, more]), parts)
            for plugin, saved in zip(strategy.plugins, state["plugins"], strict=True):
                if type(plugin).__name__ != saved["class"]:
                    raise CheckpointError(
                        f"a {type(plugin).__name__} stands where a {saved['class']} stood"
                    )
                load_plugin_state(plugin, saved["state"], around)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"the saved state does not fit {type(strategy).__name__}: {error}"
            ) from error

    def _adapt(self, trained: Sequence[Any], tested: Sequence[Any]) -> None:
        """Let modules grow as they did; modules of Avalanche load nothing of another size."""
        strategy = self.strategy
        before = strategy.is_training
        started = [experience for experience in trained if starts_experience(experience)]
        for strategy.is_training, experiences in ((True, started), (False, tested)):
            for strategy.experience in experiences:
                strategy.model = strategy.model_adaptation()
        strategy.experience, strategy.is_training = None, before
