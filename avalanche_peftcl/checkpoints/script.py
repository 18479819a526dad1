"""Save a strategy between two experiences, and go on with it in another process."""

import os
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch

from avalanche_peftcl.checkpoints.differences import comparable, differences
from avalanche_peftcl.checkpoints.folder import read_state, write_state
from avalanche_peftcl.checkpoints.strategy_state import StrategyState
from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.models.backbones.weights import weights_sha256
from avalanche_peftcl.models.frozen import Frozen
from avalanche_peftcl.models.rng import random_state, set_random_state
from avalanche_peftcl.registry.offers import BenchmarkOffers, StrategyOffers
from avalanche_peftcl.training.joint import visits
from avalanche_peftcl.training.streams import class_pairs
from avalanche_peftcl.training.template import PEFTTemplate

Strategy = TypeVar("Strategy")

_PARTS = {"identity", "visited", "strategy", "random"}
_TOLD = ("scenario", "class_order", "class_names", "domains")  # of a benchmark


def save_checkpoint(strategy: Any, path: str | os.PathLike[str], *, benchmark: Any) -> None:
    """Write all that a strategy remembers to a file, in one step.

    That is all a run's checkpoint holds: the model with the rows of its heads, the optimizer, every
    plugin (bases, prototypes, replayed images, ...), the evaluator's metrics, the clock, and the
    random generators of Python, NumPy and torch. Of a :class:`.PEFTTemplate` the frozen
    backbone is left out; of Avalanche's strategies the whole model is written.

    Args:
        strategy: Between two experiences; it has visited ``benchmark.train_stream`` from its start,
            in order.
        path: The file; an earlier one is replaced.
        benchmark: What it is trained on.

    Raises:
        CheckpointError: If a part's state cannot be known, with its name, or the strategy is inside
            an experience.
        ConfigError: If the file cannot be written; an earlier one is as it was.

    Source:
        Named after ``avalanche.checkpointing.save_checkpoint``.
        Differs: state instead of pickled objects, so that nothing is executed on load; the
        benchmark is given, because replayed images are written as their places in it.

    Example:
        >>> import tempfile
        >>> from avalanche_peftcl.testing import toy_backbone, toy_benchmark
        >>> from avalanche_peftcl.training.naive import build_naive
        >>> benchmark = toy_benchmark("class")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "a.checkpoint"
        ...     for visits in (1, 3):  # as in two processes
        ...         strategy = build_naive(backbone=toy_backbone(), train_epochs=1)
        ...         strategy, start = maybe_load_checkpoint(strategy, path, benchmark=benchmark)
        ...         for experience in benchmark.train_stream[start:visits]:
        ...             print("experience", experience.current_experience)
        ...             _ = strategy.train(experience)
        ...             save_checkpoint(strategy, path, benchmark=benchmark)
        experience 0
        experience 1
        experience 2
    """
    if strategy.experience is not None:
        raise CheckpointError(
            "the strategy is inside an experience; save it after train() or eval() has returned"
        )
    visited = int(strategy.clock.train_exp_counter)
    trained = _visited(strategy, benchmark, visited)
    frozen = _frozen(strategy)
    state = {
        "strategy": StrategyState(strategy, frozen=frozen).save(trained=trained),
        "identity": _identity(strategy, frozen.names(strategy.model), benchmark, trained),
        "visited": visited,
        "random": random_state(torch.device(strategy.device)),
    }
    write_state(Path(path), state)


def maybe_load_checkpoint(
    strategy: Strategy, path: str | os.PathLike[str], *, benchmark: Any
) -> tuple[Strategy, int]:
    """Bring a new strategy, and the random generators, to where :func:`save_checkpoint` was called.

    From there it goes on like the one that was saved: to the same numbers and weights, bit for bit
    on the CPU with as many threads.

    Args:
        strategy: Built as the saved one was, of the same backbone, model, optimizer, plugins and
            metrics; it has trained nothing yet.
        path: The file.
        benchmark: Built as before.

    Returns:
        ``strategy``, and the number of training experiences visited; 0 if there is no file, 1
        after joint training, of all of them.

    Raises:
        CheckpointError: If the file cannot be read, is damaged, or is that of another strategy,
            model, backbone or benchmark; then the strategy is not to be used further.

    Source:
        Named after ``avalanche.checkpointing.maybe_load_checkpoint``.
        Differs: the strategy is built before, and is the one that is returned.

    Example:
        >>> maybe_load_checkpoint("a strategy", "no/such/file", benchmark=None)
        ('a strategy', 0)
    """
    path = Path(path)
    if not path.exists():
        return strategy, 0
    target: Any = strategy
    if target.clock.train_exp_counter:
        raise CheckpointError(
            f"{path} cannot be loaded into a strategy that has trained already; build a new one"
        )
    state = read_state(path, device=target.device)
    if not isinstance(state, dict) or not state.keys() >= _PARTS:
        raise CheckpointError(f"the checkpoint {path} is none of a strategy in a script")
    visited, identity = state["visited"], state["identity"]
    trained = _visited(target, benchmark, visited)
    _check(path, identity, _identity(target, identity["frozen"]["names"], benchmark, trained))
    tests = list(getattr(benchmark, "test_stream", ()))
    told = StrategyState(target, frozen=_frozen(target))
    try:
        told.load(state["strategy"], trained=trained, tested=(), perhaps_tested=tests)
    except CheckpointError as error:
        raise CheckpointError(f"the checkpoint {path} does not fit: {error}") from error
    set_random_state(state["random"], torch.device(target.device))
    return strategy, visited


def _frozen(strategy: Any) -> Frozen:
    """Return what a strategy has known as frozen since it was built; of others nothing."""
    return strategy.frozen if isinstance(strategy, PEFTTemplate) else Frozen()


def _visited(strategy: Any, benchmark: Any, count: int) -> list[Any]:
    stream = benchmark.train_stream
    if StrategyOffers.of(strategy).joint:
        stream = visits(strategy, stream)
    trained = list(islice(stream, count))
    if len(trained) < count:
        raise CheckpointError(
            f"the strategy has visited {count} experiences, the benchmark's training stream has "
            f"{len(trained)}; give the benchmark that it is trained on"
        )
    return trained


def _identity(strategy: Any, left_out: Any, benchmark: Any, trained: list[Any]) -> dict[str, Any]:
    """Return what must be the same where a strategy goes on."""
    metrics = getattr(strategy.evaluator, "metrics", ())
    offers = vars(BenchmarkOffers.of(benchmark))
    told = {name: offers[name] for name in _TOLD}
    told["classes_order"] = getattr(benchmark, "classes_order", None)  # the host's name
    names = sorted(left_out)
    kept = [name for name in names if name in strategy.model.state_dict()]
    return {
        "strategy": type(strategy).__name__,
        "model": type(strategy.model).__name__,
        "optimizer": type(strategy.optimizer).__name__,
        "precision": strategy.mixed_precision if isinstance(strategy, PEFTTemplate) else None,
        "plugins": [type(plugin).__name__ for plugin in strategy.plugins],
        "metrics": [type(metric).__name__ for metric in metrics],
        "frozen": {"names": names, "sha256": weights_sha256(strategy.model, only=set(kept))},
        "benchmark": {name: value for name, value in told.items() if value is not None},
        "experiences": [
            {"images": len(experience.dataset), "classes": _classes(experience)}
            for experience in trained
        ],
    }


def _classes(experience: Any) -> list[int]:
    """Return the classes of an experience; Avalanche's datasets look at their images once only."""
    found = getattr(experience.dataset.targets, "uniques", None)
    classes = {c for _, c in class_pairs(experience)} if found is None else map(int, found)
    return sorted(classes)


def _check(path: Path, was: Any, now: Any) -> None:
    was, now = comparable(was), comparable(now)
    here = f"the checkpoint {path}"
    for kind in ("strategy", "model", "optimizer"):
        if was[kind] != now[kind]:
            raise CheckpointError(f"{here} is that of {kind} {was[kind]}, not {now[kind]}")
    if was["precision"] != now["precision"]:  # auto is not the same on every device
        raise CheckpointError(
            f"{here} was saved with mixed_precision={was['precision']!r}, this strategy has "
            f"{now['precision']!r}; build it with mixed_precision={was['precision']!r}"
        )
    for kind in ("plugins", "metrics"):
        if was[kind] == now[kind]:
            continue
        lacking, more = Counter(was[kind]) - Counter(now[kind]), Counter(now[kind])
        more -= Counter(was[kind])
        told = [
            *(f"{name} is missing" for name in lacking.elements()),
            *(f"{name} is new" for name in more.elements()),
        ]
        order = f"their order was {', '.join(was[kind])}"
        raise CheckpointError(f"{here} was saved with other {kind}: {'; '.join(told) or order}")
    if was["frozen"] != now["frozen"]:
        raise CheckpointError(
            f"{here} was saved with other weights of the backbone; build it with the same weights"
        )
    for kind in ("benchmark", "experiences"):
        if was[kind] != now[kind]:
            raise CheckpointError(
                f"{here} was saved on another benchmark: {differences(was[kind], now[kind])}; "
                "build it as before"
            )
