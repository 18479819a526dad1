"""What earlier sweeps left: finished runs, which are kept, and unfinished ones, which go on."""

from pathlib import Path

from avalanche_peftcl.checkpoints.differences import leaves
from avalanche_peftcl.checkpoints.folder import read_checkpoint
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.config.plan import Plan, make_plan
from avalanche_peftcl.errors import CheckpointError, ConfigError, RecordError
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.runs.folder import CHECKPOINTS, check_output
from avalanche_peftcl.runs.identity import HOW, Identity, settings_of
from avalanche_peftcl.runs.precision import settle_precision
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.schema import FORMAT, RECORD, Record


def finished_runs(runs: list[RunConfig], *, overwrite: bool) -> list[Record | None]:
    """Return the record of each run that is finished already.

    Raises:
        ConfigError: If the settings cannot be used, or a folder, with all that is in the way.
    """
    registry = discover()
    make_plan(runs[0], registry)  # checks it
    found: list[Record | None] = []
    unread: list[str] = []
    others: dict[str, list[str]] = {}
    for run in runs:
        record = None
        try:
            record = None if overwrite else read_earlier(run.output)
        except ConfigError as error:
            unread.append(str(error))
        else:
            check_output(run.output, overwrite=True, resume=not overwrite)
        if record is not None and record.experiences.finished:
            differences = other_settings(record, run, registry)
            if differences:
                others.setdefault("\n".join(differences), []).append(str(run.output))
        found.append(record if record is not None and record.ended else None)
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


def beside_a_run(output: Path, runs: list[RunConfig]) -> str | None:
    """Say that ``output`` holds a run of its own, whose seed ``compare`` would count twice.

    Returns:
        A warning where seeds have been run there already; else ``None``.

    Raises:
        ConfigError: If the folders of the seeds would be the first to lie inside that of a run.
    """
    if not ((output / RECORD).is_file() or (output / CHECKPOINTS).is_dir()):
        return None
    says = (
        f"{output} holds a run of its own beside the folders of the seeds, and compare {output} "
        "finds its seed twice"
    )
    if any((run.output / RECORD).is_file() for run in runs):
        return f"warning: {says}; name the folders to compare"
    raise ConfigError(
        f"{output} holds a run of its own, and the folders of the seeds would lie inside it; "
        f"choose another folder (output={output}-seeds), or move that run away "
        f"(mv {output} {output}-first)"
    )


def read_earlier(folder: Path) -> Record | None:
    """Return the record of an earlier run in ``folder``, ``None`` if there is none.

    Raises:
        ConfigError: If it cannot be read, or is of another version.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = read_record(folder)
    except RecordError as error:
        raise ConfigError(
            f"{path} cannot be read as a run record: {error}; if there are checkpoints, "
            f"peftcl run --resume {folder} makes it again from them"
        ) from error
    if record.format != FORMAT and not record.complete:  # numbers are where they were
        raise ConfigError(
            f"{path} is of format {record.format!r}, this version of avalanche-peftcl writes "
            f"{FORMAT}"
        )
    return record


def other_settings(record: Record, run: RunConfig, registry: Registry) -> list[str]:
    """Return a line for each setting in which a record and a run differ."""
    settings = _plan(run, registry).settings
    there, here = (
        dict(leaves({k: v for k, v in settings_of(each).items() if k not in HOW}))
        for each in (record.config.model_dump(mode="json"), settings)
    )
    return [
        f"  {key}: {there.get(key, 'not given')!r} there, {here.get(key, 'not given')!r} here"
        for key in sorted(there.keys() | here.keys())
        if (key in there) != (key in here) or there[key] != here[key]
    ]


def _checkpoints_of_another(run: RunConfig, registry: Registry) -> list[str]:
    """Say why the checkpoints of an unfinished run cannot be gone on with, but could elsewhere."""
    try:
        saved = read_checkpoint(run.output / CHECKPOINTS)
    except CheckpointError:
        return []  # of no use to anybody; the run begins anew
    if saved is None:
        return []
    try:
        Identity.of(_plan(run, registry)).check(saved[1].get("identity"), run.output)
    except CheckpointError as error:
        return [str(error)]
    return []


def _plan(run: RunConfig, registry: Registry) -> Plan:
    """Return the run as its record has it, with what it was begun with where that was left open."""
    return settle_precision(make_plan(run, registry), device=None, resume=True)
