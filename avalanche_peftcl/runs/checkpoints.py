"""Checkpoints of a run: write them as it goes, and go on from one."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from avalanche_peftcl.checkpoints.folder import next_number, write_checkpoint
from avalanche_peftcl.checkpoints.strategy_state import StrategyState
from avalanche_peftcl.errors import CheckpointError, CheckpointWarning, ConfigError, ResourceError
from avalanche_peftcl.models.rng import random_state, set_random_state
from avalanche_peftcl.registry.offers import StrategyOffers
from avalanche_peftcl.runs.folder import CHECKPOINTS
from avalanche_peftcl.runs.identity import Identity
from avalanche_peftcl.runs.reading import read_claim
from avalanche_peftcl.runs.saved import SavedRun


@dataclass
class Standing:
    """How far a run is, beside what its strategy remembers.

    Args:
        started_at: When it began.
        resumed_at: When it went on from a checkpoint.
        visited: Training experiences done with, chunks of an online stream counted each; all of
            joint training are one.
        finished: Experiences trained and evaluated.
        further: By name the values of further metrics, one an experience.
        fresh: Their values since the last finished experience.
        notes: What plugins said after each experience.
        trainable: Name and shape of every parameter that trained in the last experience.
        matrix: How many rows of the accuracy matrix are in its file, and that file's hash.
    """

    started_at: str
    resumed_at: list[str] = field(default_factory=list)
    visited: int = 0
    finished: int = 0
    further: dict[str, list[float | None]] = field(default_factory=dict)
    fresh: dict[str, float] = field(default_factory=dict)
    notes: list[list[str]] = field(default_factory=list)
    trainable: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    matrix: dict[str, Any] = field(default_factory=lambda: {"rows": 0, "sha256": None})


class Checkpoints:
    """The checkpoints of one run, in the folder ``checkpoint`` of its output folder.

    Args:
        output: The run's output folder.
        strategy: The strategy.
        backbone: The frozen network, which is built again and not saved.
        visits: What is trained on, one after the other, see :func:`.visits`.
        tests: The test experiences.
        identity: What must be the same where the run goes on.
        every: Minibatches between two of them; ``None`` for none inside an experience.

    Attributes:
        obstacles: Why no checkpoints can be written; empty if they can.

    Raises:
        ConfigError: If ``every`` is given and the strategy has no place for them.
    """

    def __init__(
        self,
        output: Path,
        *,
        strategy: Any,
        backbone: Any,
        visits: Sequence[Any],
        tests: Sequence[Any],
        identity: Identity,
        every: int | None = None,
    ) -> None:
        self._output, self._folder = output, output / CHECKPOINTS
        self._train, self._test = visits, tests
        self._state = StrategyState(strategy, frozen=[backbone])
        self._identity = identity
        self._device = torch.device(strategy.device)
        self._number: int | None = None  # of the last checkpoint
        self._saved = 0  # experiences that were finished then
        self._failed = False
        self.obstacles = self._state.obstacles()
        self._every = every
        self._cursor = StrategyOffers.of(strategy).cursor
        if every is not None and self._cursor is None:
            raise ConfigError(
                f"checkpoint_every={every}, but {type(strategy).__name__} cannot be taken down "
                "inside an experience; leave it out, or derive the strategy from PEFTTemplate"
            )

    def begin(self, standing: Standing) -> None:
        """Say what cannot be done; ask the strategy for checkpoints inside experiences.

        Args:
            standing: Kept up to date by the run.
        """
        if self._cursor is not None:
            self._cursor.every = self._every
            self._cursor.save = lambda position: self.save(standing, position=position)
        if self.obstacles:
            _warn(f"if this run is stopped, it cannot be resumed: {'; '.join(self.obstacles)}")

    def save(self, standing: Standing, *, position: Mapping[str, Any] | None = None) -> None:
        """Write a checkpoint; if it cannot be written, say what that costs and go on.

        Args:
            standing: How far the run is.
            position: Where inside the experience, as the strategy's cursor tells it.
        """
        if self.obstacles:
            return
        inside = position is not None
        try:
            state = {
                "identity": self._identity.saved(),
                "threads": torch.get_num_threads(),
                "standing": asdict(standing),
                "position": position,
                "strategy": self._state.save(trained=self._trained(standing, inside=inside)),
                "random": random_state(self._device),
            }
            number = next_number(self._folder)  # past whatever lies there
            write_checkpoint(self._folder, state, number=number, before=self._number)
            self._number, self._saved, self._failed = number, standing.finished, False
        except (CheckpointError, OSError) as error:
            if not self._failed:
                _warn(
                    f"no checkpoint could be written to {self._folder}: {error}; the run goes on "
                    "and tries again; if it is stopped before one is written, "
                    + self.way_on(standing)
                )
            self._failed = True

    def save_again(self, standing: Standing) -> None:
        """Write the checkpoint that could not be written after the last experience."""
        if self._failed:
            self.save(standing)

    def way_on(self, standing: Standing) -> str:
        """Say how the run can be gone on with if it stops now."""
        resume = f"peftcl run --resume {self._output}"
        anew = f"it has to begin anew (peftcl run --resume {self._output} --overwrite)"
        if self.obstacles:
            return f"{anew}, for {'; '.join(self.obstacles)}"
        if self._number is None:
            return f"{resume} begins it again" if not standing.finished else anew
        if self._saved < standing.finished:
            return f"{resume} goes on after experience {self._saved}, from its last checkpoint"
        return f"{resume} goes on with it"

    @contextmanager
    def told(self, standing: Standing, total: int) -> Iterator[None]:
        """Say where a run stops what is finished, and how it can be gone on with.

        An interrupt gets a note; an error for want of memory or the like says it itself.
        """

        def finished() -> str:
            return (
                f"{standing.finished} of {total} experiences are finished and on disk in "
                f"{self._output}; {self.way_on(standing)}"
            )

        try:
            yield
        except KeyboardInterrupt as stop:
            stop.add_note(finished())
            raise
        except ResourceError as error:
            raise ResourceError(
                f"{error}. {finished()}, with the settings that it has; others begin a new run"
            ) from error.__cause__

    def go_on(self, saved: SavedRun, now: str) -> Standing:
        """Bring the strategy and the random generators to a checkpoint.

        Args:
            saved: The checkpoint.
            now: The time, for the record.

        Returns:
            How far the run was.

        Raises:
            CheckpointError: If it is a checkpoint of another run, or does not fit the strategy.
        """
        self._identity.check(saved.state["identity"], self._output)
        standing = Standing(**saved.state["standing"])
        # the record is rewritten each time, a checkpoint is not
        claim = read_claim(self._output)
        standing.resumed_at = [*((claim and claim.resumed_at) or standing.resumed_at), now]
        position, strategy = saved.state["position"], saved.state["strategy"]
        self._number, self._saved = saved.number, standing.finished
        trained = self._trained(standing, inside=position is not None)
        self._state.load(copy.deepcopy(strategy), trained=trained, tested=self._tested(standing))

        def restore() -> None:
            self._state.load(copy.deepcopy(strategy), trained=trained)
            set_random_state(saved.state["random"], self._device)

        if position is None:
            set_random_state(saved.state["random"], self._device)
        else:
            self._cursor.go_to(position, restore)
        return standing

    def _trained(self, standing: Standing, *, inside: bool) -> Sequence[Any]:
        return self._train[: standing.visited + inside]

    def _tested(self, standing: Standing) -> Sequence[Any]:
        whole = self._identity.settings["evaluate"] == "all"
        return self._test if whole else self._test[: standing.finished]


def _warn(text: str) -> None:
    warnings.warn(text, CheckpointWarning, stacklevel=3)
