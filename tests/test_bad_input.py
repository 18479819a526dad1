"""Each kind of bad input: a typed error in Python, one plain message on the command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.config import load_config
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PEFTCLError,
    UnknownComponentError,
)
from avalanche_peftcl.models import create_backbone
from avalanche_peftcl.runs.run import run

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
DIGITS = {"name": "digits", "n_experiences": 5, "train_per_class": 2}
NAIVE = {"name": "naive", "train_epochs": 1}


def folder_of_images(root: Path) -> Path:
    """Write 2 classes of 2 training and 1 test image each."""
    for part, count in (("train", 2), ("test", 1)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / part / name / f"{i}.png")
    return root


def broken_image(tmp_path: Path, num_workers: int) -> dict:
    root = folder_of_images(tmp_path / "images")
    (root / "train" / "dog" / "1.png").write_bytes(b"\x89PNG no image")
    return {
        "benchmark": {"name": "image_folder", "root": str(root), "n_experiences": 1},
        "num_workers": num_workers,
    }


def untested_class(tmp_path: Path) -> dict:
    root = folder_of_images(tmp_path / "images")
    (root / "test" / "dog" / "0.png").unlink()
    (root / "test" / "dog").rmdir()
    return {"benchmark": {"name": "image_folder", "root": str(root), "n_experiences": 1}}


def other_checkpoint(tmp_path: Path) -> dict:
    options = {key: value for key, value in BACKBONE.items() if key != "name"}
    small = create_backbone(**(options | {"embed_dim": 12}))
    torch.save(small.vit.state_dict(), tmp_path / "small.pt")
    return {"backbone": BACKBONE | {"checkpoint": str(tmp_path / "small.pt")}}


def earlier_run(tmp_path: Path) -> dict:
    (tmp_path / "earlier").mkdir()
    record = '{"format": 2, "complete": false, "config": {}, "experiences": {"finished": 1}}'
    (tmp_path / "earlier" / "metrics.json").write_text(record)
    return {"output": str(tmp_path / "earlier")}


def files_of_another_program(tmp_path: Path) -> dict:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.json").write_text("{}")
    return {"output": str(tmp_path / "mine")}


def a_file(tmp_path: Path) -> dict:
    (tmp_path / "file").write_text("")
    return {"output": str(tmp_path / "file" / "run")}


CASES: dict[str, tuple[Callable[[Path], dict] | dict, type[PEFTCLError], list[str]]] = {
    "unknown component": (
        {"strategy": {"name": "ntk_lc"}},
        UnknownComponentError,
        ["unknown strategy 'ntk_lc'", "did you mean 'ntk_cl'?"],
    ),
    "ewc with task labels": (
        {"benchmark": DIGITS | {"scenario": "task"}, "plugins": [{"name": "ewc"}]},
        ConfigError,
        ["strategy_plugin 'ewc' cannot serve scenario 'task'", "use scenario class, domain"],
    ),
    "lwf with task labels": (
        {"benchmark": DIGITS | {"scenario": "task"}, "plugins": [{"name": "lwf"}]},
        ConfigError,
        ["strategy_plugin 'lwf' cannot serve scenario 'task'"],
    ),
    "larger than any network": (
        {"strategy": {"name": "ntk_cl", "r": 10**18}},
        ConfigError,
        ["strategy 'ntk_cl'", "option 'r' should be less than or equal to 4096"],
    ),
    "unknown option": (
        {"strategy": NAIVE | {"train_epoch": 1}},
        ConfigError,
        ["strategy 'naive'", "unknown option 'train_epoch'", "did you mean 'train_epochs'?"],
    ),
    "option of the wrong type": (
        {"strategy": NAIVE | {"lr": "fast"}},
        ConfigError,
        ["option 'lr'", "number", "got 'fast'"],
    ),
    "option out of range": (
        {"strategy": NAIVE | {"lr": -1}},
        ConfigError,
        ["option 'lr'", "greater than 0", "got -1"],
    ),
    "unknown key": (
        {"benchmarks": DIGITS},
        ConfigError,
        ["unknown key 'benchmarks'", "did you mean 'benchmark'?"],
    ),
    "value of the wrong type": ({"seed": "x"}, ConfigError, ["seed must be a valid integer"]),
    "value out of range": ({"seed": -1}, ConfigError, ["seed must be greater than or equal to 0"]),
    "missing folder": (
        {"benchmark": {"name": "image_folder", "root": "no/such/folder"}},
        DataError,
        ["no/such/folder"],
    ),
    "broken image": (lambda path: broken_image(path, 0), DataError, ["dog/1.png"]),
    "broken image, read by another process": (
        lambda path: broken_image(path, 1),
        DataError,
        ["dog/1.png"],
    ),
    "class without test images": (untested_class, DataError, ["dog", "test"]),
    "split that does not divide": (
        {"benchmark": DIGITS | {"n_experiences": 3}},
        DataError,
        ["10 classes", "3"],
    ),
    "checkpoint that does not fit": (other_checkpoint, CheckpointError, ["small.pt", "not fit"]),
    "device that is not there": (
        {"device": "cuda:99"},
        ConfigError,
        ["there is no device 'cuda:99' here; there is: cpu"],
    ),
    "output that holds a run": (
        earlier_run,
        ConfigError,
        ["earlier already holds a run", "output=...", "--overwrite"],
    ),
    "output with files of another program": (
        files_of_another_program,
        ConfigError,
        ["mine holds what is not of a run", "metrics.json", "output=..."],
    ),
    "output below a file": (a_file, ConfigError, ["cannot be made", "is a file"]),
}


@pytest.fixture(params=CASES, ids=[name.replace(" ", "-") for name in CASES])
def case(request, tmp_path):
    changed, kind, said = CASES[request.param]
    settings = {"output": str(tmp_path / "out"), "backbone": BACKBONE}
    settings |= {"benchmark": DIGITS, "strategy": NAIVE}
    settings |= changed(tmp_path) if callable(changed) else changed
    path = tmp_path / "run.yaml"
    path.write_text(dump_settings(settings))
    return path, kind, said


def test_python_gets_a_typed_error(case):
    path, kind, said = case
    with pytest.raises(kind) as caught:
        run(load_config(path))
    assert [words for words in said if words not in str(caught.value)] == []
    assert "Traceback" not in str(caught.value)


def test_the_command_line_gets_one_message_and_no_traceback(case):
    path, _, said = case
    result = CliRunner().invoke(app, ["run", str(path)])
    assert result.exit_code == 2
    assert "error: " in result.stderr
    assert [words for words in said if words not in result.stderr] == []
    assert "Traceback" not in result.output + result.stderr
