"""Commands that begin, run and compare."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from avalanche_peftcl.cli.arguments import Json, Overrides
from avalanche_peftcl.console import complain, plain, standard_console, tell_imports
from avalanche_peftcl.registry import discover

_RAY_ADDRESS = re.compile(r"auto|local|(ray://)?[^\s/=]+:[0-9]+")


class WithRay(TyperCommand):
    """Lets ``--ray`` stand alone or before an address; anything else behind it is not its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a lone ``--ray`` the address of a machine."""
        words = []
        for word, following in zip(args, [*args[1:], ""], strict=False):
            alone = word == "--ray" and not _RAY_ADDRESS.fullmatch(following)
            words.append("--ray=local" if alone else word)
        return super().parse_args(ctx, words)


def init(
    what: Annotated[
        str, typer.Argument(metavar="FOLDER_OR_BENCHMARK", help="Folder of images, or a name.")
    ],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="File to write; NAME.yaml by default.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", metavar="NAME", help="Frozen network; one for photographs by default."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
) -> None:
    """Write a first configuration with comments, for a folder of images or a benchmark.

    Of a folder the classes, the domains and whether it has a test split are told
    by the names of its folders: train and test, or domains that hold these, or
    classes, or domains of classes. No image is read.
    """
    from avalanche_peftcl.config.starter import write_starter

    written = write_starter(what, file, discover(), backbone=backbone, overwrite=overwrite)
    console = standard_console()
    console.print(plain(f"{written}: read it, then peftcl run {written} --dry-run"), soft_wrap=True)


def run(
    config: Annotated[Path | None, typer.Argument(help="YAML file that describes the run.")] = None,
    overrides: Overrides = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the record of an earlier run.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FOLDER",
            help="Go on with the unfinished run in this folder; it knows its CONFIG. With "
            "--overwrite it is begun anew if it cannot go on.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            metavar="0,1,2",
            help="One run a seed, each in OUTPUT/seed<seed>. Finished ones are kept; the same "
            "command goes on with those that failed or were stopped.",
        ),
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, metavar="N", help="Seeds that run at a time.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="[ADDRESS]",
            help="Run the seeds on Ray: on the cluster at HOST:PORT, or started on this machine.",
        ),
    ] = None,
    floors: Annotated[
        bool,
        typer.Option(
            "--floors",
            help="Then run nearest class mean and ridge regression on the same frozen network, "
            "each in OUTPUT/floors.",
        ),
    ] = False,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Show the configuration with every default; no run."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Build everything, show what would be done and how long it takes; no run.",
        ),
    ] = False,
) -> None:
    """Train and evaluate one configuration and write its record.

    The output folder holds config.yaml with every default, accuracy_matrix.csv,
    metrics.json, summary.md, a picture and the trained network; it is
    rewritten after each experience. Only what the record lists is ever removed,
    and a folder that holds anything else is refused. One process at a time
    writes into it.

    Seeds run one after the other, in --jobs processes that share out the cores
    unless num_threads says otherwise, or on Ray, which needs a file system that
    all nodes share (and the extra "ray" of this package). A seed that fails or
    is killed stops no other and is listed with its error.

    A checkpoint is written after each experience, and every checkpoint_every
    minibatches. What goes on from it ends with the same numbers and weights,
    bit for bit on the CPU. One of other settings, versions, weights or data is
    refused; images and weights may have moved. What cannot be resumed is told
    when the run begins.

    mixed_precision, an option of strategies, is auto: bfloat16 autocast where
    torch reports units for it, else float32. The record says what it came to,
    and --resume keeps it. bfloat16 where it is emulated takes several times the
    time of float32 and is told. 'no' gives the same numbers on every processor.

    A budget (budget={passes: 2}, seconds or stored_floats) ends the training of
    each experience alike for every method.

    --floors adds what trains nothing and every method has to beat, on the same
    images, seeds and precision. Floors that are there are kept. compare finds
    them in or beside the folders that it is given, and marks them. With the
    environment variable AVALANCHE_PEFTCL_FEATURES=FOLDER the features of frozen
    networks stay there (up to 4 GiB), for closed_form and nearest_class_mean.

    --dry-run builds the run, times a few minibatches that are thrown away, and
    writes nothing.

    Exit status 1 if one of several seeds failed.
    """
    from avalanche_peftcl.sweeps.command import run_as_asked

    succeeded = run_as_asked(
        config,
        overrides or [],
        overwrite=overwrite,
        resume=resume,
        seeds=seeds,
        jobs=jobs,
        ray=ray,
        floors=floors,
        console=standard_console(),
        print_config=print_config,
        dry_run=dry_run,
    )
    if not succeeded:
        raise typer.Exit(1)


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Run records, or folders that contain run records at any depth."),
    ],
    markdown: Annotated[Path | None, typer.Option(help="Write the tables as Markdown.")] = None,
    latex: Annotated[Path | None, typer.Option(help="Write the tables as LaTeX.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every number as CSV.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with tables and plots.")] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Quote published numbers of the same protocol.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="Test each method against this one alone."),
    ] = None,
    sort: Annotated[
        Literal["average", "last", "forgetting"] | None,
        typer.Option(help="Sort methods, the best first."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Compare runs that do not share one protocol.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare runs: mean and spread over the seeds, and tests between methods.

    Mean, standard deviation, 95 % confidence interval (Student's t) and number
    of seeds; paired t-tests with Holm's correction, of every pair or --against
    one method, named by its label or a part of it. Runs that differ in
    protocol, budget, precision or weights are refused side by side, with the
    difference, unless --force is given. --published sets quoted numbers of the
    same data set, experiences, weights, kind of class order and all images
    beside them.
    """
    from avalanche_peftcl.compare.command import compare_and_show

    files = {"markdown": markdown, "latex": latex, "csv": csv, "html": html}
    comparison = compare_and_show(
        folders,
        files,
        force=force,
        published=published,
        against=against,
        sort=sort,
        as_json=as_json,
        console=standard_console(),
    )
    if count := len(comparison.unreadable):
        complain("error", f"{count} of the records could not be read, see above", "red")
        raise typer.Exit(1)


def manifest(
    config: Annotated[Path, typer.Argument(help="YAML file that describes a run.")],
    file: Annotated[Path, typer.Argument(help="The manifest to write.")],
    overrides: Overrides = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier manifest.")
    ] = False,
) -> None:
    """Write the names and hashes of all images of a run's benchmark, for its option manifest.

    A run with benchmark.manifest=FILE compares them first, and is refused with
    what is missing, extra or changed. The hashes depend on no machine, folder,
    seed or class order.
    """
    from avalanche_peftcl.config.resources import check_home

    check_home()
    tell_imports("torch and Avalanche")
    from avalanche_peftcl.runs.manifest import manifest_from_file

    manifest_from_file(config, file, overrides or [], overwrite, standard_console())
