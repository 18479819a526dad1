"""What ``peftcl run`` does: one run, one that goes on, or one configuration under several seeds."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from avalanche_peftcl.config import load_config, parse_seeds
from avalanche_peftcl.config.resources import check_home
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.console import tell_imports
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import discover

_HEAVY = "torch and Avalanche"  # ten seconds of a processor


def run_as_asked(
    config: Path | None,
    overrides: Sequence[str],
    *,
    overwrite: bool,
    resume: Path | None,
    seeds: str | None,
    jobs: int,
    ray: str | None,
    floors: bool,
    console: Console,
    print_config: bool = False,
    dry_run: bool = False,
) -> bool:
    """Run what the words of the command line ask for.

    Args:
        config: YAML file; needed unless a run goes on.
        overrides: Settings that replace the file's.
        overwrite: Whether earlier runs are replaced.
        resume: Folder of a run to go on with.
        seeds: Several seeds, as they were written.
        jobs: Seeds that run at a time.
        ray: Where Ray is, if the seeds run there.
        floors: Whether the floors of the run, or of every seed, are run too.
        console: Where progress and result are shown.
        print_config: Whether the configuration is shown with every default, and nothing is run.
        dry_run: Whether everything is built, and nothing is run.

    Returns:
        Whether all that was to run has succeeded.

    Raises:
        ConfigError: Words that do not go together.
        PEFTCLError: As :func:`.runs.run.run` and :func:`.run_sweep`.
    """
    if resume is not None and (seeds is not None or jobs != 1 or ray is not None):
        raise ConfigError(
            "--resume goes on with one run; several seeds go on by the command that began them"
        )
    if print_config and dry_run:
        raise ConfigError("--print-config and --dry-run are two things; leave one out")
    if resume is not None and (print_config or dry_run):
        raise ConfigError(
            f"a run that goes on keeps its settings: they are in {resume}/config.yaml; without "
            "--resume --print-config and --dry-run take a YAML file"
        )
    check_home()
    if config is not None and "=" in config.name and not config.exists():
        raise ConfigError(
            f"{config} stands where the YAML file of the run does; "
            + (
                "a run that goes on keeps its settings: leave it out, or begin another run"
                if resume is not None
                else f"first the file, then what it changes: run FILE.yaml {config}"
            )
        )
    if resume is not None:
        tell_imports(_HEAVY)
        from avalanche_peftcl.runs.command import resume_from_folder

        resume_from_folder(resume, config, overrides, overwrite, console, floors=floors)
        return True
    if config is None:
        raise ConfigError("give a YAML file that describes the run, or --resume FOLDER")
    wanted = None if seeds is None else parse_seeds(seeds)
    settings = load_config(config, overrides, seeds=wanted)
    if print_config:
        tell_imports(_HEAVY)
        from avalanche_peftcl.config.plan import resolved_settings

        console.out(dump_settings(resolved_settings(settings, discover())), end="", highlight=False)
        return True
    if settings.seeds is None and not dry_run and (jobs != 1 or ray is not None):
        raise ConfigError("--jobs and --ray are for several seeds; name them: --seeds 0,1,2")
    tell_imports(_HEAVY)
    if dry_run:
        from avalanche_peftcl.runs.dry_run import dry_run as build_only

        build_only(settings, console=console, overwrite=overwrite)
        return True
    if settings.seeds is not None:
        from avalanche_peftcl.sweeps.sweep import run_sweep

        outcomes = run_sweep(
            settings, jobs=jobs, ray=ray, overwrite=overwrite, floors=floors, console=console
        )
        return all(outcome.error is None for outcome in outcomes)
    from avalanche_peftcl.runs.command import run_and_show

    run_and_show(settings, overwrite, console, floors=floors)
    return True
