"""All that a strategy remembers: its own, the model's, the optimizer's and the plugins'."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_peftcl.checkpoints import host_plugins as host_plugins  # they register what they
from avalanche_peftcl.checkpoints import host_strategies as host_strategies  # know
from avalanche_peftcl.checkpoints.joints import Surroundings
from avalanche_peftcl.checkpoints.model_state import (
    has_tensors_of,
    load_model_state,
    load_optimizer_state,
    model_state,
    optimizer_state,
)
from avalanche_peftcl.checkpoints.remembered import load_state_of, obstacle, state_of
from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.models.frozen import Frozen
from avalanche_peftcl.training.streams import starts_experience


class StrategyState:
    """Takes down what a strategy remembers, and brings a new one to the same point.

    Args:
        strategy: Any Avalanche strategy that :class:`.Remembers` or is :class:`.Stateful`, such as
            a :class:`.PEFTTemplate`; Avalanche's ``Naive``, ``Cumulative``, ``EWC``, ``LwF`` and
            ``Replay``; and what a package registers with :func:`.host_state`. So with each of its
            plugins and metrics; those of which nothing is said are kept by their attributes.
        frozen: Networks that are built again as they are, or what of them is; left out.
    """

    def __init__(self, strategy: Any, *, frozen: Iterable[nn.Module] | Frozen = ()) -> None:
        self.strategy = strategy
        self.frozen = frozen if isinstance(frozen, Frozen) else Frozen(frozen)

    def obstacles(self) -> list[str]:
        """Return why the state cannot be known: a line for the strategy, each plugin and metric."""
        around = Surroundings(self.strategy, self.frozen)
        parts = [self.strategy]
        for plugin in self.strategy.plugins:
            parts += plugin.metrics if type(plugin) is EvaluationPlugin else [plugin]
        return [problem for part in parts if (problem := obstacle(part, around))]

    def save(self, *, trained: Sequence[Any]) -> dict[str, Any]:
        """Return the state, between two steps or two experiences.

        Args:
            trained: Training experiences visited so far, in order, the current one included.

        Raises:
            CheckpointError: If a part's state cannot be known.
        """
        around = Surroundings(self.strategy, self.frozen, trained)
        return {
            "strategy": state_of(self.strategy, around),
            "model": model_state(self.strategy.model, frozen=self.frozen),
            "optimizer": optimizer_state(self.strategy),
            "plugins": [
                {"class": type(plugin).__name__, "state": state_of(plugin, around)}
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
            load_state_of(strategy, state["strategy"], around)
            for plugin, saved in zip(strategy.plugins, state["plugins"], strict=True):
                if type(plugin).__name__ != saved["class"]:
                    raise CheckpointError(
                        f"a {type(plugin).__name__} stands where a {saved['class']} stood"
                    )
                load_state_of(plugin, saved["state"], around)
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
