"""One run, read from top to bottom: from a configuration to the run record."""

import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from avalanche_peftcl.config import ComponentConfig, RunConfig, load_config
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.resolve import check_components, components, seed_benchmark, with_defaults

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "no QP solver found", UserWarning)
    from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl.evaluation import AccuracyMatrix, CostMetric
from avalanche_peftcl.progress import RunProgress
from avalanche_peftcl.record import (
    FORMAT,
    RunRecord,
    check_output,
    clear_output,
    describe_components,
    describe_platform,
    describe_plugins,
    describe_protocol,
    describe_versions,
    fractions,
    now,
    per_domain,
    plugin_headlines,
    training_experiences,
    weights_sha256,
)
from avalanche_peftcl.report import terminal_report
from avalanche_peftcl.training.template import check_device


def run_from_file(
    path: str | Path, overrides: Sequence[str], overwrite: bool, console: Console
) -> None:
    """Run the configuration in a file and show it on ``console``.

    Args:
        path: YAML file.
        overrides: Settings that replace the file's, such as ``"strategy.lr=0.1"``.
        overwrite: Whether an earlier run in the output folder is replaced.
        console: Where progress and result are shown.

    Raises:
        PEFTCLError: As :func:`run`; :class:`ConfigError` also if the file cannot be used.
    """
    run(load_config(path, overrides), overwrite=overwrite, reporter=RunProgress(console))


def run(
    config: RunConfig,
    *,
    registry: Registry | None = None,
    overwrite: bool = False,
    reporter: RunProgress | None = None,
) -> RunRecord:
    """Train and evaluate one configuration, experience by experience.

    The run record is written before the first experience and after each; whatever stops a run,
    the finished experiences are on disk. Global random generators, torch's number of threads and
    its deterministic mode are as before when it returns.

    Args:
        config: What to run.
        registry: Components to choose from; ``None`` discovers the installed ones.
        overwrite: Replace an earlier run in the output folder instead of refusing.
        reporter: Shows the run; ``None`` shows nothing.

    Returns:
        The run record, as written.

    Raises:
        ConfigError: A setting or option that cannot be used, a device that is not there, an output
            folder that cannot be used or holds a run.
        UnknownComponentError: A component that nobody offers.
        AmbiguousComponentError: A component that several packages offer.
        DataError: Images or a split that cannot be used.
        CheckpointError: Weights that cannot be read or do not fit.
    """
    registry = discover() if registry is None else registry
    reporter = RunProgress() if reporter is None else reporter
    check_output(config.output, overwrite=overwrite)
    device = check_device(config.device)
    config = seed_benchmark(config, registry)
    check_components(config, registry)

    with _controlled(config, device), _plain_data_errors(), reporter:
        backbone = _build(registry, "backbone", config.backbone)
        input_config = getattr(backbone, "input_config", None)
        if input_config is None:
            raise ConfigError(
                f"backbone {config.backbone.name!r} has no input_config, from which a benchmark "
                "knows what images to give it"
            )
        benchmark = _build(registry, "benchmark", config.benchmark, input_config=input_config)
        _seed(config.seed)  # what follows depends on the seed, not on what came before
        module = config.module and _build(registry, "module", config.module, backbone=backbone)
        plugins = [_build(registry, "strategy_plugin", plugin) for plugin in config.plugins]
        metrics = [_build(registry, "metric", metric) for metric in config.metrics]
        accuracy, cost = AccuracyMatrix(), CostMetric()
        strategy = _build(
            registry,
            "strategy",
            config.strategy,
            backbone=backbone,
            device=str(device),
            plugins=plugins,
            evaluator=EvaluationPlugin(accuracy, cost, *metrics, loggers=[reporter]),
            **({} if module is None else {"module": module}),
        )

        protocol = describe_protocol(benchmark, input_config)
        total = len(training_experiences(benchmark))
        fixed = {
            "format": FORMAT,
            "started_at": now(),
            "seed": config.seed,
            "config": with_defaults(config, registry),
            "components": describe_components(
                registry.get(kind, component.name) for kind, component in components(config)
            ),
            "weights_sha256": weights_sha256(backbone),
            "platform": describe_platform(device),
            "versions": describe_versions(),
        }
        finished, further, notes = 0, dict[str, float](), list[list[str]]()

        def record() -> RunRecord:
            labelled = bool(getattr(strategy, "task_label_at_test", False))
            return RunRecord(
                config.output,
                fixed
                | {
                    "written_at": now(),
                    "complete": finished == total,
                    "experiences": {"total": total, "finished": finished},
                    "protocol": protocol | {"task_label_at_test": labelled},
                    "trainable": [{"name": n, "shape": s} for n, s in reporter.trainable],
                    "accuracy": accuracy.summary(),
                    "per_domain": per_domain(protocol, accuracy.summary()["per_task"]),
                    "cost": cost.summary(),
                    "further_metrics": further,
                    "plugins": describe_plugins(strategy),
                    "notes": notes,
                    "test_images": accuracy.counts.tolist(),
                    "baseline": fractions(accuracy.baseline),
                    "accuracy_matrix": fractions(accuracy.matrix),
                },
            )

        clear_output(config.output)
        result = record()
        result.write()
        reporter.say(
            f"{config.strategy.name} on {config.benchmark.name} ({protocol['scenario']}, {total} "
            f"experiences), backbone {config.backbone.name}, seed {config.seed}, device {device}"
        )
        if config.evaluate == "all":
            strategy.eval(benchmark.test_stream, num_workers=config.num_workers)
        for experience in benchmark.train_stream:
            if getattr(experience, "is_first_subexp", True):
                reporter.begin(finished, total)
            strategy.train(experience, eval_streams=[], num_workers=config.num_workers)
            if not getattr(experience, "is_last_subexp", True):
                continue  # a chunk of an online stream
            finished += 1
            seen = len(benchmark.test_stream) if config.evaluate == "all" else finished
            results = strategy.eval(benchmark.test_stream[:seen], num_workers=config.num_workers)
            if metrics:
                further = {k: v for k, v in results.items() if isinstance(v, int | float)}
            notes.append(plugin_headlines(strategy))
            result = record()
            result.write()
            reporter.end(
                finished,
                total,
                classes=protocol["experiences"][finished - 1]["class_names"],
                seconds=result.metrics["cost"]["training_seconds"][-1],
                seen=result.metrics["accuracy"]["accuracy_curve"][-1],
                row=result.metrics["accuracy_matrix"][finished - 1][:finished],
                notes=notes[-1],
            )
        reporter.console.print(terminal_report(result.metrics, str(config.output)))
    return result


def _build(registry: Registry, kind: str, component: ComponentConfig, **given: Any) -> Any:
    return registry.build(kind, component.name, component.options, given)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def _controlled(config: RunConfig, device: torch.device) -> Iterator[None]:
    """Seed the global generators, set threads and determinism; put all back in the end."""
    cuda = device.type == "cuda"
    if cuda:  # read once, when CUDA starts; needed for the same numbers twice
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    python, numpy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[device] if cuda else []), warnings.catch_warnings():
        warnings.showwarning = _without_deprecations(warnings.showwarning)
        try:
            _seed(config.seed)
            torch.set_num_threads(config.num_threads or threads)
            torch.use_deterministic_algorithms(True, warn_only=True)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def _without_deprecations(show: Any) -> Any:
    """Drop what the host says to itself about its next version; it overrides filters for that."""

    def filtered(message: Any, category: Any, filename: str, *more: Any, **named: Any) -> None:
        if category is not DeprecationWarning or "avalanche" not in Path(filename).parts:
            show(message, category, filename, *more, **named)

    return filtered


@contextmanager
def _plain_data_errors() -> Iterator[None]:
    """Take the traceback out of the message of an error from a process that loads images."""
    try:
        yield
    except DataError as error:
        text, mark = str(error), f"\n{DataError.__module__}.{DataError.__qualname__}: "
        if mark not in text:
            raise
        raise DataError(text.rpartition(mark)[2].strip()) from error
