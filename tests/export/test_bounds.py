"""What an exported file or a checkpoint may choose: numbers in range, memory that it can fill."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from avalanche_peftcl.checkpoints.model_state import load_model_state, model_state
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.export import backbone as exported_backbone
from avalanche_peftcl.export.file import INFO_KEY
from avalanche_peftcl.export.load import load
from avalanche_peftcl.models import ClassRows, InputConfig
from avalanche_peftcl.models.backbones.allocation import AllocationLimit
from avalanche_peftcl.runs.run import run

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    settings = {
        "output": tmp_path_factory.mktemp("runs") / "naive",
        "backbone": BACKBONE,
        "benchmark": {"name": "digits", "n_experiences": 2, "train_per_class": 2},
        "strategy": {"name": "naive", "train_epochs": 1},
    }
    return run(RunConfig.model_validate(settings)).folder / "model.safetensors"


@pytest.fixture
def rewrite(file, tmp_path):
    """Write a copy of the file that says something else, or holds other tensors."""

    def write(change, tensors=None):
        with safe_open(file, "pt") as source:
            told = json.loads(source.metadata()[INFO_KEY])
        change(told)
        path = tmp_path / "a.safetensors"
        save_file(load_file(file) | (tensors or {}), path, {INFO_KEY: json.dumps(told)})
        return path

    return write


def test_the_file_itself_loads(rewrite):
    model = load(rewrite(lambda told: None))
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("img_size", 0),
        ("img_size", -16),
        ("img_size", 10**9),
        ("crop_pct", 1e-5),
        ("crop_pct", 0.0),
        ("crop_pct", 1.5),
        ("crop_pct", math.nan),
        ("mean", [0.5, 0.5]),
        ("mean", [math.inf, 0.5, 0.5]),
        ("mean", [0.5] * 10),
        ("std", [0.0, 0.5, 0.5]),
        ("std", [-0.5, 0.5, 0.5]),
        ("std", [1e-300, 0.5, 0.5]),
        ("std", [math.nan, 0.5, 0.5]),
        ("interpolation", "lanczos"),
    ],
)
def test_an_input_that_no_image_can_be_made_for(rewrite, name, value):
    path = rewrite(lambda told: told["input_config"].update({name: value}))
    with pytest.raises(CheckpointError, match="is damaged: wrong or missing input_config"):
        load(path)
    given = {"img_size": 16} | {name: tuple(value) if isinstance(value, list) else value}
    with pytest.raises(ConfigError, match=f"^{name}="):
        InputConfig(**given)


def test_an_input_of_another_size_than_the_backbones(rewrite):
    path = rewrite(lambda told: told["input_config"].update(img_size=32))
    with pytest.raises(CheckpointError, match=r"images have 32 pixels a side, its backbone .* 16"):
        load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("seed", 2**70), ("finished", -3), ("total", -1), ("mixed_precision", "fp8")],
)
def test_other_numbers_out_of_range(rewrite, name, value):
    path = rewrite(lambda told: told.update({name: value}))
    with pytest.raises(CheckpointError, match=f"is damaged: wrong or missing {name}"):
        load(path)


def find(spec, option):
    """Return the options, however deep, that have this one."""
    if option in spec["options"]:
        return spec["options"]
    return next(
        found
        for value in spec["options"].values()
        if isinstance(value, dict) and "build" in value and (found := find(value, option))
    )


def test_a_module_out_of_range_is_not_built(rewrite):
    path = rewrite(lambda told: find(told["model"], "r").update(r=10**12))
    with pytest.raises(CheckpointError, match="option 'r' should be less than or equal to"):
        load(path)


def test_a_module_larger_than_the_file_is_not_built(rewrite, monkeypatch):
    monkeypatch.setattr(exported_backbone, "_SPARE", 2**16)  # the file is tiny
    path = rewrite(lambda told: find(told["model"], "r").update(r=4096))
    with pytest.raises(CheckpointError, match=r"asks for a tensor of 98,304 entries"):
        load(path)


LARGEST = {"img_size": 8192, "patch_size": 1, "embed_dim": 8192}  # each in its own range


def test_a_backbone_larger_than_any_is_not_built(rewrite):
    path = rewrite(lambda told: told["backbone"].update(LARGEST))
    with pytest.raises(CheckpointError, match=r"cannot be built here: .* entries while it"):
        load(path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers(rewrite, file, bad):
    name = next(n for n, v in load_file(file).items() if v.is_floating_point())
    path = rewrite(lambda told: None, {name: torch.full_like(load_file(file)[name], bad)})
    with pytest.raises(CheckpointError, match="holds weights that are not finite numbers, in "):
        load(path)


@pytest.mark.parametrize("columns", [10**12, -1, 3])
def test_columns_of_classes_that_are_not_there(rewrite, file, columns):
    name = next(n for n in load_file(file) if n.endswith("_extra_state"))
    path = rewrite(lambda told: None, {name: torch.tensor(columns)})
    with pytest.raises(CheckpointError, match=f"a head of {columns} columns"):
        load(path)


def test_class_rows_load_what_they_saved():
    rows = ClassRows()
    rows.add([(0, 3), (1, 7)])
    rows.widen(20)
    again = ClassRows()
    again.load_state_dict(rows.state_dict())
    assert (again.num_outputs, again.keys.tolist()) == (20, [[0, 3], [1, 7]])
    empty = ClassRows()
    empty.load_state_dict(ClassRows().state_dict())
    assert (empty.num_outputs, len(empty)) == (0, 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: torch.empty(n),
        lambda n: torch.zeros(2, n),
        lambda n: torch.randn(n),
        lambda n: torch.full((n,), 1.0),
        lambda n: torch.arange(n),
        lambda n: torch.arange(0, 2 * n, 2),
        lambda n: torch.linspace(0, 1, n),
        lambda n: torch.eye(n),
        lambda n: torch.zeros(1).new_zeros(n),
        lambda n: torch.zeros(1).repeat(n),
        lambda n: torch.empty_strided((n,), (1,)),
        lambda n: torch.nn.Linear(2, n),
        lambda n: [torch.zeros(1) for _ in range(n)],
    ],
)
def test_every_way_to_make_a_tensor_is_counted(make):
    with AllocationLimit(2**22, "it"):
        make(1000)
    with pytest.raises(CheckpointError, match="it asks for"), AllocationLimit(2**22, "it"):
        make(2**23)


def test_the_limit_leaves_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.nn.Linear(5, 5).weight
    torch.manual_seed(0)
    with AllocationLimit(10**6, "it"):
        assert torch.equal(torch.nn.Linear(5, 5).weight, expected)


def test_a_checkpoint_with_weights_that_are_no_numbers():
    model = torch.nn.Linear(2, 1)
    state = model_state(model)
    load_model_state(model, state)
    with pytest.raises(CheckpointError, match="the saved weights are not finite numbers, in bias"):
        load_model_state(model, state | {"bias": torch.tensor([math.nan])})
