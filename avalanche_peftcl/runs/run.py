"""One run, read from top to bottom: from a configuration to the run record."""

from contextlib import ExitStack
from typing import Any

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.config.asked import Asked, config_from
from avalanche_peftcl.config.plan import make_plan
from avalanche_peftcl.config.resources import (
    check_open_files,
    check_processors,
    plain_resource_errors,
)
from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.logging import closing
from avalanche_peftcl.models.device import check_device, warn_of_idle_gpu
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.offers import ExperienceOffers
from avalanche_peftcl.runs.build import build_backbone, build_method
from avalanche_peftcl.runs.floors import floor_runs, floors_of
from avalanche_peftcl.runs.folder import Stamp, check_output
from avalanche_peftcl.runs.identity import Identity
from avalanche_peftcl.runs.journal import Journal
from avalanche_peftcl.runs.precision import settle_precision
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.report import terminal_report
from avalanche_peftcl.runs.result import RunResult
from avalanche_peftcl.runs.saved import finished_run, saved_run
from avalanche_peftcl.runs.signals import how_to_stop
from avalanche_peftcl.runs.surroundings import controlled, plain_data_errors, seed_all


def run(
    config: Asked,
    *overrides: str,
    registry: Registry | None = None,
    overwrite: bool = False,
    resume: bool = False,
    floors: bool = False,
    reporter: RunProgress | None = None,
) -> RunResult:
    """Train and evaluate one configuration, experience by experience.

    The run record is written before the first experience and after each, and a checkpoint too;
    whatever stops a run, the finished experiences are on disk, and it can be gone on with to the
    same end. Global random generators, torch's number of threads and its deterministic mode are as
    before when it returns.

    Args:
        config: What to run: a :class:`RunConfig`, a mapping, YAML as text or a file's path, see
            :func:`.config_from`.
        *overrides: Settings that replace it, as on the command line: ``"strategy.lr=0.1"``.
        registry: Components to choose from; ``None`` discovers the installed ones.
        overwrite: Replace an earlier run in the output folder instead of refusing.
        resume: Go on with the run in the output folder from its last checkpoint; begin it if
            nothing of it is finished, return its record if all is. With ``overwrite`` a run that
            cannot go on is begun anew.
        floors: Run its floors too, once it is complete, see :func:`.floor_runs`; those that are
            there are kept.
        reporter: Shows the run; ``None`` shows nothing.

    Returns:
        What it gave; its record is as written.

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
        BudgetError: More floats are kept than the budget allows; the experiences finished before
            are on disk.
        NotFiniteError: Weights, losses, features or outputs that are not finite numbers; the
            experiences finished before are on disk.
    """
    config = config_from(config, overrides)
    registry = discover() if registry is None else registry
    reporter = RunProgress() if reporter is None else reporter
    there = check_output(config.output, overwrite=overwrite, resume=resume)
    if floors:
        floor_runs(config, registry)  # checks them before anything runs
    try:
        anew = overwrite and not resume
        done = _run(config, registry, reporter, there, overwrite=anew, resume=resume)
    except CheckpointError as error:
        if not (resume and overwrite):
            raise
        reporter.say(f"it cannot go on and begins anew: {error}")
        done = _run(config, registry, reporter, there, overwrite=True)
    for floor, goes_on in floors_of(config, done.record, registry) if floors else ():
        show = RunProgress(reporter.console)
        run(floor, registry=registry, overwrite=True, resume=goes_on, reporter=show)
    return RunResult(done.folder, done.record)


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
    device, output = check_device(config.device), config.output
    warn_of_idle_gpu(device)
    plan = settle_precision(make_plan(config, registry), device=device, resume=resume)
    identity, workers = Identity.of(plan), config.num_workers
    if resume and (done := finished_run(output, identity)) is not None:
        reporter.say(f"the run in {output} is complete; there is nothing left to do")
        return done
    saved = saved_run(output, identity, device=device) if resume else None
    threads = config.num_threads if saved is None else saved.state["threads"]
    check_processors(threads, workers)
    check_open_files(workers)

    loggers: list[Any] = []
    with (
        ExitStack() as until,
        controlled(config.seed, device, threads),
        plain_data_errors(),
        plain_resource_errors(plan.settings),
        reporter,
        closing(loggers),
    ):
        backbone = build_backbone(plan)
        given = {"input_config": backbone.input_config, "backbone": backbone.network}
        benchmark = plan.build("benchmark", **given)
        seed_all(config.seed)  # what follows depends on the seed, not on what came before
        method = build_method(plan, backbone, device=str(device), reporter=reporter)
        strategy, tests = method.strategy, benchmark.test_stream

        journal = Journal(plan, backbone, benchmark, method, identity)
        reporter.say(journal.headline(device))
        if how := how_to_stop():
            reporter.say(how)
        journal.take_folder(there, overwrite=overwrite, resume=resume, until=until)
        journal.build_loggers(loggers, resume=saved is not None)
        begins, at = saved is None, journal.begin(saved, until=until)
        saved = None  # its tensors are where they belong
        if not begins:
            reporter.say(f"goes on from its checkpoint, {at.finished} experiences finished")

        if config.evaluate == "all" and begins:
            strategy.eval(tests, num_workers=workers)
            at.fresh.clear()
        for experience in journal.visits[at.visited :]:
            if journal.stopped:
                break
            part = ExperienceOffers.of(experience)
            if part.is_first_subexp:
                ahead = journal.next - 1, journal.total
                reporter.begin(*ahead, later=journal.later, tests=journal.tests)
            strategy.train(experience, eval_streams=[], num_workers=workers)
            if part.is_last_subexp is False:  # a chunk of an online stream
                at.visited += 1
                continue
            seen = tests if config.evaluate == "all" else tests[: journal.next]
            strategy.eval(seen, num_workers=workers)
            reporter.tell(journal.finish_experience())
        if journal.stopped:
            reporter.say(journal.stopped)
        result = journal.result()
        reporter.console.print(
            terminal_report(result.record, str(output), width=reporter.console.width)
        )
    return result
