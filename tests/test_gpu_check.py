"""The GPU check of the examples, tried out on the CPU with toys."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.testing import toy_backbone

FILE = Path(__file__).parents[1] / "examples" / "gpu_check.py"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("gpu_check", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def done(check, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu_check")
    words = ["--tiny", "--device", "cpu", "--out", str(folder), "--commit", "abc"]
    return check.main(words), folder


def test_every_cell_is_measured_or_says_why_not(done):
    result, folder = done
    assert json.loads((folder / "gpu_check.json").read_text()) == result
    assert result["commit"] == "abc"
    cells = {(c["method"], c["precision"]): c for c in result["cells"]}
    assert len(cells) == len(result["cells"]) == 6
    for (_, precision), cell in cells.items():
        if precision == "TF32":
            assert cell["why"] == "skipped: there is no TF32 on this device"
            continue
        for name in ("step_ms", "plain_ms", "eval_ms_per_image", "plain_eval_ms_per_image"):
            assert cell[name] > 0
        # a step of the method computes at least the plain passes, and at most a few times that
        assert 0.5 < cell["flops"] / plain_flops(cell) < 3
        rate = result["matmul_flops"][precision]
        share = cell["flops"] / cell["step_ms"] * 1000 / rate
        assert math.isclose(cell["share_of_matmul"], share)
        assert (cell["kernels"], cell["peak_bytes"], cell["syncs"]) == (None, None, 0)
        assert cell["items"] > 0  # the targets' rows are checked


def plain_flops(cell: dict) -> int:
    """Return the FLOPs of the products in plain passes through the toy, counted by hand."""
    batch, tokens, width, depth, patch = cell["batch"], 5, 24, 2, 16 * 16 * 3
    embedding = 2 * batch * (tokens - 1) * patch * width
    block = 2 * batch * tokens * width * (3 + 1 + 4 + 4) * width  # qkv, projection, MLP
    without, backward = {"NTK-CL": (2, 2), "PEGP": (0, 1)}[cell["method"]]
    return (without + backward) * embedding + (without + 2 * backward) * depth * block


def test_the_table_holds_every_cell_and_the_comparison(check, done):
    result, folder = done
    text = (folder / "gpu_check.md").read_text()
    lines = text.splitlines()
    assert lines[0].startswith(f"cpu (toys: these numbers mean nothing), torch {result['torch']}")
    rows = [line for line in lines if line.startswith(("| NTK-CL", "| PEGP"))]
    assert [row.count("|") for row in rows] == [len(check.COLUMNS) + 1] * 6
    assert str(Path.home()) not in text
    assert "Cells of the accuracy matrix that differ: none." in lines


def test_the_same_run_twice_is_the_same(check, done):
    found = done[0]["cifar10"]
    assert found["device"]["matrix"] == found["cpu"]["matrix"]
    assert check.cifar10.differences(found) == (0, 0)
    matrix = [[0.5, None], [0.5, 0.75]]
    other = [[0.6, None], [0.5, 0.45]]
    runs = {"cpu": {"matrix": matrix, "test_images": [10, 20]}, "device": {"matrix": other}}
    assert check.cifar10.differences(runs) == (6, 2)


def test_what_does_not_fit_is_named(check, tmp_path):
    words = ["--tiny", "--device", "cpu", "--out", str(tmp_path), "--seconds", "0"]
    result = check.main(words)
    told = {cell["why"] for cell in result["cells"]}
    assert told == {"skipped: not in the time there is"} | {
        "skipped: there is no TF32 on this device"
    }
    assert result["cifar10"]["why"].endswith("would not end in the time there is")


@pytest.mark.parametrize(
    ("before", "seconds"),
    [([], 0), ([(16, 2.0)], 32), ([(16, 9.0), (64, 12.0)], 24), ([(16, 9.0), (64, 8.0)], 8)],
)
def test_a_part_of_the_time_is_not_the_images(check, before, seconds):
    assert check.cells.estimate(before, 256) == seconds


def test_without_memory_the_cell_says_so(check, monkeypatch):
    def no_memory(*names, **options):
        try:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        except torch.cuda.OutOfMemoryError as error:
            raise wrapped from error

    monkeypatch.setattr(check.cells, "create_backbone", no_memory)
    cpu, wrapped = torch.device("cpu"), ConfigError("lower train_mb_size")
    cell = check.cells.measure_cell(cpu, "PEGP", 4, "float32", tiny=True)
    assert cell == {"why": "out of memory"}
    monkeypatch.setattr(check.cells, "create_backbone", lambda *names, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check.cells.measure_cell(cpu, "PEGP", 4, "float32", tiny=True)


@pytest.mark.parametrize(("method", "ratio"), [("NTK-CL", 6), ("PEGP", 2)])
def test_plain_passes_are_counted_as_said(check, method, ratio):
    backbone, images = toy_backbone(), torch.rand(2, 3, 16, 16)

    def flops(train):
        with FlopCounterMode(display=False) as counter:
            check.cells.plain_passes(backbone, images, method, train, False)
        return counter.get_total_flops()

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(images)
    one = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.embed(images)
    embedding = counter.get_total_flops()
    passes = {"NTK-CL": 4, "PEGP": 1}[method]
    assert flops(False) == passes * one
    # backward costs as much as forward, without the weights' gradients and the patch embedding
    assert flops(True) == ratio * (one - embedding) + passes * embedding
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())


def test_a_reference_of_other_settings_is_refused(check, done, tmp_path):
    other = dict(done[0]["cifar10"], settings={})
    (tmp_path / "other.json").write_text(json.dumps({"cifar10": other}))
    budget = check.cells.Budget(0)
    given = {"data": tmp_path, "tiny": True, "budget": budget}
    found = check.cifar10.compare(torch.device("cpu"), reference=tmp_path / "other.json", **given)
    assert "holds no CPU run with these settings" in found["why"]
    assert check.cifar10.compare(
        torch.device("cpu"), reference=None, **given | {"tiny": False}
    ) == {"why": "skipped: the images are not there (--data)"}
