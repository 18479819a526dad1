"""Searching the options of a method on images that are no test images."""

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from avalanche_peftcl.config import ComponentConfig, RunConfig, config_from, load_config
from avalanche_peftcl.config.asked import Asked
from avalanche_peftcl.config.plan import make_plan
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.config.tuned import FIRST_EXPERIENCE, OTHER, Tuned
from avalanche_peftcl.console import csv_row
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.files import write_file
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.wording import show
from avalanche_peftcl.runs.folder import CHECKPOINTS
from avalanche_peftcl.runs.report import percent
from avalanche_peftcl.runs.schema import Record
from avalanche_peftcl.runs.tables import Sheet, terminal_table
from avalanche_peftcl.sweeps.earlier import finished_runs
from avalanche_peftcl.sweeps.engine import outcomes, say
from avalanche_peftcl.sweeps.processes import Task
from avalanche_peftcl.sweeps.space import points, search_space

_HELD = "validation_per_class"
_HELD_OUT = "held-out training images"
_FEW = 5  # trials that are shown at the end


@dataclass(frozen=True, slots=True)
class Trial:
    """One set of values, and what became of it.

    Args:
        name: Of its folder, too.
        values: By option.
        score: Last accuracy, as a fraction; ``None`` without one.
        error: Why it has none.
    """

    name: str
    values: Mapping[str, Any]
    score: float | None = None
    error: str | None = None

    def __str__(self) -> str:
        values = ", ".join(f"{key} {_said(value)}" for key, value in self.values.items())
        return f"{values}: {percent(self.score) if self.error is None else self.error}"


@dataclass(frozen=True, slots=True)
class Search:
    """What came of a search.

    Args:
        file: The configuration with the values of the best trial.
        tuned: What it says of the search.
        trials: All of them, in their order.
    """

    file: Path
    tuned: Tuned
    trials: tuple[Trial, ...]


def tune(
    config: Asked,
    *overrides: str,
    trials: int = 30,
    phase: str = FIRST_EXPERIENCE,
    search: Sequence[str] = (),
    held_out: int = 20,
    jobs: int = 1,
    ray: str | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Search:
    """Search options of a method, and write the configuration with the best.

    Each trial is a run of its own in ``<output>-tune/trial<k>``, without the configuration's
    metrics and loggers. It trains on what is left of the training images and is scored by its last
    accuracy on those held out; no test image is read. The first has the values that are there, the
    others follow a sequence, see :func:`.points`: the same call goes on after an interruption, one
    with more trials adds to them, and what is tried depends on neither. Of equal scores the
    earliest wins. A finished trial keeps its record and no checkpoint.

    Args:
        config: What is to be run later, see :func:`.config_from`. Of several seeds the first is
            that of all trials.
        *overrides: Settings that replace it, as on the command line.
        trials: How many.
        phase: ``"first_experience"``: trials see the first experience alone, as does whoever has to
            choose before the others are there. ``"other:FILE"``: they see the whole stream of the
            benchmark in another YAML file, and nothing of this one.
        search: What is searched, see :func:`.search_space`.
        held_out: Training images of a class that scores are of, unless the benchmark's own option
            ``validation_per_class`` says how many.
        jobs: Trials at a time on this machine.
        ray: Run on Ray instead, see :func:`.run_sweep`.
        overwrite: Run all of them from the start.
        console: Where trials and result are shown; ``None`` shows nothing.

    Returns:
        What came of it. ``tuned.yaml`` and ``trials.csv`` are in ``<output>-tune``.

    Raises:
        ConfigError: Before anything runs: settings that cannot be used, nothing to search, a
            benchmark that holds out no training images, a folder with other trials. Afterwards: no
            trial has a score.
        KeyboardInterrupt: After an interrupt has stopped the trials.

    Source:
        Two phases with two data sets: arXiv 2403.09066.
    Differs:
        There the first phase is scored on test images of its data set; here on held-out training
        images of it.
    """
    if ray is not None and jobs != 1:
        raise ConfigError("jobs is for this machine; Ray runs as many as its processors allow")
    config, console = config_from(config, overrides), console or Console(quiet=True)
    registry, folder = discover(), Path(f"{config.output}-tune")
    seed = config.seed if config.seeds is None else config.seeds[0]
    given = config.model_copy(update={"seed": seed, "seeds": None})
    base = _searched_on(given, phase, held_out, registry)
    plan = make_plan(base, registry)
    space = search_space(plan, search)
    before = {key: _value(plan.settings, key) for key in space}
    runs: dict[str, RunConfig] = {}
    found: dict[str, Trial] = {}
    for k, values in enumerate([before, *points(space, trials, seed)]):
        name = f"trial {k}"
        found[name] = Trial(name, values)
        changed = base.model_copy(update={"output": folder / f"trial{k}"})
        runs[name] = config_from(changed, _overrides(values))
    records = finished_runs(list(runs.values()), overwrite=overwrite)
    for trial, record in zip(list(found.values()), records, strict=True):
        if record is not None:
            found[trial.name] = _scored(trial, record, phase)
            say(console, f"{trial.name}: finished earlier, {found[trial.name]}")
            _drop_checkpoint(runs[trial.name])
    tasks = [
        Task(run, name, anew=overwrite)
        for (name, run), record in zip(runs.items(), records, strict=True)
        if record is None
    ]
    with closing(outcomes(tasks, jobs=jobs, ray=ray, console=console, lines=False)) as ended:
        for task, outcome in ended:
            trial = _scored(found[task.name], outcome.record, phase, outcome.error)
            found[task.name] = trial
            if outcome.record is not None:
                _drop_checkpoint(task.config)
            see = "" if outcome.error is None else f"\n  see {task.log}"
            say(console, f"{trial.name}: {trial}{see}")
    results = tuple(found.values())
    write_file(folder / "trials.csv", _csv(results).encode(), parents=True)
    best = _best(results, folder)
    tuned = Tuned(
        phase=phase if phase == FIRST_EXPERIENCE else OTHER,
        benchmark=plan.settings["benchmark"],
        tested_on=_HELD_OUT,
        trials=trials,
        failed=sum(trial.score is None for trial in results),
        seed=seed,
        searched={key: str(where) for key, where in space.items()},
        values=dict(best.values),
        score=best.score or 0.0,
        score_before=results[0].score,
    )
    file = folder / "tuned.yaml"
    write_file(file, dump_settings(_with(config, tuned)).encode())
    console.print(terminal_table(_sheet(results)))
    say(console, f"{file}: {best}")
    return Search(file, tuned, results)


def _drop_checkpoint(trial: RunConfig) -> None:
    """Make room: what a head keeps to be fitted again may take hundreds of megabytes."""
    shutil.rmtree(trial.output / CHECKPOINTS, ignore_errors=True)


def _searched_on(config: RunConfig, phase: str, held_out: int, registry: Registry) -> RunConfig:
    """Return the run that trials are variants of."""
    update: dict[str, Any] = {"metrics": [], "loggers": [], "evaluate": "seen", "tuned": None}
    update |= {"checkpoint_every": None, "floor": None, "stop_after": None}
    benchmark = config.benchmark
    if phase == FIRST_EXPERIENCE:
        update["stop_after"] = 1
    elif phase.startswith(f"{OTHER}:") and (file := phase.removeprefix(f"{OTHER}:").strip()):
        benchmark = load_config(file).benchmark
    else:
        raise ConfigError(
            f"phase {show(phase)} is neither 'first_experience' nor 'other:FILE' with a YAML file "
            "whose benchmark is to be searched on"
        )
    if held_out < 1:
        raise ConfigError(f"held_out={held_out} holds out no image that could be scored on")
    if _HELD not in registry.options("benchmark", benchmark.name):
        raise ConfigError(
            f"benchmark {benchmark.name!r} has no option {_HELD!r}: it holds out no training "
            "images to score on; search on one that does (--phase other:FILE)"
        )
    if not benchmark.options.get(_HELD):
        held = benchmark.model_dump() | {_HELD: held_out}
        benchmark = ComponentConfig.model_validate(held)
    return config.model_copy(update={**update, "benchmark": benchmark})


def _scored(trial: Trial, record: Record | None, phase: str, error: str | None = None) -> Trial:
    """Return a trial with its score, or why it has none."""
    if record is not None and record.protocol.tested_on != _HELD_OUT:
        error = f"it was tested on {record.protocol.tested_on}, not on {_HELD_OUT}"
    if record is not None and record.joint and phase == FIRST_EXPERIENCE:
        error = "it trains on all experiences at once; search on others (--phase other:FILE)"
    score = None if record is None or error else record.accuracy.last_accuracy
    if score is None and error is None:
        error = "it has no last accuracy"
    return Trial(trial.name, trial.values, score, error)


def _best(trials: Sequence[Trial], folder: Path) -> Trial:
    scored = [trial for trial in trials if trial.score is not None]
    if not scored:
        raise ConfigError(
            f"no trial in {folder} has a score; the first ended with: {trials[0].error}"
        )
    return max(scored, key=lambda trial: trial.score or 0.0)  # the first of equals


def _with(config: RunConfig, tuned: Tuned) -> dict[str, Any]:
    """Return a configuration as it was given, with what was found."""
    found = config_from(config, _overrides(tuned.values))
    settings = found.model_dump(mode="json", exclude_unset=True)
    if config.seeds is not None:
        settings["seeds"] = config.seeds
    return settings | {"tuned": tuned.model_dump(mode="json", exclude_none=True)}


def _overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_said(value)}" for key, value in values.items()]


def _value(settings: Mapping[str, Any], key: str) -> Any:
    here: Any = settings
    for part in key.split("."):
        here = here[int(part)] if isinstance(here, list) else here[part]
    return here


def _csv(trials: Sequence[Trial]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *trials[0].values, "score", "error"])
    for trial in trials:
        writer.writerow(csv_row([trial.name, *trial.values.values(), trial.score, trial.error]))
    return text.getvalue()


def _sheet(trials: Sequence[Trial]) -> Sheet:
    """Return the best trials, and the first."""
    scored = sorted((t for t in trials if t.score is not None), key=lambda t: -(t.score or 0.0))
    shown = scored[:_FEW] + [t for t in trials[:1] if t not in scored[:_FEW]]
    rows = [(t.name, *map(_said, t.values.values()), percent(t.score, sign="")) for t in shown]
    title = f"accuracy on {_HELD_OUT} in %, of {len(trials)} trials"
    return Sheet(title, ("", *trials[0].values, "accuracy"), tuple(rows))


def _said(value: Any) -> str:
    """Return a value as YAML has it in one line."""
    return dump_settings({"v": value}).strip().removeprefix("v: ")
