"""Commands about trained networks: export, predict, evaluate, push."""

from pathlib import Path
from typing import Annotated

import typer

from avalanche_peftcl.cli.arguments import Checkpoint, Device, Export, Json, Pretrained, Task
from avalanche_peftcl.console import standard_console, tell_imports


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
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
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
    tell_imports("torch")
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


def predict_images(
    export: Export,
    paths: Annotated[
        list[Path], typer.Argument(metavar="FOLDER_OR_IMAGES...", help="Images to predict.")
    ],
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a table to this file.")
    ] = None,
    top: Annotated[
        int, typer.Option("--top", min=1, metavar="K", help="Tell so many classes of an image.")
    ] = 1,
    task: Task = None,
    device: Device = "cpu",
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
) -> None:
    """Predict the class of images with a trained network.

    Methods whose logits are cosines, such as ntk_cl and nearest_class_mean, are
    told as ranks with similarities, those of a regression as ranks with
    estimates of a target that is 1 for the right class; all others as
    probabilities.

    Exit status 1 if an image cannot be read; the others are predicted.
    """
    tell_imports("torch")
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


def evaluate_network(
    export: Export,
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Images in folders called like classes."),
    ],
    as_json: Json = False,
    task: Task = None,
    device: Device = "cpu",
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
) -> None:
    """Evaluate a trained network on your own images: accuracy and confusion matrix.

    The folder of an image is its label, FOLDER/cat/1.png. Where folders of
    domains lie above those of classes, FOLDER/photo/cat/1.png, each domain has
    its accuracy too. Of more classes than 80 columns hold, each has a line;
    --json holds the whole matrix.

    Exit status 1 if an image cannot be read; it counts in no number.
    """
    tell_imports("torch")
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
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = False,
) -> None:
    """Upload the trained network of a run to the Hugging Face Hub, with a model card.

    The card is made from the run's record: method and settings, data and its
    hashes, numbers of this seed and of others beside it, limits. LoRA and
    other tuners of peft go along in peft's own format. No path of this machine
    and no image does.
    """
    from avalanche_peftcl.config.resources import check_home

    check_home()
    tell_imports("torch")
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
