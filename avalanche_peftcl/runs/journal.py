"""What a run writes as it goes: its record, its network and its checkpoints."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from avalanche_peftcl.config.plan import Plan
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation.running_matrix import MatrixRows
from avalanche_peftcl.export.write import not_exported, write_model
from avalanche_peftcl.files import held
from avalanche_peftcl.logging import NamedTensorboardLogger
from avalanche_peftcl.models.backbones.weights import weights_sha256
from avalanche_peftcl.models.rng import random_state, set_random_state
from avalanche_peftcl.registry.offers import BackboneOffers, StrategyOffers
from avalanche_peftcl.runs.build import Backbone, Method
from avalanche_peftcl.runs.checkpoints import Checkpoints, Standing
from avalanche_peftcl.runs.facts import (
    describe_components,
    describe_metrics,
    describe_platform,
    describe_plugins,
    describe_versions,
    now,
    plain,
    plugin_headlines,
)
from avalanche_peftcl.runs.folder import (
    CHECKPOINTS,
    FILES,
    Stamp,
    check_output,
    clear_output,
    further_files,
    listed_files,
    remove_parts,
)
from avalanche_peftcl.runs.identity import Identity
from avalanche_peftcl.runs.matrix_file import MatrixFile
from avalanche_peftcl.runs.names import domain_names
from avalanche_peftcl.runs.overlap import overlap_of
from avalanche_peftcl.runs.protocol import describe_protocol, describe_stream, per_domain
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.saved import SavedRun, kept_rows
from avalanche_peftcl.runs.schema import (
    FORMAT,
    Accuracy,
    Cost,
    Parameter,
    Progress,
    Record,
    Settings,
)
from avalanche_peftcl.training.joint import visits


class Journal:
    """The record of one run while it goes on, in memory and on disk.

    Args:
        plan: What is run.
        backbone: The frozen network.
        benchmark: The benchmark.
        method: The strategy and its metrics.
        identity: What is known of it before anything is built.

    Attributes:
        at: How far the run is.
        stream: What there is to learn and to be tested on.
        joint: Whether all experiences are trained on at once.
        total: Experiences of the run.
        visits: What is trained on, one after the other, see :func:`.visits`.

    Raises:
        ConfigError: If checkpoints are wanted where the strategy has no place for them.
        DataError: If a file of the data set is missing.
    """

    def __init__(
        self, plan: Plan, backbone: Backbone, benchmark: Any, method: Method, identity: Identity
    ) -> None:
        strategy, config = method.strategy, plan.config
        self._plan, self._output = plan, config.output
        self._backbone, self._benchmark, self._method = backbone.network, benchmark, method
        self.stream = describe_stream(benchmark, backbone.input_config)
        self._components = describe_components(plan.entries)
        self.joint = StrategyOffers.of(strategy).joint
        self.visits = visits(strategy, benchmark.train_stream)
        weights = weights_sha256(backbone.network)
        self._checkpoints = Checkpoints(
            config.output,
            strategy=strategy,
            backbone=backbone.network,
            visits=self.visits,
            tests=list(benchmark.test_stream),
            identity=replace(identity, weights=weights, stream=self.stream.model_dump()),
            every=config.checkpoint_every,
        )
        self._strangers: list[str] = []
        self._written: Record | None = None
        self.at, self.total = Standing(started_at=now()), len(self.stream.experiences)
        self._matrix_file = MatrixFile(config.output, self.total)
        self._fixed: dict[str, Any] = {
            "format": FORMAT,
            "seed": config.seed,
            "config": Settings.model_validate(plan.settings),
            "components": self._components,
            "weights_sha256": weights,
            "model_name": BackboneOffers.of(backbone.network).model_name,
            "overlap": overlap_of(
                BackboneOffers.of(backbone.network).pretrained_on,
                [name for each in self.stream.experiences for name in each.class_names],
            ),
            "platform": describe_platform(torch.device(strategy.device)),
            "versions": describe_versions(plan.entries),
            "resume_obstacles": self._checkpoints.obstacles,
            "joint": self.joint,
        }

    def headline(self, device: torch.device) -> str:
        """Return what is run, on what, in one line."""
        config = self._plan.config
        return (
            f"{config.strategy.name} on {config.benchmark.name} ({self.stream.scenario}, "
            f"{self.total} experiences), backbone {config.backbone.name}, seed {config.seed}, "
            f"device {device}"
        )

    @property
    def next(self) -> int:
        """How many experiences will be finished after the next; joint training has all at once."""
        return self.total if self.joint else self.at.finished + 1

    @property
    def later(self) -> int:
        """Training images of the experiences behind the next one."""
        later = self.stream.experiences[self.next : self._plan.config.stop_after]
        return sum(part.train_images for part in later)

    @property
    def stopped(self) -> str | None:
        """Why no further experience is trained though there are more."""
        last, done = self._plan.config.stop_after, self.at.finished
        if last is None or not last <= done < self.total:
            return None
        return (
            f"stopped after {done} of {self.total} experiences (stop_after={last}); peftcl run "
            f"{self._output}/config.yaml --resume {self._output} stop_after=null goes on"
        )

    @property
    def tests(self) -> tuple[int, int]:
        """Images that are evaluated after the next experience, and after all behind it."""
        sizes = [part.test_images for part in self.stream.experiences]
        every = self._plan.config.evaluate == "all"
        seen = [sum(sizes) if every else sum(sizes[: t + 1]) for t in range(len(sizes))]
        return seen[self.next - 1], sum(seen[self.next : self._plan.config.stop_after])

    def take_folder(
        self, there: Stamp | None, *, overwrite: bool, resume: bool, until: ExitStack
    ) -> None:
        """Let nobody else write to the folder, unless somebody has.

        Args:
            there: What was found in it when the run was asked for.
            overwrite: Whether an earlier run may be replaced.
            resume: Whether it is gone on with.
            until: Holds the folder as long as it is open.

        Raises:
            ConfigError: If another process is at work there, or was.
        """
        until.enter_context(held(self._output))
        if check_output(self._output, overwrite=overwrite, resume=resume) != there:
            raise ConfigError(
                f"another process has written a run to {self._output} meanwhile; nothing of it "
                "was touched"
            )
        remove_parts(self._output)

    def build_loggers(self, loggers: list[Any], *, resume: bool) -> None:
        """Build the loggers of the run; its random numbers are as if there were none.

        Args:
            loggers: Gets each as soon as it is there, so that it can be closed.
            resume: Whether the run goes on from a checkpoint.
        """
        device = torch.device(self._method.strategy.device)
        undisturbed = random_state(device)
        listed = listed_files(self._output)  # by the run that is gone on with or replaced
        self._strangers = further_files(self._output, besides=listed)
        settings = self._plan.settings
        for part in self._plan.of("logger"):
            given = {"output": self._output, "resume": resume, "settings": settings}
            loggers.append(part.build(**given, listed=listed))
        for logger in loggers:
            if isinstance(logger, NamedTensorboardLogger):
                logger.experience_names = domain_names(self.stream)
        self._method.evaluator.loggers.extend(loggers)
        set_random_state(undisturbed, device)

    def begin(self, saved: SavedRun | None, *, until: ExitStack) -> Standing:
        """Write the first record, of a new run or of one that goes on.

        Args:
            saved: The checkpoint to go on from.
            until: As long as it is open, whatever stops the run says how to go on.

        Returns:
            How far the run is; to be kept up to date.
        """
        made = further_files(self._output, besides=self._strangers)  # by loggers
        self._fixed["files"] = [*FILES, CHECKPOINTS, *made]
        if saved is None:
            RunRecord(self._output, self._current()).claim()
            clear_output(self._output)
        else:
            self._method.accuracy.keep_elsewhere(kept_rows(self._output, saved))
            self.at = self._checkpoints.go_on(saved, now())
        self._method.further.values = self.at.fresh
        self._checkpoints.begin(self.at)
        until.enter_context(self._checkpoints.told(self.at, self.total))
        inside = saved is not None and saved.state["position"] is not None
        self.write(network_too=not inside)  # half-trained, it is not the record's
        return self.at

    def finish_experience(self) -> Record:
        """Take in what was trained and evaluated, write all of it and return the record."""
        at, names = self.at, {*self.at.further, *self.at.fresh}
        strategy = self._method.strategy
        passed = self.next - at.finished - 1  # experiences of joint training before its last
        for name in names:
            earlier = at.further.setdefault(name, [None] * at.finished)
            earlier += [*[None] * passed, plain(at.fresh.get(name))]
        at.further = dict(sorted(at.further.items()))
        at.fresh.clear()
        at.trainable = self._method.cost.trainable
        at.notes += [*[[] for _ in range(passed)], plugin_headlines([*strategy.plugins, strategy])]
        at.visited, at.finished = at.visited + 1, self.next
        self._checkpoints.save(at)
        record = self.write()
        self._checkpoints.save_again(at)
        return record

    def write(self, *, network_too: bool = True) -> Record:
        """Write the record and, of finished experiences, the network.

        Raises:
            ConfigError: If they cannot be written; with the way on.
        """
        at, record = self.at, self._current()
        try:
            if at.finished and network_too:  # first: a complete record has its network
                strategy = self._method.strategy
                write_model(self._output, record, strategy=strategy, backbone=self._backbone)
            RunRecord(self._output, record).write(self._matrix_file)
        except ConfigError as error:
            if not at.finished or self._checkpoints.obstacles:
                raise
            further = f"once it can be, {self._checkpoints.way_on(at)}"
            raise ConfigError(f"{error}; {further}") from error
        self._method.accuracy.keep_elsewhere(self._matrix_file.rows)  # no checkpoint needs them
        at.matrix = {"rows": self._matrix_file.rows, "sha256": self._matrix_file.sha256}
        self._written = record
        return record

    def result(self) -> RunRecord:
        """Return the record as it is on disk."""
        record = self._current() if self._written is None else self._written
        rows = list(record.accuracy_matrix)  # no longer those of the metric
        return RunRecord(self._output, record.model_copy(update={"accuracy_matrix": rows}))

    def _current(self) -> Record:
        at, method = self.at, self._method
        accuracy = Accuracy.model_validate(method.accuracy.summary())
        return Record(
            **self._fixed,
            started_at=at.started_at,
            resumed_at=list(at.resumed_at),
            written_at=now(),
            complete=at.finished == self.total,
            experiences=Progress(total=self.total, finished=at.finished),
            protocol=describe_protocol(
                self.stream, method.strategy, self._benchmark, self._components
            ),
            trainable=[Parameter(name=name, shape=list(shape)) for name, shape in at.trainable],
            accuracy=accuracy,
            per_domain=per_domain(self.stream, accuracy.per_task),
            cost=Cost.model_validate(method.cost.summary()),
            further_metrics=at.further,
            metric_summaries=describe_metrics(method.metrics),
            plugins=describe_plugins(method.strategy.plugins),
            notes=[list(lines) for lines in at.notes],
            not_exported=not_exported(method.strategy.model),
            test_images=method.accuracy.counts.tolist(),
            baseline=plain(method.accuracy.baseline.tolist()),
            accuracy_matrix=MatrixRows(method.accuracy.matrix),
        )
