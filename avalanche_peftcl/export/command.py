"""What ``peftcl export`` and ``peftcl predict`` do, and what they show."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from avalanche_peftcl.console import complain, plain
from avalanche_peftcl.export.load import load
from avalanche_peftcl.export.predict import find_images, predict, write_csv
from avalanche_peftcl.export.write import check_holds_network, export_run, refuse_present
from avalanche_peftcl.files import check_writable, write_file
from avalanche_peftcl.models.device import check_device


def export_and_show(
    folder: Path,
    file: Path,
    *,
    with_backbone: bool,
    overwrite: bool,
    checkpoint: Path | None,
    pretrained: bool,
    console: Console,
) -> None:
    """Write the network of a run to a file of its own, and say what is in it.

    Args:
        folder: The run's folder.
        file: The new file.
        with_backbone: Whether the backbone's weights go into it.
        overwrite: Whether a file that is there is replaced.
        checkpoint: The backbone's weights, if they have to go into the file and are not bundled.
        pretrained: Whether they may be downloaded, instead.
        console: Where to.

    Raises:
        PEFTCLError: As :func:`.export_run`.
    """
    info = export_run(
        folder,
        file,
        with_backbone=with_backbone,
        overwrite=overwrite,
        checkpoint=checkpoint,
        pretrained=pretrained,
    )
    say = f"{file}: {info.strategy['name']} after {info.finished} of {info.total} experiences, "
    whose = "with" if info.backbone_included else "without"
    console.print(plain(f"{say}{whose} the weights of {info.backbone.name}"), soft_wrap=True)


def onnx_and_show(
    source: Path,
    file: Path,
    *,
    overwrite: bool,
    checkpoint: Path | None,
    pretrained: bool,
    console: Console,
) -> None:
    """Write a trained network as a graph of ONNX, and say what it takes.

    Args:
        source: The run's folder, or a file of an export.
        file: The new file.
        overwrite: Whether a file that is there is replaced.
        checkpoint: The backbone's weights, if they are not bundled.
        pretrained: Whether they may be downloaded, instead.
        console: Where to.

    Raises:
        PEFTCLError: As :func:`.load` and :func:`.onnx_bytes`.
    """
    from avalanche_peftcl.export.graph import onnx_bytes  # torch.export takes a while

    check_writable(file)
    refuse_present(file, overwrite)
    if source.is_dir():
        check_holds_network(source)
    model = load(source, checkpoint=checkpoint, pretrained=pretrained)
    write_file(file, onnx_bytes(model))
    size = model.input_config.img_size
    takes = f"images (B, 3, {size}, {size})" + (", task_labels (B,)" if model.task_labels else "")
    whole = "" if model.info.mixed_precision == "no" else ", in float32 where the run had autocast"
    console.print(
        plain(f"{file}: {takes} to logits (B, {len(model.class_names)}), ONNX{whole}"),
        soft_wrap=True,
    )


def predict_and_show(
    export: Path,
    paths: Sequence[Path],
    *,
    csv: Path | None,
    top: int,
    task: int | None,
    device: str,
    checkpoint: Path | None,
    pretrained: bool,
    console: Console,
) -> int:
    """Predict images, show each as soon as it is there and write a table of all.

    Args:
        export: A file of an export, or a run's folder.
        paths: Images, and folders of images.
        csv: Where the table is written; ``None`` writes none.
        top: How many classes of each image to tell.
        task: Task label, for a network that needs one.
        device: Where to compute.
        checkpoint: The frozen network's weights, where they are not in the file.
        pretrained: Whether they may be downloaded.
        console: Where predictions are shown; images that cannot be read are told on standard error.

    Returns:
        How many images could not be read.

    Raises:
        PEFTCLError: As :func:`.load` and :func:`.predict`.
    """
    where, images = check_device(device), find_images(paths)
    if csv is not None:
        check_writable(csv)
    predictions = []
    model = load(export, checkpoint=checkpoint, pretrained=pretrained).to(where)
    for prediction in predict(model, images, top=top, task=task):
        predictions.append(prediction)
        if prediction.error is not None:
            complain("unreadable", prediction.error, "red")
            continue
        console.print(plain(f"{prediction.path}  {prediction}"), soft_wrap=True)
    if csv is not None:
        write_csv(csv, predictions, top=top)
    failed = sum(prediction.error is not None for prediction in predictions)
    if failed:
        complain("error", f"{failed} of {len(images)} images could not be read", "red")
    return failed
