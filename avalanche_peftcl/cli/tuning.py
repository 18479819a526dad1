"""The command that searches options."""

from pathlib import Path
from typing import Annotated

import typer

from avalanche_peftcl.cli.arguments import Overrides
from avalanche_peftcl.console import standard_console, tell_imports


def tune(
    config: Annotated[Path, typer.Argument(help="YAML file that describes the run.")],
    overrides: Overrides = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, max=1000, metavar="N", help="Runs that are tried.")
    ] = 30,
    phase: Annotated[
        str,
        typer.Option(
            "--phase",
            metavar="first_experience|other:FILE",
            help="What trials see: the first experience, or the benchmark of another YAML file.",
        ),
    ] = "first_experience",
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="OPTION[=WHERE]",
            help="What is searched, and where: strategy.lr, strategy.lr=1e-3..0.1, "
            "module.r=[4,8,16]. May be given several times.",
        ),
    ] = None,
    held_out: Annotated[
        int,
        typer.Option(
            "--held-out", min=1, metavar="N", help="Training images of a class to score on."
        ),
    ] = 20,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, metavar="N", help="Trials that run at a time.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="[ADDRESS]", help="Run the trials on Ray, as in peftcl run."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Run all trials from the start.")
    ] = False,
) -> None:
    """Search a method's options on held-out training images; write OUTPUT-tune/tuned.yaml.

    Each trial is a run in OUTPUT-tune/trial<k> of seed, or of the first of seeds.
    It is scored by its last accuracy on training images that are held out; no
    test image is read. Trial 0 has the values that are there; of equal scores
    the earliest wins. The others are a quasi-random sequence: the same command
    goes on after an interruption, more --trials add to those that are there,
    and --jobs changes nothing of what is tried.

    Without --search the options that their components mark are searched, from a
    tenth of their value to ten times it: learning rates, and weights of terms
    of the loss that are not 0. A range whose ends differ tenfold is searched by
    ratios.

    first_experience is for who has to choose before there is more; methods
    against forgetting show little there. other:FILE searches on another data
    set, whole, and reads nothing of this one.

    The records of runs of tuned.yaml say what was tuned, on what, and in how
    many trials; compare writes it below its tables.
    """
    from avalanche_peftcl.config import load_config
    from avalanche_peftcl.config.resources import check_home

    check_home()
    settings = load_config(config, overrides or [])
    tell_imports("torch and Avalanche")
    from avalanche_peftcl.sweeps.tune import tune as search_options

    search_options(
        settings,
        trials=trials,
        phase=phase,
        search=search or [],
        held_out=held_out,
        jobs=jobs,
        ray=ray,
        overwrite=overwrite,
        console=standard_console(),
    )
