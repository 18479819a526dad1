"""One run, read from top to bottom: from a configuration to the run record."""

import warnings
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any

from avalanche_peftcl.config import ComponentConfig, RunConfig
from avalanche_peftcl.config.plan import check_components, components, seed_benchmark, with_defaults
from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.files import held
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.runs.control import (
    controlled,
    how_to_stop,
    plain_data_errors,
    seed_all,
    settle_precision,
)
from avalanche_peftcl.runs.identity import settings_of, versions_of

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "no QP solver found", UserWarning)
    from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl.config.resources import (
    check_open_files,
    check_processors,
    plain_resource_errors,
)
from avalanche_peftcl.evaluation import AccuracyMatrix, CostMetric
from avalanche_peftcl.evaluation.running_matrix import MatrixRows
from avalanche_peftcl.export.write import not_exported, write_model
from avalanche_peftcl.logging import closing
from avalanche_peftcl.models.backbones.weights import check_weights
from avalanche_peftcl.models.device import check_device
from avalanche_peftcl.registry.kinds import kind_of
from avalanche_peftcl.runs.matrix_file import MatrixFile
from avalanche_peftcl.runs.output import (
    CHECKPOINTS,
    FILES,
    Stamp,
    check_output,
    clear_output,
    further_files,
    listed_files,
    remove_parts,
)
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.protocol import (
    describe_prediction,
    describe_protocol,
    per_domain,
    training_experiences,
)
from avalanche_peftcl.runs.record import (
    FORMAT,
    RunRecord,
    describe_components,
    describe_platform,
    describe_plugins,
    describe_versions,
    fractions,
    now,
    plugin_headlines,
    weights_sha256,
)
from avalanche_peftcl.runs.report import terminal_report
from avalanche_peftcl.runs.resume import Checkpoints, Standing, finished_run, kept_rows, saved_run
from avalanche_peftcl.training.rng import random_state, set_random_state


def run(
    config: RunConfig,
    *,
    registry: Registry | None = None,
    overwrite: bool = False,
    resume: bool = False,
    reporter: RunProgress | None = None,
) -> RunRecord:
    """Train and evaluate one configuration, experience by experience.

    The run record is written before the first experience and after each, and a checkpoint too;
    whatever stops a run, the finished experiences are on disk, and it can be gone on with to the
    same end. Global random generators, torch's number of threads and its deterministic mode are as
    before when it returns.

    Args:
        config: What to run.
        registry: Components to choose from; ``None`` discovers the installed ones.
        overwrite: Replace an earlier run in the output folder instead of refusing.
        resume: Go on with the run in the output folder from its last checkpoint; begin it if
            nothing of it is finished, return its record if all is. With ``overwrite`` a run that
            cannot go on is begun anew.
        reporter: Shows the run; ``None`` shows nothing.

    Returns:
        The run record, as written.

    Raises:
        ConfigError: A setting or option that cannot be used, a device that is not there, an output
            folder that cannot be used, holds a run or what is of none, or is in use by another
            process.
        UnknownComponentError: A component that nobody offers.
        AmbiguousComponentError: A component that several packages offer.
        DataError: Images or a split that cannot be used.
        CheckpointError: Weights that cannot be read or do not fit; with ``resume`` a checkpoint
            that is damaged, or of another configuration, versions, weights or data.
        ResourceError: Too little memory, or too few processes or open files; the experiences
            finished before are on disk.
        NotFiniteError: Weights, losses, features or outputs that are not finite numbers; the
            experiences finished before are on disk.
    """
    registry = discover() if registry is None else registry
    reporter = RunProgress() if reporter is None else reporter
    there = check_output(config.output, overwrite=overwrite, resume=resume)
    if resume:
        try:
            return _run(config, registry, reporter, there, resume=True)
        except CheckpointError as error:
            if not overwrite:
                raise
            reporter.say(f"it cannot go on and begins anew: {error}")
    return _run(config, registry, reporter, there, overwrite=overwrite)


def _run(
    config: RunConfig,
    registry: Registry,
    reporter: RunProgress,
    there: Stamp | None,
    *,
    overwrite: bool = False,
    resume: bool = False,
) -> RunRecord:
    """Do what :func:`run` says; ``there`` is what it found in the output folder."""
    device = check_device(config.device)
    config = seed_benchmark(config, registry)
    check_components(config, registry)
    config = settle_precision(config, registry, device=device, resume=resume)
    settings = with_defaults(config, registry)
    offered = describe_components(
        registry.get(kind, component.name) for kind, component in components(config)
    )
    identity = {"settings": settings_of(settings), "versions": versions_of(offered)}
    saved = None
    if resume:
        if (done := finished_run(config.output, identity)) is not None:
            reporter.say(f"the run in {config.output} is complete; there is nothing left to do")
            return done
        saved = saved_run(config.output, identity, device=device)
    threads = config.num_threads if saved is None else saved.state["threads"]
    check_processors(threads, config.num_workers)
    check_open_files(config.num_workers)

    loggers: list[Any] = []
    alone = ExitStack()
    with (
        alone,
        controlled(config.seed, device, threads),
        plain_data_errors(),
        plain_resource_errors(settings),
        reporter,
        closing(loggers),
    ):
        backbone = _build(registry, "backbone", config.backbone)
        check_weights(backbone, f"the backbone {config.backbone.name!r}")
        input_config = getattr(backbone, "input_config", None)
        if input_config is None:
            raise ConfigError(
                f"backbone {config.backbone.name!r} has no input_config, from which a benchmark "
                "knows what images to give it"
            )
        benchmark = _build(registry, "benchmark", config.benchmark, input_config=input_config)
        seed_all(config.seed)  # what follows depends on the seed, not on what came before
        module = config.module and _build(registry, "module", config.module, backbone=backbone)
        plugins = [_build(registry, "strategy_plugin", plugin) for plugin in config.plugins]
        metrics = [_build(registry, "metric", metric) for metric in config.metrics]
        accuracy, cost = AccuracyMatrix(), CostMetric()
        evaluator = EvaluationPlugin(accuracy, cost, *metrics, loggers=[reporter])
        strategy = _build(
            registry,
            "strategy",
            config.strategy,
            backbone=backbone,
            device=str(device),
            plugins=plugins,
            evaluator=evaluator,
            **({} if module is None else {"module": module}),
            **({} if config.head is None else {"head": partial(_head, registry, config.head)}),
        )

        protocol = describe_protocol(benchmark, input_config)
        total = len(training_experiences(benchmark))
        weights = weights_sha256(backbone)
        checkpoints = Checkpoints(
            config.output,
            strategy=strategy,
            backbone=backbone,
            benchmark=benchmark,
            identity=identity | {"weights": weights, "protocol": protocol},
            every=config.checkpoint_every,
        )
        fixed = {
            "format": FORMAT,
            "seed": config.seed,
            "config": settings,
            "components": offered,
            "weights_sha256": weights,
            "model_name": getattr(backbone, "model_name", None),
            "platform": describe_platform(device),
            "versions": describe_versions(),
            "resume_obstacles": checkpoints.obstacles,
        }
        at, matrix_file = Standing(started_at=now()), MatrixFile(config.output, total)

        def record() -> RunRecord:
            return RunRecord(
                config.output,
                fixed
                | {
                    "started_at": at.started_at,
                    "resumed_at": at.resumed_at,
                    "written_at": now(),
                    "complete": at.finished == total,
                    "experiences": {"total": total, "finished": at.finished},
                    "protocol": protocol | describe_prediction(strategy, benchmark, offered),
                    "trainable": [{"name": n, "shape": s} for n, s in at.trainable],
                    "accuracy": accuracy.summary(),
                    "per_domain": per_domain(protocol, accuracy.summary()["per_task"]),
                    "cost": cost.summary(),
                    "further_metrics": at.further,
                    "plugins": describe_plugins(strategy),
                    "notes": at.notes,
                    "not_exported": not_exported(strategy.model),
                    "test_images": accuracy.counts.tolist(),
                    "baseline": fractions(accuracy.baseline),
                    "accuracy_matrix": MatrixRows(accuracy.matrix),
                },
            )

        def write_record(*, network_too: bool = True) -> RunRecord:
            written = record()
            try:
                if at.finished and network_too:  # first: a complete record has its network
                    network = {"strategy": strategy, "backbone": backbone}
                    write_model(config.output, written.metrics, **network)
                written.write(matrix_file)
            except ConfigError as error:
                if not at.finished or checkpoints.obstacles:
                    raise
                further = f"once it can be, {checkpoints.way_on(at)}"
                raise ConfigError(f"{error}; {further}") from error
            accuracy.keep_elsewhere(matrix_file.rows)  # no checkpoint needs to hold them
            at.matrix = {"rows": matrix_file.rows, "sha256": matrix_file.sha256}
            return written

        reporter.say(
            f"{config.strategy.name} on {config.benchmark.name} ({protocol['scenario']}, {total} "
            f"experiences), backbone {config.backbone.name}, seed {config.seed}, device {device}"
        )
        if how := how_to_stop():
            reporter.say(how)
        alone.enter_context(held(config.output))
        if check_output(config.output, overwrite=overwrite, resume=resume) != there:
            raise ConfigError(
                f"another process has written a run to {config.output} meanwhile; nothing of it "
                "was touched"
            )
        remove_parts(config.output)
        begins, undisturbed = saved is None, random_state(device)
        inside = saved is not None and saved.state["position"] is not None
        listed = listed_files(config.output)  # by the run that is gone on with or replaced
        strangers = further_files(config.output, besides=listed)
        given = {"output": config.output, "resume": not begins, "settings": settings}
        for logger in config.loggers:
            loggers.append(_build(registry, "logger", logger, **given, listed=listed))
        fixed["files"] = [*FILES, CHECKPOINTS, *further_files(config.output, besides=strangers)]
        evaluator.loggers = [reporter, *loggers]
        set_random_state(undisturbed, device)
        if saved is None:
            record().claim()
            clear_output(config.output)
        else:
            accuracy.keep_elsewhere(kept_rows(config.output, saved))
            at, saved = checkpoints.go_on(saved, now()), None
            reporter.say(f"goes on from its checkpoint, {at.finished} experiences finished")
        checkpoints.begin(at)
        alone.enter_context(checkpoints.told(at, total))
        result = write_record(network_too=not inside)  # half-trained, it is not the record's
        if config.evaluate == "all" and begins:
            strategy.eval(benchmark.test_stream, num_workers=config.num_workers)
        for experience in islice(benchmark.train_stream, at.visited, None):
            if getattr(experience, "is_first_subexp", True):
                reporter.begin(at.finished, total)
            strategy.train(experience, eval_streams=[], num_workers=config.num_workers)
            at.trainable = reporter.trainable
            if not getattr(experience, "is_last_subexp", True):
                at.visited += 1
                continue  # a chunk of an online stream
            seen = len(benchmark.test_stream) if config.evaluate == "all" else at.finished + 1
            results = strategy.eval(benchmark.test_stream[:seen], num_workers=config.num_workers)
            if metrics:
                at.further = {k: v for k, v in results.items() if isinstance(v, int | float)}
            at.notes.append(plugin_headlines(strategy))
            at.visited, at.finished = at.visited + 1, at.finished + 1
            checkpoints.save(at)
            result = write_record()
            checkpoints.save_again(at)
            reporter.end(
                at.finished,
                total,
                classes=protocol["experiences"][at.finished - 1]["class_names"],
                seconds=result.metrics["cost"]["training_seconds"][-1],
                seen=result.metrics["accuracy"]["accuracy_curve"][-1],
                row=result.metrics["accuracy_matrix"][at.finished - 1][: at.finished],
                notes=at.notes[-1],
            )
        rows = list(result.metrics["accuracy_matrix"])
        result = RunRecord(config.output, result.metrics | {"accuracy_matrix": rows})
        reporter.console.print(terminal_report(result.metrics, str(config.output)))
    return result


def _head(registry: Registry, component: ComponentConfig, in_features: int) -> Any:
    return _build(registry, "head", component, in_features=in_features)


def _build(registry: Registry, kind: str, component: ComponentConfig, **given: Any) -> Any:
    part = registry.build(kind, component.name, component.options, given)
    kind_of(kind).check(part, registry.schema(kind, component.name).title)
    return part
