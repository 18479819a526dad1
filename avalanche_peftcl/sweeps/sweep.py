"""One configuration under several seeds: a run each, and what they have in common."""

import json
import statistics
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from avalanche_peftcl.checkpoints.folder import read_checkpoint
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.config.plan import check_components, components, seed_benchmark, with_defaults
from avalanche_peftcl.console import plain
from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.models.device import check_device
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.runs.control import how_to_stop, settle_precision
from avalanche_peftcl.runs.identity import check_identity, settings_of, versions_of
from avalanche_peftcl.runs.output import CHECKPOINTS, check_output
from avalanche_peftcl.runs.record import FORMAT, describe_components
from avalanche_peftcl.runs.report import percent
from avalanche_peftcl.runs.schema import RECORD
from avalanche_peftcl.runs.signals import termination_raised
from avalanche_peftcl.sweeps.processes import Event, Task, run_processes

_NUMBERS = {
    "average accuracy": "average_incremental_accuracy",
    "last accuracy": "last_accuracy",
    "forgetting": "forgetting",
}
_HOW = ("num_threads", "num_workers")  # of a finished run it does not matter


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one seed.

    Args:
        seed: The seed.
        folder: Folder of its run.
        metrics: Content of ``metrics.json``; ``None`` if the run failed.
        error: Why it failed.
    """

    seed: int
    folder: Path
    metrics: dict[str, Any] | None = None
    error: str | None = None


def run_sweep(
    config: RunConfig,
    *,
    jobs: int = 1,
    ray: str | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> list[Outcome]:
    """Run each of ``config.seeds`` in ``<output>/seed<seed>``.

    Every run has a process of its own and says what it does in ``run.log`` of its folder. One
    that fails or is killed does not stop the others. Runs that are finished are kept, those that
    are not go on from their last checkpoint, or begin anew if none can be read; so the same call
    goes on with what is missing.

    Args:
        config: What to run, with ``seeds``.
        jobs: Processes at a time on this machine.
        ray: Run on Ray instead: ``"local"`` starts it here, ``"auto"``, ``HOST:PORT`` or
            ``ray://HOST:PORT`` is a cluster that shares the file system.
        overwrite: Run all from the start, finished ones again too.
        console: Where starts, ends and the summary are shown; ``None`` shows nothing.

    Returns:
        One outcome a seed, in the order of ``config.seeds``.

    Raises:
        ConfigError: Before anything runs: no seeds, settings that cannot be used, a folder that
            cannot be used or holds a run of another configuration, or checkpoints of one or of
            other versions, Ray cannot be reached.
        UnknownComponentError: A component that nobody offers.
        AmbiguousComponentError: A component that several packages offer.
        KeyboardInterrupt: After an interrupt, or a request to terminate
            (:class:`~avalanche_peftcl.runs.signals.Terminated`), has stopped the runs.
            A signal that is ignored when the sweep begins stays ignored.
    """
    if config.seeds is None:
        raise ConfigError("the configuration has no seeds; give seeds: [0, 1, 2]")
    if ray is not None and jobs != 1:
        raise ConfigError("jobs is for this machine; Ray runs as many as its processors allow")
    console = Console(quiet=True) if console is None else console
    runs = [config.for_seed(seed) for seed in config.seeds]
    outcomes = {
        run.seed: Outcome(run.seed, run.output, metrics)
        for run, metrics in zip(runs, _finished(runs, overwrite=overwrite), strict=True)
        if metrics is not None
    }
    for seed, outcome in outcomes.items():
        _say(console, f"seed {seed}: finished earlier, {_last_accuracy(outcome.metrics)}")
    tasks = [Task(run, anew=overwrite) for run in runs if run.seed not in outcomes]
    by_seed = {task.seed: task for task in tasks}
    if tasks and (how := how_to_stop()):
        _say(console, how)
    with termination_raised(), closing(_engine(tasks, jobs, ray)) as events:
        try:
            for event in events:
                task = by_seed[event.seed]
                if not event.ended:
                    _say(console, f"seed {event.seed}: started, {task.config.output}")
                    continue
                outcome = _outcome(task, event)
                outcomes[event.seed] = outcome
                ended = outcome.error and f"failed: {outcome.error}"
                ended = ended or f"finished, {_last_accuracy(outcome.metrics)}"
                _say(console, f"seed {event.seed}: {ended}")
        except KeyboardInterrupt as stop:
            done = [str(s) for s, o in sorted(outcomes.items()) if o.metrics is not None]
            missing = [str(run.seed) for run in runs if str(run.seed) not in done]
            _say(
                console,
                f"stopped; finished seeds: {', '.join(done) or 'none'}; the same command goes on "
                f"with {', '.join(missing)}",
            )
            stop.add_note("what is finished is on disk; the same command goes on")
            raise
    results = [outcomes[run.seed] for run in runs]
    console.print(summary(config, results))
    for outcome in results:
        if outcome.error is not None:
            log = outcome.folder / "run.log"
            _say(console, f"seed {outcome.seed} failed: {outcome.error}\n  see {log}")
    return results


def summary(config: RunConfig, outcomes: list[Outcome]) -> Table:
    """Return the numbers of each seed, their mean and standard deviation."""
    table = Table(title=plain(f"{config.strategy.name} on {config.benchmark.name}, in %"))
    for name in ("seed", *_NUMBERS):
        table.add_column(plain(name), justify="right")
    for outcome in outcomes:
        metrics = outcome.metrics
        cells = ["failed", *[""] * (len(_NUMBERS) - 1)]
        if metrics is not None:
            cells = [percent(metrics["accuracy"].get(k), sign="") for k in _NUMBERS.values()]
        table.add_row(str(outcome.seed), *cells)
    finished = [outcome.metrics for outcome in outcomes if outcome.metrics is not None]
    if len(finished) > 1:
        table.add_section()
        columns = ([m["accuracy"].get(key) for m in finished] for key in _NUMBERS.values())
        table.add_row(f"mean of {len(finished)}", *map(_spread, columns))
    return table


def _engine(tasks: list[Task], jobs: int, ray: str | None) -> Generator[Event, None, None]:
    if ray is None:
        for device in {task.config.device for task in tasks}:
            check_device(device)
        return run_processes(tasks, jobs=jobs)
    from avalanche_peftcl.sweeps.ray import run_on_ray

    return run_on_ray(tasks, address=ray)


def _finished(runs: list[RunConfig], *, overwrite: bool) -> list[dict[str, Any] | None]:
    """Return the record of each run that is finished already.

    Raises:
        ConfigError: If the settings cannot be used, or a folder, with all that is in the way.
    """
    registry = discover()
    check_components(runs[0], registry)
    found: list[dict[str, Any] | None] = []
    unread: list[str] = []
    others: dict[str, list[str]] = {}
    for run in runs:
        metrics = None
        try:
            metrics = None if overwrite else read_metrics(run.output)
        except ConfigError as error:
            unread.append(str(error))
        else:
            check_output(run.output, overwrite=True, resume=not overwrite)
        if metrics is not None:
            differences = _differences(metrics, run, registry)
            if differences and metrics["experiences"].get("finished"):
                others.setdefault("\n".join(differences), []).append(str(run.output))
        found.append(metrics if metrics is not None and metrics["complete"] else None)
        if found[-1] is None and not overwrite and not unread and not others:
            unread += _checkpoints_of_another(run, registry)
    problems = unread + [
        f"{', '.join(folders)}: a run of another configuration\n{text}"
        for text, folders in others.items()
    ]
    if problems:
        raise ConfigError(
            "\n".join(problems) + "\nchoose another folder (output=...), or replace every run of "
            "these seeds (--overwrite; in Python, overwrite=True)"
        )
    return found


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """Return the record of an earlier run in ``folder``, ``None`` if there is none.

    Raises:
        ConfigError: If it cannot be read, or is of another version.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        metrics = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(_spoilt(folder, str(error))) from error
    version = metrics.get("format") if isinstance(metrics, dict) else None
    finished_before = (
        version == 1 and metrics.get("complete") is True
    )  # numbers are where they were
    if version is not None and version != FORMAT and not finished_before:
        raise ConfigError(
            f"{path} is of format {version!r}, this version of avalanche-peftcl writes {FORMAT}"
        )
    parts = {"format": int, "complete": bool, "experiences": dict, "config": dict, "accuracy": dict}
    for name, kind in parts.items():
        if not isinstance(metrics, dict) or not isinstance(metrics.get(name), kind):
            raise ConfigError(_spoilt(folder, f"it has no {name}"))
    return dict(metrics)


def _spoilt(folder: Path, why: str) -> str:
    return (
        f"{folder / RECORD} cannot be read as a run record: {why}; if there are "
        f"checkpoints, peftcl run --resume {folder} makes it again from them"
    )


def _checkpoints_of_another(run: RunConfig, registry: Registry) -> list[str]:
    """Say why the checkpoints of an unfinished run cannot be gone on with, but could elsewhere."""
    try:
        saved = read_checkpoint(run.output / CHECKPOINTS)
    except CheckpointError:
        return []  # of no use to anybody; the run begins anew
    if saved is None:
        return []
    seeded = _settled(run, registry)
    offered = describe_components(registry.get(k, c.name) for k, c in components(seeded))
    settings = settings_of(with_defaults(seeded, registry))
    try:
        here = {"settings": settings, "versions": versions_of(offered)}
        check_identity(saved[1], here, run.output)
    except CheckpointError as error:
        return [str(error)]
    return []


def _differences(metrics: Mapping[str, Any], run: RunConfig, registry: Registry) -> list[str]:
    """Return a line for each setting in which a record and a run differ."""
    settings = with_defaults(_settled(run, registry), registry)
    there, here = (
        _flat({k: v for k, v in settings_of(each).items() if k not in _HOW})
        for each in (metrics["config"], settings)
    )
    return [
        f"  {key}: {there.get(key, 'not given')!r} there, {here.get(key, 'not given')!r} here"
        for key in sorted(there.keys() | here.keys())
        if (key in there) != (key in here) or there[key] != here[key]
    ]


def _settled(run: RunConfig, registry: Registry) -> RunConfig:
    """Return the run as its record has it, with what it was begun with where that was left open."""
    seeded = seed_benchmark(run, registry)
    return settle_precision(seeded, registry, device=None, resume=True)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return nested settings by their dotted path."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {
            name: leaf
            for key, inner in items
            for name, leaf in _flat(inner, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: value}


def _outcome(task: Task, event: Event) -> Outcome:
    """Return what became of a run that ended; its record has the last word."""
    folder, error, metrics = task.config.output, event.error, None
    if error is None:
        try:
            metrics = read_metrics(folder)
        except ConfigError as unreadable:
            error = str(unreadable)
        if error is None and (metrics is None or not metrics["complete"]):
            error = f"it ended without a complete record in {folder}"
    return Outcome(task.seed, folder, None if error else metrics, error)


def _last_accuracy(metrics: Mapping[str, Any] | None) -> str:
    return (
        f"last accuracy {percent((metrics or {'accuracy': {}})['accuracy'].get('last_accuracy'))}"
    )


def _spread(values: list[float | None]) -> str:
    """Return mean and standard deviation in percent.

    Example:
        >>> _spread([0.5, 0.6]), _spread([None, 0.1])
        ('55.0 ± 7.1', '-')
    """
    known = [100 * value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    return f"{statistics.mean(known):.1f} ± {statistics.stdev(known):.1f}"


def _say(console: Console, text: str) -> None:
    console.print(plain(text, lines=True), soft_wrap=True)
