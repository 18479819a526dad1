"""A real process is killed twenty times at random moments, and ends as if it never was.

The moments lie in its start, inside a step and while a checkpoint is written. Compared are accuracy
matrix, weights, optimizer, the state of every plugin and the random generators. In a run of ours 19
of the 20 kills of each method came after a first checkpoint.
"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from avalanche_peftcl.checkpoints.folder import read_checkpoint
from avalanche_peftcl.config.settings import dump_settings

KILLS = 20
SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
SETTINGS = {
    "seed": 1,
    "num_threads": 1,
    "checkpoint_every": 4,
    "backbone": {"name": "vit_glyph"},
    "benchmark": {
        "name": "digits",
        "n_experiences": 5,
        "train_per_class": 16,
        "validation_per_class": 4,
        "augment": "random_resized_crop",
    },
}
METHODS = {
    "pegp": {
        "strategy": {"name": "pegp", "train_mb_size": 4, "n_samples": 16, "head_epochs": 1},
        "plugins": [{"name": "replay", "mem_size": 12}],
    },
    "ntk_cl": {"strategy": {"name": "ntk_cl", "train_mb_size": 4, "train_epochs": 3}},
    "ntk_cl on real images": {
        "strategy": {"name": "ntk_cl", "train_epochs": 2, "mixed_precision": "bf16"},
        "checkpoint_every": 1,
    },
}


def settings(method: str, output: Path) -> dict[str, object]:
    """Return the settings of a run; skip one of real images where there are none."""
    given = {"output": str(output), **SETTINGS, **METHODS[method]}
    if "real" in method:
        if not SHARED_DATA.is_dir():
            pytest.skip("the folder of real images and weights is not beside the repository")
        weights = SHARED_DATA / "deit_tiny_patch16_224.fp16.safetensors"
        given["backbone"] = {"name": "timm_vit", "model_name": "deit_tiny_patch16_224"}
        given["backbone"] |= {"checkpoint": str(weights), "img_size": 160}
        given["benchmark"] = {"name": "image_folder", "root": str(SHARED_DATA / "cifar10")}
        given["benchmark"] |= {"n_experiences": 5, "train_per_class": 40, "validation_per_class": 5}
    return given


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "avalanche_peftcl", "run", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen[str]) -> str:
    """Return what the process says until its end, which comes in a quarter of an hour."""
    try:
        return process.communicate(timeout=900)[0]
    finally:
        process.kill()


def newest(folder: Path) -> int:
    """Return the number of the newest checkpoint whose files are complete or being written."""
    names = [path.name for path in folder.glob("*")] if folder.is_dir() else []
    return max((int(name.strip(".")[:6]) for name in names), default=0)


def wait_for(process: subprocess.Popen[str], folder: Path, draw: random.Random) -> None:
    """Wait until a moment that is nowhere special: in the start, a step, or a checkpoint's making.

    Random seconds would kill most processes in their start, more on a slow machine; so it is
    counted in checkpoints, some of them not yet complete, and a little time after.
    """
    if draw.random() < 0.2:
        time.sleep(draw.uniform(0, 3))
        return
    goal = newest(folder) + draw.randint(1, 2)
    while newest(folder) < goal and process.poll() is None:
        time.sleep(0.002)
    time.sleep(draw.choice([0.0, draw.uniform(0, 0.02), draw.uniform(0, 0.2)]))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_twenty_kills_change_nothing(method, tmp_path):
    draw = random.Random(0)
    folders = tmp_path / "whole", tmp_path / "killed"
    for folder in folders:
        folder.with_suffix(".yaml").write_text(dump_settings(settings(method, folder)))
    whole, killed = folders
    process = start(str(whole.with_suffix(".yaml")))
    said = end(process)
    assert process.returncode == 0, said

    kills = 0
    while True:
        if (killed / "metrics.json").is_file():
            process = start("--resume", str(killed))
        else:
            process = start(str(killed.with_suffix(".yaml")))
        if kills < KILLS:
            wait_for(process, killed / "checkpoint", draw)
            process.send_signal(signal.SIGKILL)
        said = end(process)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said
        kills += 1
    assert kills == KILLS, "the run was over too soon"

    states = []
    for folder in folders:
        _, state = read_checkpoint(folder / "checkpoint")
        for plugin in state["strategy"]["plugins"]:
            if plugin["class"] == "EvaluationPlugin":
                del plugin["state"]  # holds seconds; what it counted is in the record
        states.append(state)
    assert differing(states[0]["strategy"], states[1]["strategy"]) == []
    assert differing(states[0]["random"], states[1]["random"]) == []
    records = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
    for key in ("accuracy", "plugins", "notes", "test_images", "trainable"):
        assert records[0][key] == records[1][key]
    assert len(records[1]["resumed_at"]) > KILLS / 2
    for name in ("accuracy_matrix.csv", "model.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    last = records[1]["accuracy"]["last_accuracy"]
    resumed = len(records[1]["resumed_at"])
    sys.stdout.write(
        f"\n{method}: killed {kills} times, {resumed} of them after a first checkpoint; the same "
        f"weights and matrix, last accuracy {100 * last:.1f} % of validation images in both runs\n"
    )


def differing(one: object, other: object, path: str = "") -> list[str]:
    """Return the places at which two states are not the same, bit for bit."""
    if type(one) is not type(other):
        return [path]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [path]
        return [p for key in one for p in differing(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [path]
        pairs = enumerate(zip(one, other, strict=True))
        return [p for i, (a, b) in pairs for p in differing(a, b, f"{path}.{i}")]
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        bits = [t.contiguous().flatten().view(torch.uint8) for t in (one, other)]
        return [] if same and torch.equal(*bits) else [path]
    return [] if one == other else [path]


def test_the_comparison_sees_one_bit():
    state = {"a": [torch.zeros(2), (1, 0.5)]}
    other = {"a": [torch.tensor([0.0, -0.0]), (1, 0.5)]}
    assert differing(state, state) == []
    assert differing(state, other) == [".a.0"]
