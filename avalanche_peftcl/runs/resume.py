"""Checkpoints of a run: write them as it goes, and go on from the last one."""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from avalanche_peftcl.checkpoints.folder import next_number, read_checkpoint, write_checkpoint
from avalanche_peftcl.checkpoints.strategy_state import StrategyState
from avalanche_peftcl.errors import (
    CheckpointError,
    CheckpointWarning,
    ConfigError,
    ResourceError,
)
from avalanche_peftcl.runs.identity import check_identity, check_record
from avalanche_peftcl.runs.matrix_file import MATRIX_FILE, read_matrix
from avalanche_peftcl.runs.output import CHECKPOINTS
from avalanche_peftcl.runs.record import FORMAT, RunRecord
from avalanche_peftcl.runs.schema import read_metrics
from avalanche_peftcl.training.rng import random_state, set_random_state

_NEEDED = {"config", "protocol", "accuracy", "cost"}  # of a record
_PARTS = {"identity", "threads", "standing", "position", "strategy", "random"}


def finished_run(output: Path, identity: Mapping[str, Any]) -> RunRecord | None:
    """Return the record of the run in a folder if all of it is finished.

    Raises:
        CheckpointError: If it is a run of another configuration, a record of another version, or
            one without its accuracy matrix.
    """
    metrics = read_metrics(output)
    if metrics is None:
        return None
    done = metrics.get("complete") is True and metrics.keys() >= _NEEDED
    version = metrics.get("format")
    if version != FORMAT and not (done and version == 1 and "accuracy_matrix" in metrics):
        raise CheckpointError(
            f"the record in {output} has format {version!r:.40}, this version of avalanche-peftcl "
            f"writes {FORMAT}; go on with the one that wrote it, or start anew (--overwrite; in "
            "Python, overwrite=True)"
        )
    if not done:
        return None
    check_record(metrics, identity["settings"], output)
    if version == FORMAT:
        metrics["accuracy_matrix"] = _read_matrix(output, metrics["experiences"]["total"])
    return RunRecord(output, metrics)


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint: its number and its state."""

    number: int
    state: Mapping[str, Any]


def saved_run(
    output: Path, identity: Mapping[str, Any], *, device: torch.device
) -> SavedRun | None:
    """Return the last checkpoint of the run in a folder.

    Args:
        output: The run's output folder.
        identity: As much of it as is known before anything is built.
        device: Where the run computes.

    Returns:
        ``None`` if nothing of the run is finished.

    Raises:
        CheckpointError: If the run in the folder is another one, if its checkpoints are damaged,
            or if it has finished experiences and no checkpoint.
    """
    found, metrics = read_checkpoint(output / CHECKPOINTS, device=device), read_metrics(output)
    if found is not None:
        number, state = found
        if not isinstance(state, dict) or not state.keys() >= _PARTS:
            raise CheckpointError(f"the checkpoint in {output / CHECKPOINTS} is none of a run")
        if not _of_an_earlier_run(state, metrics):
            check_identity(state, identity, output)
            return SavedRun(number, state)
    if metrics is None:
        return None
    check_record(metrics, identity["settings"], output)
    if metrics.get("experiences", {}).get("finished"):
        why = metrics.get("resume_obstacles")
        raise CheckpointError(
            f"the run in {output} left no checkpoint"
            + (f", for {'; '.join(map(str, why))}" if why else "")
            + "; start it anew (--overwrite; in Python, overwrite=True)"
        )
    return None


def _of_an_earlier_run(state: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> bool:
    """Whether a checkpoint is of the run that this one was about to replace when it was stopped."""
    if metrics is None or metrics.get("experiences", {}).get("finished") != 0:
        return False
    return bool(metrics.get("started_at") != state["standing"].get("started_at"))


def kept_rows(output: Path, saved: SavedRun) -> torch.Tensor:
    """Return the rows of the accuracy matrix that a checkpoint leaves to the record, ``(N, T)``.

    Raises:
        CheckpointError: If they are no longer there as they were.
    """
    kept = saved.state["standing"].get("matrix")
    if kept is None:
        raise CheckpointError(f"the checkpoint in {output / CHECKPOINTS} is of an earlier version")
    if not kept["rows"]:
        return torch.empty(0, 0, dtype=torch.float64)
    rows = _read_matrix(output, kept["rows"], kept["sha256"])
    numbers = [[math.nan if value is None else value for value in row] for row in rows]
    return torch.tensor(numbers, dtype=torch.float64)


def _read_matrix(output: Path, count: int, sha256: str | None = None) -> list[list[float | None]]:
    try:
        return read_matrix(output, count, sha256=sha256)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the accuracies of the finished experiences cannot be read from "
            f"{output / MATRIX_FILE}: {error}; put it back as it was, or start anew (--overwrite; "
            "in Python, overwrite=True)"
        ) from error


@dataclass
class Standing:
    """How far a run is, beside what its strategy remembers.

    Args:
        started_at: When it began.
        resumed_at: When it went on from a checkpoint.
        visited: Training experiences done with, chunks of an online stream counted each.
        finished: Experiences trained and evaluated.
        further: Numbers of metrics beyond the accuracy matrix and the cost.
        notes: What plugins said after each experience.
        trainable: Name and shape of every parameter that trained in the last experience.
        matrix: How many rows of the accuracy matrix are in its file, and that file's hash.
    """

    started_at: str
    resumed_at: list[str] = field(default_factory=list)
    visited: int = 0
    finished: int = 0
    further: dict[str, float] = field(default_factory=dict)
    notes: list[list[str]] = field(default_factory=list)
    trainable: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    matrix: dict[str, Any] = field(default_factory=lambda: {"rows": 0, "sha256": None})


class Checkpoints:
    """The checkpoints of one run, in the folder ``checkpoint`` of its output folder.

    Args:
        output: The run's output folder.
        strategy: The strategy.
        backbone: The frozen network, which is built again and not saved.
        benchmark: The benchmark.
        identity: What :func:`check_identity` compares where a run goes on.
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
        benchmark: Any,
        identity: Mapping[str, Any],
        every: int | None = None,
    ) -> None:
        self._output, self._folder = output, output / CHECKPOINTS
        self._train, self._test = list(benchmark.train_stream), list(benchmark.test_stream)
        self._state = StrategyState(strategy, frozen=[backbone])
        self._identity = identity
        self._device = torch.device(strategy.device)
        self._number: int | None = None  # of the last checkpoint
        self._saved = 0  # experiences that were finished then
        self._failed = False
        self.obstacles = self._state.obstacles()
        self._every = every
        self._cursor: Any = getattr(strategy, "cursor", None)
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
                "identity": self._identity,
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
        check_identity(saved.state, self._identity, self._output)
        standing = Standing(**saved.state["standing"])
        # the record is rewritten each time, a checkpoint is not
        earlier = (read_metrics(self._output) or {}).get("resumed_at")
        standing.resumed_at = [*(earlier or standing.resumed_at), now]
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
        whole = self._identity["settings"]["evaluate"] == "all"
        return self._test if whole else self._test[: standing.finished]


def _warn(text: str) -> None:
    warnings.warn(text, CheckpointWarning, stacklevel=3)
