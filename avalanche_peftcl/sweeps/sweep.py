"""One configuration under several seeds: a run each, and what they have in common."""

import statistics
from contextlib import closing, nullcontext

from rich.console import Console
from rich.table import Table

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import discover
from avalanche_peftcl.runs.floors import floor_runs
from avalanche_peftcl.runs.report import percent
from avalanche_peftcl.runs.schema import HEADLINES
from avalanche_peftcl.runs.tables import Sheet, terminal_table
from avalanche_peftcl.sweeps.children import shared_servers
from avalanche_peftcl.sweeps.earlier import beside_a_run, finished_runs
from avalanche_peftcl.sweeps.engine import Outcome, outcomes, say
from avalanche_peftcl.sweeps.processes import Task
from avalanche_peftcl.training.feature_cache import shared_features


@shared_servers()
def run_sweep(
    config: RunConfig,
    *,
    jobs: int = 1,
    ray: str | None = None,
    overwrite: bool = False,
    floors: bool = False,
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
        floors: Run the floors of every seed too, see :func:`.floor_runs`, as a sweep each.
        console: Where starts, ends and the summary are shown; ``None`` shows nothing.

    Returns:
        One outcome a seed, in the order of ``config.seeds``; behind them those of each floor.

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
    further = floor_runs(config, discover()) if floors else []
    runs = [config.for_seed(seed) for seed in config.seeds]
    if beside := beside_a_run(config.output, runs):
        say(console, beside)
    found = {
        run.seed: Outcome(run.seed, run.output, record)
        for run, record in zip(runs, finished_runs(runs, overwrite=overwrite), strict=True)
        if record is not None
    }
    for seed, outcome in found.items():
        say(console, f"seed {seed}: finished earlier, {_last_accuracy(outcome)}")
    tasks = [Task(run, f"seed {run.seed}", anew=overwrite) for run in runs if run.seed not in found]
    try:
        with closing(outcomes(tasks, jobs=jobs, ray=ray, console=console)) as ended:
            for task, outcome in ended:
                found[outcome.seed] = outcome
                failed = outcome.error and f"failed: {outcome.error}\n  see {task.log}"
                say(console, f"{task.name}: {failed or f'finished, {_last_accuracy(outcome)}'}")
    except KeyboardInterrupt as stop:
        done = [str(seed) for seed, each in sorted(found.items()) if each.record is not None]
        missing = [str(run.seed) for run in runs if str(run.seed) not in done]
        say(
            console,
            f"stopped; finished seeds: {', '.join(done) or 'none'}; the same command goes on "
            f"with {', '.join(missing)}",
        )
        stop.add_note("what is finished is on disk; the same command goes on")
        raise
    results = [found[run.seed] for run in runs]
    console.print(summary(config, results))
    for task in tasks:
        if error := found[task.config.seed].error:
            say(console, f"{task.name} failed: {error}\n  see {task.log}")
    with shared_features() if ray is None else nullcontext():
        for floor in further:
            results += run_sweep(floor, jobs=jobs, ray=ray, overwrite=overwrite, console=console)
    return results


def summary(config: RunConfig, outcomes: list[Outcome]) -> Table:
    """Return the numbers of each seed, their mean and standard deviation."""
    names = tuple(HEADLINES.values())
    rows = []
    for outcome in outcomes:
        cells = ["failed", *[""] * (len(names) - 1)]
        if outcome.record is not None:
            found = outcome.record.accuracy.headlines()
            cells = [percent(found[name], sign="") for name in names]
        rows.append((str(outcome.seed), *cells))
    done = [o.record.accuracy.headlines() for o in outcomes if o.record is not None]
    title = f"{config.strategy.name} on {config.benchmark.name}, in %"
    table = terminal_table(Sheet(title, ("seed", *names), tuple(rows)))
    if len(done) > 1:
        table.add_section()
        spreads = (_spread([found[name] for found in done]) for name in names)
        table.add_row(f"mean of {len(done)}", *spreads)
    return table


def _last_accuracy(outcome: Outcome) -> str:
    value = None if outcome.record is None else outcome.record.accuracy.last_accuracy
    return f"last accuracy {percent(value)}"


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
