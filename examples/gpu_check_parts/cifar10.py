"""The run of ``real_images/cifar10.yaml``, shortened, on a device and on the CPU."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from avalanche_peftcl import run
from avalanche_peftcl.config import load_config
from avalanche_peftcl.errors import PEFTCLError
from avalanche_peftcl.runs import RunProgress
from gpu_check_parts.cells import Budget, precise

CONFIG = Path(__file__).parents[1] / "real_images" / "cifar10.yaml"
# without dropout, whose masks each device draws its own way; the rest is the same arithmetic
SHORTER = {
    "strategy": "{name: ntk_cl, lr: 0.03, dropout: 0.0, train_epochs: 1, train_mb_size: 16, "
    "mixed_precision: 'no'}",
    "benchmark.train_per_class": "32",
}
TOYS = {
    "backbone": "{name: timm_vit, model_name: vit_tiny_patch16_224, img_size: 16, patch_size: 8, "
    "depth: 1, embed_dim: 24, num_heads: 2}",
    "benchmark": "{name: digits, n_experiences: 2, train_per_class: 2}",
    "strategy": "{name: ntk_cl, dropout: 0.0, train_epochs: 1, mixed_precision: 'no'}",
}


class OutOfTimeError(Exception):
    """The run would take longer than there is time."""


class Hurries(RunProgress):
    """Shows nothing, and ends a run that will not be finished in time."""

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self.budget, self._began, self._at = budget, budget.elapsed(), 0.0

    def end(self, finished: int, total: int, **named: Any) -> None:
        """Look at the clock: the next experiences test on more images, ``s / t`` times as many."""
        took, self._at = (
            self.budget.elapsed() - self._began - self._at,
            (self.budget.elapsed() - self._began),
        )
        coming = sum(range(finished + 1, total + 1)) / finished
        if took * coming > self.budget.left():
            raise OutOfTimeError


def compare(
    device: torch.device,
    *,
    data: Path,
    tiny: bool,
    reference: Path | None,
    budget: Budget,
) -> dict[str, Any]:
    """Return the accuracy matrix of both runs, or ``why`` there is none."""
    settings = dict(TOYS if tiny else SHORTER)
    if not tiny:
        if not (data / "cifar10").is_dir():
            return {"why": "skipped: the images are not there (--data)"}
        settings["benchmark.root"] = str(data / "cifar10")
        settings["backbone.checkpoint"] = str(next(data.glob("deit_tiny_patch16_224.*"), data))
    known = {k: v for k, v in settings.items() if not k.endswith(("root", "checkpoint"))}
    found: dict[str, Any] = {"settings": known}
    if reference is not None:
        earlier = json.loads(reference.read_text())["cifar10"]
        if earlier.get("settings") != known or "cpu" not in earlier:
            return {"why": f"skipped: {reference} holds no CPU run with these settings"}
        found["cpu"] = earlier["cpu"]
    try:
        for name, where in (("device", str(device)), ("cpu", "cpu")):
            if name not in found:
                found[name] = _run(settings, where, budget)
    except OutOfTimeError:
        return found | {"why": f"skipped: the run on {where} would not end in the time there is"}
    except PEFTCLError as error:
        return found | {"why": f"failed: {error}"}
    return found


def _run(settings: dict[str, str], device: str, budget: Budget) -> dict[str, Any]:
    with TemporaryDirectory() as folder, precise("float32"):
        words = [f"{key}={value}" for key, value in settings.items()]
        config = load_config(CONFIG, [f"output={folder}/run", f"device={device}", *words])
        record = run(config, reporter=Hurries(budget)).record
    return {
        "matrix": list(record.accuracy_matrix),
        "test_images": record.test_images,
        "average": record.accuracy.average_incremental_accuracy,
        "last": record.accuracy.last_accuracy,
        "forgetting": record.accuracy.forgetting,
        "training_seconds": sum(record.cost.training_seconds),
        "evaluation_seconds": sum(record.cost.evaluation_seconds),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return the comparison as Markdown."""
    title = "CIFAR-10 by NTK-CL, shortened, float32 without TF32 and without dropout"
    if "why" in found:
        return [f"{title}: {found['why']}."]
    table = [
        f"{title}:",
        "",
        "| where | average | last | forgetting | training s | evaluation s |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("cpu", "device"):
        each = found[name]
        shares = [f"{100 * each[key]:.1f}" for key in ("average", "last", "forgetting")]
        seconds = [f"{each[f'{key}_seconds']:.1f}" for key in ("training", "evaluation")]
        table.append(f"| {name} | {' | '.join(shares + seconds)} |")
    worst, cells = differences(found)
    told = "none" if not cells else f"{cells}, by {worst} images at most"
    return [*table, "", f"Cells of the accuracy matrix that differ: {told}."]


def differences(found: dict[str, Any]) -> tuple[int, int]:
    """Return by how many images the two matrices differ most, and in how many cells they do."""
    apart = [
        abs(round((a - b) * images))
        for one, other in zip(found["cpu"]["matrix"], found["device"]["matrix"], strict=True)
        for a, b, images in zip(one, other, found["cpu"]["test_images"], strict=True)
        if a is not None and b is not None
    ]
    return max(apart), sum(difference > 0 for difference in apart)
