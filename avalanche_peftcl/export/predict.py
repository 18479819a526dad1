"""Classes of images in files, from a trained network."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS

from avalanche_peftcl.config.resources import plain_resource_errors, shortage
from avalanche_peftcl.console import csv_row
from avalanche_peftcl.errors import DataError
from avalanche_peftcl.export.load import ExportedModel
from avalanche_peftcl.files import write_file
from avalanche_peftcl.models.backbones.images import read_image
from avalanche_peftcl.models.heads.rows import MASK_VALUE

_BATCH = 64
_NO_NUMBER = (
    "the network's outputs are not finite numbers; look at the image, or compute on another device"
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a network says of one image.

    Args:
        path: The file.
        classes: The likeliest classes, each with its score, the likeliest first; empty if the
            image could not be read.
        error: Why it could not be read.
        score_name: What a score is, see :attr:`.Head.score_name`.
        ids: The same classes by number.
    """

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    score_name: str = "probability"
    ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return the classes with scores in words; of what is no probability with ranks."""
        if self.score_name == "probability":
            return ", ".join(f"{name} {100 * score:.1f} %" for name, score in self.classes)
        told = [f"{rank}. {name} {score:.3f}" for rank, (name, score) in enumerate(self.classes, 1)]
        return f"{', '.join(told)} ({self.score_name})"


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return image files: those named, and those in the folders named and below, sorted.

    Args:
        paths: Files of any ending; folders, in which files count by their ending (``.jpg``,
            ``.png`` and whatever torchvision's ``ImageFolder`` takes) and hidden ones are left out.

    Raises:
        DataError: If a path is not there, or a folder holds no image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = [
                file
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in IMG_EXTENSIONS
                and file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            ]
            if not inside:
                raise DataError(
                    f"the folder {path} holds no image; images end in {', '.join(IMG_EXTENSIONS)}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"there is no image or folder {path}")
    return found


@torch.no_grad()
def predict(
    model: ExportedModel, paths: Sequence[Path], *, top: int = 1, task: int | None = None
) -> Iterator[Prediction]:
    """Predict image after image, in the order of ``paths``.

    A score is what :meth:`.Head.scores` makes of the logits: a probability where their softmax is
    one, a similarity where they are cosines (NTK-CL, nearest class mean), an estimate of a target
    where they are those of a regression. Networks whose head does not say have probabilities.

    Args:
        model: What :func:`.load` returned, on any device.
        paths: Image files.
        top: How many classes of each image to tell; only trained ones are told.
        task: Task label of all images, where the network needs one.

    Yields:
        One prediction for each path; one with an error where it is no readable image, or the
        network's outputs are not finite numbers.

    Raises:
        ConfigError: If a task label is missing, unknown or not needed.
        ResourceError: If there is too little memory for a single image.
    """
    device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    for start in range(0, len(paths), _BATCH):
        read = [_read(path, model) for path in paths[start : start + _BATCH]]
        images = [image for image in read if not isinstance(image, str)]
        told: list[dict[int, float]] = []
        if images:
            with plain_resource_errors({"device": device}):
                told = _told(model, _logits(model, images, task, device), top)
        rest = iter(told)
        for path, image in zip(paths[start:], read, strict=False):
            if isinstance(image, str):
                yield Prediction(path, error=image)
            elif classes := next(rest):
                named = tuple((model.class_name(c), score) for c, score in classes.items())
                yield Prediction(path, named, score_name=model.score_name, ids=tuple(classes))
            else:
                yield Prediction(path, error=f"{path} has no prediction: {_NO_NUMBER}")


def _logits(
    model: ExportedModel,
    images: Sequence[torch.Tensor],
    task: int | None,
    device: torch.device | None,
) -> torch.Tensor:
    """Return the logits of images, fewer at a time where the memory is too small for all."""
    try:
        logits: torch.Tensor = model(torch.stack(list(images)).to(device), task)
        return logits
    except (MemoryError, RuntimeError) as error:
        if len(images) == 1 or shortage(error) != "memory":
            raise
    half = len(images) // 2
    parts = [_logits(model, part, task, device) for part in (images[:half], images[half:])]
    return torch.cat(parts)


def write_csv(path: Path, predictions: Iterable[Prediction], *, top: int = 1) -> None:
    """Write the table of :func:`predictions_csv` to a file, in one step.

    Raises:
        ConfigError: If the file cannot be written.
    """
    write_file(path, predictions_csv(predictions, top=top).encode(errors="surrogateescape"))


def predictions_csv(predictions: Iterable[Prediction], *, top: int = 1) -> str:
    """Return one row an image: class and score of each rank, and why there is none.

    Text that a spreadsheet would take for a formula has an apostrophe in front.

    Example:
        >>> print(predictions_csv([Prediction(Path("a.png"), (("cat", 0.75),))]), end="")
        image,class,probability,error
        a.png,cat,0.75,
    """
    predictions = list(predictions)
    score = next((told.score_name for told in predictions if told.classes), "probability")
    ranks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    head = [f"{name}{rank}" for rank in ranks for name in ("class", score)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *head, "error"])
    for prediction in predictions:
        cells = [cell for pair in prediction.classes for cell in pair]
        blank = [""] * (len(head) - len(cells))
        writer.writerow(csv_row([prediction.path, *cells, *blank, prediction.error or ""]))
    return text.getvalue()


def _told(model: ExportedModel, logits: torch.Tensor, top: int) -> list[dict[int, float]]:
    """Return the scores of the likeliest classes, trained ones only; none for no numbers."""
    values, classes = logits.topk(min(top, logits.shape[1]), dim=1)
    scores = model.scores(logits).gather(1, classes)
    finite = values[:, :1].isfinite()  # the largest; what is no number counts as that
    trained = (values > MASK_VALUE) & finite & scores.isfinite()
    return [
        {c: score for c, score, known in zip(*row, strict=True) if known}
        for row in zip(classes.tolist(), scores.tolist(), trained.tolist(), strict=True)
    ]


def _read(path: Path, model: ExportedModel) -> torch.Tensor | str:
    """Return an image as the network takes it, small however large the file; else why not."""
    try:
        image: torch.Tensor = model.transform(read_image(path))
    except DataError as error:
        return str(error)
    return image
