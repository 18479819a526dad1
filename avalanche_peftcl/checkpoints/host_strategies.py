"""What Avalanche's own strategies remember beside model, optimizer, plugins and images seen."""

from functools import reduce
from typing import Any

from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.supervised import EWC, Cumulative, LwF, Naive, Replay
from avalanche.training.templates import SupervisedTemplate

from avalanche_peftcl.checkpoints.joints import State, Surroundings
from avalanche_peftcl.checkpoints.remembered import host_state, load_host_state


def _nothing(strategy: Any, around: Surroundings) -> State:
    return {}


def _load_nothing(strategy: Any, state: State, around: Surroundings) -> None:
    pass


for _kind in (SupervisedTemplate, Naive, EWC, LwF, Replay, Cumulative):
    host_state.register(_kind, _nothing)
    load_host_state.register(_kind, _load_nothing)


@load_host_state.register(Cumulative)
def _load_cumulative(strategy: Any, state: State, around: Surroundings) -> None:
    if around.trained:
        parts = [experience.dataset for experience in around.trained]
        strategy.dataset = reduce(lambda one, more: concat_datasets([one, more]), parts)
