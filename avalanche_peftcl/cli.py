"""The command ``peftcl``: run an experiment, compare runs, list what is installed."""

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from avalanche_peftcl import __version__
from avalanche_peftcl.console import complain, plain, print_json, standard_console
from avalanche_peftcl.registry import discover
from avalanche_peftcl.registry.kinds import KINDS
from avalanche_peftcl.registry.packages import SWITCH
from avalanche_peftcl.registry.tables import (
    broken_builders,
    component_json,
    component_page,
    component_table,
    components_json,
    package_table,
    packages_json,
)
from avalanche_peftcl.runs.messages import PlainEnds

__all__ = ["app", "main"]

_RAY_ADDRESS = re.compile(r"auto|local|(ray://)?[^\s/=]+:[0-9]+")


_Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings to replace: strategy.lr=0.1"),
]
_Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FILE", help="The frozen network's weights."),
]
_Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Let the frozen network's weights be downloaded.")
]
_Json = Annotated[bool, typer.Option("--json", help="Write JSON in the place of tables.")]
_Export = Annotated[
    Path, typer.Argument(metavar="EXPORT", help="File of peftcl export, or a run's folder.")
]
_Task = Annotated[
    int | None,
    typer.Option("--task", metavar="N", help="Task label, for a network that needs one."),
]
_Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, auto, ...")]


class _WithRay(TyperCommand):
    """Lets ``--ray`` stand alone or before an address; anything else behind it is not its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = []
        for word, following in zip(args, [*args[1:], ""], strict=False):
            alone = word == "--ray" and not _RAY_ADDRESS.fullmatch(following)
            words.append("--ray=local" if alone else word)
        return super().parse_args(ctx, words)


app = typer.Typer(
    cls=PlainEnds,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Parameter-efficient continual learning for Avalanche.",
    epilog=f"The environment variable {SWITCH} says which plugin packages to load: unset, all; "
    "empty, none; a comma-separated list, those.",
)


def _version(wanted: bool) -> None:
    if wanted:
        standard_console().print(f"avalanche-peftcl {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def init(
    what: Annotated[
        str, typer.Argument(metavar="FOLDER_OR_BENCHMARK", help="Folder of images, or a name.")
    ],
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="File to write; NAME.yaml by default.")
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

    written = write_starter(what, file, discover(), overwrite=overwrite)
    console = standard_console()
    console.print(plain(f"{written}: read it, then peftcl run {written} --dry-run"), soft_wrap=True)


@app.command(cls=_WithRay)
def run(
    config: Annotated[Path | None, typer.Argument(help="YAML file that describes the run.")] = None,
    overrides: _Overrides = None,
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


@app.command()
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
    force: Annotated[
        bool, typer.Option("--force", help="Compare runs that do not share one protocol.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Compare runs: mean and spread over the seeds, and tests between methods.

    Mean, standard deviation, 95 % confidence interval (Student's t) and number
    of seeds; paired t-tests with Holm's correction. Runs that differ in
    protocol, precision or weights are refused side by side, with the
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
        as_json=as_json,
        console=standard_console(),
    )
    if count := len(comparison.unreadable):
        complain("error", f"{count} of the records could not be read, see above", "red")
        raise typer.Exit(1)


@app.command()
def manifest(
    config: Annotated[Path, typer.Argument(help="YAML file that describes a run.")],
    file: Annotated[Path, typer.Argument(help="The manifest to write.")],
    overrides: _Overrides = None,
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
    from avalanche_peftcl.runs.manifest import manifest_from_file

    manifest_from_file(config, file, overrides or [], overwrite, standard_console())


def _kinds(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def _names(ctx: typer.Context, incomplete: str) -> list[str]:
    kind = ctx.params.get("kind")
    names = discover().names(kind) if kind else []
    return [name for name in names if name.startswith(incomplete)]


@app.command("list")
def list_components(
    kind: Annotated[
        str | None,
        typer.Argument(help="Only this kind: " + ", ".join(KINDS), autocompletion=_kinds),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show the options of this component of that kind.", autocompletion=_names
        ),
    ] = None,
    as_json: _Json = False,
) -> None:
    """List the components on offer, or the options of one: type, range, default and meaning."""
    registry, console = discover(), standard_console()
    if as_json:
        one = kind is not None and name is not None
        print_json(
            console,
            component_json(registry, str(kind), str(name))
            if one
            else components_json(registry, kind),
        )
        return
    if kind is None or name is None:
        console.print(component_table(registry, kind))
        return
    for part in component_page(registry, kind, name):
        console.print(part)


@app.command()
def plugins(
    check: Annotated[
        bool, typer.Option("--check", help="Import every builder and read its options too.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """List every plugin package, loaded or left out, and why.

    With --check exit status 1 if a package was left out, or a builder cannot
    be imported or read.
    """
    registry, console = discover(), standard_console()
    broken = broken_builders(registry) if check else []
    if as_json:
        told = packages_json(registry)
        problems = [{"component": title, "problem": problem} for title, problem in broken]
        print_json(console, {"packages": told, "broken": problems} if check else told)
    else:
        console.print(package_table(registry))
    for title, problem in broken:
        complain(title, problem, "red")
    if check and not as_json:
        count = len(registry.entries())
        console.print(plain(f"{count - len(broken)} of {count} components can be built"))
    if broken or (check and not all(record.loaded for record in registry.plugins)):
        raise typer.Exit(1)


@app.command("schema")
def write_schema(
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="File to write; else it is shown.")
    ] = None,
) -> None:
    """Write the JSON schema of a run's YAML, with every installed component, for editors.

    Editors with yaml-language-server read it from the first line of a YAML:
    # yaml-language-server: $schema=FILE
    """
    from avalanche_peftcl.config.json_schema import json_schema
    from avalanche_peftcl.files import write_file

    told = json_schema(discover())
    if file is None:
        print_json(standard_console(), told)
    else:
        write_file(file, (json.dumps(told, indent=1) + "\n").encode())


@app.command("export")
def export_network(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Folder of a run.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")],
    with_backbone: Annotated[
        bool, typer.Option("--with-backbone", help="Put the frozen network's weights in too.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write a graph of ONNX, backbone and all.")
    ] = False,
    peft: Annotated[
        bool, typer.Option("--peft", help="Write LoRA or another tuner as peft does, to a folder.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
    checkpoint: _Checkpoint = None,
    pretrained: _Pretrained = False,
) -> None:
    """Write the trained network of a run to one file, for use without Avalanche.

    avalanche_peftcl.load(FILE) gives the logits of the run's own evaluation and
    executes nothing in the file. Without --with-backbone the backbone is built
    as the run's configuration says, and refused if the hash of its weights
    differs; a download or a file of weights is the caller's to allow. A network
    of your own exports if its class or builder is decorated with
    avalanche_peftcl.models.exportable.

    --onnx writes a graph for programs without this package (extra "onnx"): any
    number of prepared images to logits, in float32, compared with onnxruntime
    to 1e-5 before it is written. Class names and what is expected of an image
    stand in its metadata.

    --peft writes adapter_config.json and adapter_model.safetensors into the
    folder FILE, for peft.PeftModel.from_pretrained; the head is not in them.
    """
    from avalanche_peftcl.config.resources import check_home

    check_home()  # the network may be one whose package imports Avalanche
    from avalanche_peftcl.export.command import export_and_show, onnx_and_show

    if peft:
        from avalanche_peftcl.runs.hub import adapter_and_show

        alone = not (onnx or with_backbone)
        adapter_and_show(folder, file, alone=alone, overwrite=overwrite, console=standard_console())
        return
    if onnx:
        onnx_and_show(
            folder,
            file,
            overwrite=overwrite,
            checkpoint=checkpoint,
            pretrained=pretrained,
            console=standard_console(),
        )
        return
    export_and_show(
        folder,
        file,
        with_backbone=with_backbone,
        overwrite=overwrite,
        checkpoint=checkpoint,
        pretrained=pretrained,
        console=standard_console(),
    )


@app.command("predict")
def predict_images(
    export: _Export,
    paths: Annotated[
        list[Path], typer.Argument(metavar="FOLDER_OR_IMAGES...", help="Images to predict.")
    ],
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a table to this file.")
    ] = None,
    top: Annotated[
        int, typer.Option("--top", min=1, metavar="K", help="Tell so many classes of an image.")
    ] = 1,
    task: _Task = None,
    device: _Device = "cpu",
    checkpoint: _Checkpoint = None,
    pretrained: _Pretrained = False,
) -> None:
    """Predict the class of images with a trained network.

    Methods whose logits are cosines, such as ntk_cl and nearest_class_mean, are
    told as ranks with similarities, those of a regression as ranks with
    estimates of a target that is 1 for the right class; all others as
    probabilities.

    Exit status 1 if an image cannot be read; the others are predicted.
    """
    from avalanche_peftcl.export.command import predict_and_show

    failed = predict_and_show(
        export,
        paths,
        csv=csv,
        top=top,
        task=task,
        device=device,
        checkpoint=checkpoint,
        pretrained=pretrained,
        console=standard_console(),
    )
    if failed:
        raise typer.Exit(1)


@app.command("evaluate")
def evaluate_network(
    export: _Export,
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Images in folders called like classes."),
    ],
    as_json: _Json = False,
    task: _Task = None,
    device: _Device = "cpu",
    checkpoint: _Checkpoint = None,
    pretrained: _Pretrained = False,
) -> None:
    """Evaluate a trained network on your own images: accuracy and confusion matrix.

    The folder of an image is its label, FOLDER/cat/1.png; folders of domains
    above it make no difference. Of more classes than 80 columns hold, each
    has a line; --json holds the whole matrix.

    Exit status 1 if an image cannot be read; it counts in no number.
    """
    from avalanche_peftcl.export.evaluate_command import evaluate_and_show

    failed = evaluate_and_show(
        export,
        folder,
        as_json=as_json,
        task=task,
        device=device,
        checkpoint=checkpoint,
        pretrained=pretrained,
        console=standard_console(),
    )
    if failed:
        raise typer.Exit(1)


@app.command("push")
def push_network(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Folder of a run.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hub.")],
    only_folder: Annotated[
        Path | None,
        typer.Option("--only-folder", metavar="FOLDER", help="Write it here; upload nothing."),
    ] = None,
    overlap: Annotated[
        str | None,
        typer.Option(
            "--overlap",
            metavar="TEXT",
            help="For the card: which classes the backbone knew from its pre-training.",
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    with_backbone: Annotated[
        bool, typer.Option("--with-backbone", help="Put the frozen network's weights in too.")
    ] = False,
    checkpoint: _Checkpoint = None,
    pretrained: _Pretrained = False,
) -> None:
    """Upload the trained network of a run to the Hugging Face Hub, with a model card.

    The card is made from the run's record: method and settings, data and its
    hashes, numbers of this seed and of others beside it, limits. LoRA and
    other tuners of peft go along in peft's own format. No path of this machine
    and no image does.
    """
    from avalanche_peftcl.config.resources import check_home

    check_home()
    from avalanche_peftcl.runs.hub import push_and_show

    push_and_show(
        folder,
        repo,
        only_folder=only_folder,
        overlap=overlap,
        with_backbone=with_backbone,
        private=not public,
        allowed={"checkpoint": checkpoint, "pretrained": pretrained},
        console=standard_console(),
    )


def main() -> None:
    """Run the command line; errors made on purpose end with one message and exit code 2."""
    app(prog_name="peftcl")
