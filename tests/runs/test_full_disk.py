"""A disk without room: what is promised then is there, and what is not is tried again."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import CheckpointError, CheckpointWarning
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.runs.folder import CHECKPOINTS, FILES
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.run import run

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
DIGITS = {"name": "digits", "n_experiences": 2, "train_per_class": 1, "validation_per_class": 1}
PAGE = 4096


class Stops(RunProgress):
    def end(self, finished, *more, **named):
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover()


def tiny(output: Path, **changed: Any) -> RunConfig:
    settings = {"output": output, "num_threads": 1, "backbone": BACKBONE, "benchmark": DIGITS}
    settings |= {"strategy": {"name": "nearest_class_mean"}}
    return RunConfig.model_validate(settings | changed)


def test_a_checkpoint_that_could_not_be_written_is_tried_again_before_training_goes_on(
    tmp_path, registry, monkeypatch
):
    config, failed = tiny(tmp_path / "run"), []
    real = os.open

    def full(path, *more, **named):
        if f"/{CHECKPOINTS}/" in str(path) and not failed:
            failed.append(path)
            raise OSError(28, "No space left on device")
        return real(path, *more, **named)

    monkeypatch.setattr(os, "open", full)
    with (
        pytest.warns(CheckpointWarning, match=r"before one is written, it has to begin anew \("),
        pytest.raises(KeyboardInterrupt) as stopped,
    ):
        run(config, registry=registry, reporter=Stops())
    assert len(failed) == 1
    assert stopped.value.__notes__ == [
        f"1 of 2 experiences are finished and on disk in {config.output}; peftcl run --resume "
        f"{config.output} goes on with it"
    ]
    assert run(config, registry=registry, resume=True).metrics["complete"]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Any]:
    """Return a function that makes a file system of so many pages, or changes its size."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(pages: int) -> Path:
        how = f"{'remount,' if place.is_mount() else ''}size={pages * PAGE}"
        command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(place)]
        try:
            made = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"a small file system cannot be made here: {error}")
        if made.returncode:
            pytest.skip(f"a small file system cannot be made here: {made.stderr.strip()}")
        return place

    yield mount
    if place.is_mount():
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_room_for_a_record_and_for_no_checkpoint(small_disk, tmp_path, registry):
    strategy = {"name": "naive", "train_epochs": 1, "optimizer": "adamw", "lr": 0.001}
    large = {"backbone": BACKBONE | {"embed_dim": 384}, "strategy": strategy}
    whole = run(tiny(tmp_path / "whole", **large), registry=registry)
    sizes = [-(-(whole.folder / name).stat().st_size // PAGE) for name in FILES]
    checkpoints = (whole.folder / CHECKPOINTS).glob("*.checkpoint")
    smallest = min(path.stat().st_size // PAGE for path in checkpoints)
    room = sum(sizes) + max(sizes) + 2  # all of a record, and one file of it twice
    assert room < smallest  # AdamW remembers two numbers a weight
    output = small_disk(room) / "run"
    with (
        pytest.warns(CheckpointWarning, match=r"No space left.*, it has to begin anew \(") as told,
        pytest.raises(KeyboardInterrupt) as stopped,
    ):
        run(tiny(output, **large), registry=registry, reporter=Stops())
    assert len([w for w in told if w.category is CheckpointWarning]) == 1
    assert stopped.value.__notes__ == [
        f"1 of 2 experiences are finished and on disk in {output}; it has to begin anew (peftcl "
        f"run --resume {output} --overwrite)"
    ]
    assert not [*(output / CHECKPOINTS).glob("*")]
    small_disk(10 * smallest)
    with pytest.raises(CheckpointError, match=r"left no checkpoint; start it anew \(--overwrite"):
        run(tiny(output, **large), registry=registry, resume=True)
    again = run(tiny(output, **large), registry=registry, resume=True, overwrite=True)
    assert again.metrics["accuracy_matrix"] == whole.metrics["accuracy_matrix"]
