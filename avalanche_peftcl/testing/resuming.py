"""A strategy's state as a checkpoint keeps it, and the way back to it."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from avalanche_peftcl.checkpoints.archive import decode_state, encode_state
from avalanche_peftcl.checkpoints.strategy_state import StrategyState
from avalanche_peftcl.models.rng import random_state, set_random_state
from avalanche_peftcl.testing.probes import differing, weights
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.feature_pass import network_of

CPU = torch.device("cpu")


def obstacles(strategy: Any) -> list[str]:
    """Return why the state of a strategy and its plugins cannot be known."""
    return _keeper(strategy).obstacles()


def ends_elsewhere(build: Callable[[], Any], stream: Sequence[Any], *, after: int = 4) -> list[str]:
    """Train on one or two experiences, and from states taken on the way; say what ends otherwise.

    States are taken between the experiences and, of a :class:`.PEFTTemplate`, after some
    minibatches of the last one. They come back as from a file, in strategies that are new.

    Args:
        build: Returns a new strategy, with any seed.
        stream: One or two training experiences.
        after: How many minibatches.

    Returns:
        For each entry of the model's state that differs, its name and where it was taken.
    """
    old, before, last = build(), stream[:-1], stream[-1]
    held: dict[str, Any] = {}
    for experience in before:
        old.train(experience, eval_streams=[])
        held["between experiences"] = _hold(old, before)
    if isinstance(old, PEFTTemplate):
        old.cursor.every = after

        def save(position: dict[str, Any]) -> None:
            held.setdefault("inside one", _hold(old, stream, position))

        old.cursor.save = save
    old.train(last, eval_streams=[])
    found, ends = [], weights(old.model)
    for where, state in held.items():
        new = build()
        _go_on(new, state, stream)
        new.train(last, eval_streams=[])
        found += [f"{name}, {where}" for name in differing(weights(new.model), ends)]
    return found


def carried_over(old: Any, build: Callable[[], Any], benchmark: Any) -> Any:
    """Return a new strategy that is where an old one is after one experience, as from a file.

    Args:
        old: It was trained on the first experience, and evaluated on all.
        build: Returns a new strategy, with any seed.
        benchmark: Built as before.
    """
    trained = list(benchmark.train_stream)[:1]
    held = _hold(old, trained)
    new = build()
    _keeper(new).load(held["state"], trained=trained, tested=list(benchmark.test_stream))
    set_random_state(held["random"], CPU)
    return new


def _keeper(strategy: Any) -> StrategyState:
    backbone: Any = network_of(strategy).backbone
    return StrategyState(strategy, frozen=[backbone])


def _hold(strategy: Any, trained: Sequence[Any], position: Any = None) -> Any:
    state = _keeper(strategy).save(trained=trained)
    whole = {"state": state, "random": random_state(CPU), "position": position}
    return decode_state(encode_state(whole), "checkpoint")


def _go_on(new: Any, held: Any, stream: Sequence[Any]) -> None:
    position, keeper = held["position"], _keeper(new)
    trained = stream[:-1] if position is None else stream
    keeper.load(copy.deepcopy(held["state"]), trained=trained, tested=[])
    set_random_state(held["random"], CPU)
    if position is not None:

        def restore() -> None:
            keeper.load(copy.deepcopy(held["state"]), trained=trained)
            set_random_state(held["random"], CPU)

        new.cursor.go_to(position, restore)
