import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import avalanche_peftcl
from avalanche_peftcl import Component, files
from avalanche_peftcl.cli import app
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.export import load as exported
from avalanche_peftcl.export.file import INFO_KEY, ExportInfo, read_export
from avalanche_peftcl.export.load import load
from avalanche_peftcl.export.write import export_run
from avalanche_peftcl.models import (
    ClassRows,
    DynamicModel,
    LinearHead,
    create_backbone,
    exportable,
)
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.training import PEFTTemplate

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 2, "embed_dim": 24, "num_heads": 2}
DIGITS = {"name": "digits", "n_experiences": 2, "train_per_class": 2}
SEEN: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []


class Witness(SupervisedPlugin):
    """Keeps images, task labels and logits of the last evaluation."""

    def before_eval(self, strategy, *args, **kwargs):
        SEEN.clear()

    def after_eval_forward(self, strategy, *args, **kwargs):
        SEEN.append((strategy.mb_x, strategy.mbatch[-1], strategy.mb_output))


class StopAtSecond(SupervisedPlugin):
    def before_training_exp(self, strategy, *args, **kwargs):
        if strategy.experience.current_experience == 1:
            raise KeyboardInterrupt


class Thaw(SupervisedPlugin):
    """Does what no strategy should: changes the backbone."""

    def after_training_exp(self, strategy, *args, **kwargs):
        with torch.no_grad():
            strategy.model.backbone.vit.pos_embed += 1


@exportable
class Probe(DynamicModel):
    """A network of another package: whatever the class, one row for each."""

    def __init__(self, backbone, *, scale=2.0):
        super().__init__()
        self.net, self.scale = backbone, scale
        self.classes, self.head = ClassRows(), LinearHead(backbone.embed_dim)

    def start_experience(self, pairs, *, fresh=True):
        self.classes.add(pairs)
        self.head.grow(len(self.classes))

    def embed(self, images):
        return self.scale * self.net(images)

    def classify(self, features):
        return self.head(features)


def build_probe(*, backbone, plugins, evaluator, mute: bool = False):
    model = Probe(backbone)
    if mute:
        del model.export_spec
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    return PEFTTemplate(
        model=model,
        optimizer=optimizer,
        plugins=plugins,
        evaluator=evaluator,
        train_epochs=1,
        eval_mb_size=64,
    )


@pytest.fixture(scope="module")
def registry():
    offered = [
        ("strategy_plugin", Component("witness", Witness, source="test")),
        ("strategy_plugin", Component("stop_at_second", StopAtSecond, source="test")),
        ("strategy_plugin", Component("thaw", Thaw, source="test")),
        ("strategy", Component("probe", build_probe, source="test")),
    ]
    more = [Entry(kind, component, Provider("test", "1")) for kind, component in offered]
    return Registry([*discover().entries(), *more])


def tiny(output, **changed) -> RunConfig:
    settings = {
        "output": output,
        "backbone": BACKBONE,
        "benchmark": DIGITS,
        "strategy": {"name": "naive", "train_epochs": 1},
        "plugins": [{"name": "witness"}],
    }
    return RunConfig.model_validate(settings | changed)


@pytest.fixture(scope="module")
def done(tmp_path_factory, registry) -> Path:
    return run(tiny(tmp_path_factory.mktemp("runs") / "naive"), registry=registry).folder


def rewrite(path: Path, source: Path, **changed) -> Path:
    """Write a copy of a network's file that says something else."""
    with safe_open(source, "pt") as file:
        told = json.loads(file.metadata()[INFO_KEY])
    told = {k: v for k, v in (told | changed).items() if v != "left out"}
    save_file(load_file(source), path, {INFO_KEY: json.dumps(told)})
    return path


# --- equal to the run's own evaluation -----------------------------------------------------------

METHODS = {
    "naive": {},
    "lora": {"module": {"name": "lora", "r": 2}},
    "prefix": {"module": {"name": "prefix", "length": 2}},
    "prompt": {"module": {"name": "prompt", "length": 2}},
    "patch_prompt": {"module": {"name": "patch_prompt", "length": 2}},
    "frozen": {"module": {"name": "frozen"}},
    "dora": {"module": {"name": "peft_tuner", "tuner": "lora", "use_dora": True}},
    "pissa": {"module": {"name": "peft_tuner", "tuner": "lora", "init_lora_weights": "pissa"}},
    "ntk_cl": {"strategy": {"name": "ntk_cl", "train_epochs": 1, "n_copies": 2}},
    "ntk_cl_released": {
        "strategy": {"name": "ntk_cl", "train_epochs": 1, "recipe": "released"}
        | {"use_pretrained": True}
    },
    "nearest_class_mean": {"strategy": {"name": "nearest_class_mean"}},
    "closed_form": {"strategy": {"name": "closed_form"}},
    "joint": {"strategy": {"name": "joint", "train_epochs": 1}},
    "pegp_adapter": {"strategy": {"name": "pegp", "train_epochs": 1, "head_epochs": 0}},
    "pegp_lora": {
        "strategy": {"name": "pegp", "train_epochs": 1, "head_epochs": 0, "peft": "lora"}
    },
    "task": {"benchmark": DIGITS | {"scenario": "task"}},
    "bfloat16": {"strategy": {"name": "naive", "train_epochs": 1, "mixed_precision": "bf16"}},
    "own_weights": {"backbone": {"name": "vit_glyph", "img_size": 16}},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("with_backbone", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_export_answers_as_the_run_did(method, with_backbone, registry, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / f"answers-{method}"
    if not folder.exists():  # the first of two tests runs it
        run(tiny(folder, **METHODS[method]), registry=registry)
        torch.save(list(SEEN), folder / "seen.pt")
    seen = torch.load(folder / "seen.pt")
    file = folder / f"{with_backbone}.safetensors"
    export_run(folder, file, with_backbone=with_backbone)
    model = load(file)
    assert len(seen) > 1
    for images, tasks, logits in seen:
        answers = model(images, tasks if method == "task" else None)
        assert torch.equal(answers, logits.float())
        assert (answers > -1000).any()
    backbone = [k for k in load_file(file) if k.startswith("backbone.")]
    assert bool(backbone) is with_backbone


def test_a_network_of_another_package(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "plugin_modules", lambda: {__name__.partition(".")[0]})
    folder = run(tiny(tmp_path / "run", strategy={"name": "probe"}), registry=registry).folder
    images, _, logits = SEEN[-1]
    assert torch.equal(load(folder)(images), logits)
    trained = [k for k in load_file(folder / "model.safetensors") if "vit" in k]
    assert trained == []  # the backbone is left out under whatever name it has


# --- what is in the file -------------------------------------------------------------------------


def test_what_the_network_says_of_itself(done):
    model = load(done)
    order = json.loads((done / "metrics.json").read_text())["protocol"]["class_order"]
    assert model.class_names == [str(label) for label in order]
    assert model.input_config.img_size == 16
    assert model.task_labels == []
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert not model(torch.zeros(1, 3, 16, 16)).requires_grad
    assert (model.info.finished, model.info.total) == (2, 2)
    assert model.info.strategy["name"] == "naive"
    assert model.transform(torch.zeros(1, 9, 9)).shape == (3, 16, 16)


def test_a_network_without_a_backbone_is_small(done):
    names = set(load_file(done / "model.safetensors"))
    assert {"model.head.weight", "model.classes.keys"} <= names
    assert not any("vit" in name for name in names)


def test_the_same_run_twice_gives_the_same_bytes(done, registry, tmp_path):
    again = run(tiny(tmp_path / "again"), registry=registry).folder
    assert (again / "model.safetensors").read_bytes() == (done / "model.safetensors").read_bytes()


def test_a_run_that_stopped_exports_what_it_finished(registry, tmp_path):
    config = tiny(tmp_path / "run", plugins=[{"name": "stop_at_second"}])
    with pytest.raises(KeyboardInterrupt):
        run(config, registry=registry)
    file = tmp_path / "part.safetensors"
    result = CliRunner().invoke(app, ["export", str(config.output), str(file)])
    assert result.exit_code == 0, result.stderr
    assert "naive after 1 of 2 experiences, without the weights of" in result.stdout
    model = load(file)
    logits = model(torch.zeros(1, 3, 16, 16))
    assert len(model.class_names) == 10
    assert (logits > -1000).sum() == 5


def test_a_backbone_that_changed_travels_along(registry, tmp_path):
    config = tiny(tmp_path / "run", plugins=[{"name": "thaw"}, {"name": "witness"}])
    folder = run(config, registry=registry).folder
    assert read_export(folder / "model.safetensors")[0].backbone_included
    images, _, logits = SEEN[-1]
    assert torch.equal(load(folder)(images), logits)


def test_a_network_that_does_not_say_how_it_is_built_is_not_kept(registry, tmp_path):
    strategy = {"name": "probe", "mute": True}
    folder = run(tiny(tmp_path / "run", strategy=strategy), registry=registry).folder
    assert not (folder / "model.safetensors").exists()
    with pytest.raises(
        ConfigError,
        match=r"strategy 'probe' .* not kept: a Probe does not say how .*models\.exportable",
    ):
        export_run(folder, tmp_path / "a.safetensors")


def test_a_network_of_no_plugin_package_is_not_kept(registry, tmp_path):
    folder = run(tiny(tmp_path / "run", strategy={"name": "probe"}), registry=registry).folder
    with pytest.raises(ConfigError, match=r"Probe belongs to no plugin package that is installed"):
        export_run(folder, tmp_path / "a.safetensors")


# --- loading -------------------------------------------------------------------------------------


def test_load_is_at_the_top_and_leaves_the_random_generator_alone(done):
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    avalanche_peftcl.load(str(done / "model.safetensors"))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.slow
def test_loading_and_predicting_import_no_avalanche(done):
    code = (
        "import sys, torch, avalanche_peftcl\n"
        "import avalanche_peftcl.export.predict\n"
        f"model = avalanche_peftcl.load({str(done)!r})\n"
        "model(torch.zeros(1, 3, 16, 16))\n"
        "print(sorted({'avalanche', 'matplotlib'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert result.stdout == "[]\n"


def test_a_task_label_is_asked_for_where_it_is_needed(registry, tmp_path):
    config = tiny(tmp_path / "run", benchmark=DIGITS | {"scenario": "task"})
    model, images = load(run(config, registry=registry).folder), torch.zeros(2, 3, 16, 16)
    assert model.task_labels == [0, 1]
    with pytest.raises(ConfigError, match=r"task by task.*one of 0, 1"):
        model(images)
    with pytest.raises(ConfigError, match="there is no task label 7; there is 0, 1"):
        model(images, 7)
    one, other = model(images, 0), model(images, torch.tensor([0, 1]))
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


def test_a_task_label_is_refused_where_it_is_none(done):
    with pytest.raises(ConfigError, match="takes no task label"):
        load(done)(torch.zeros(1, 3, 16, 16), 0)


def test_other_weights_of_the_backbone_are_refused(done, tmp_path):
    options = {k: v for k, v in BACKBONE.items() if k != "name"}
    torch.manual_seed(99)
    other = create_backbone(**options)
    with pytest.raises(CheckpointError, match="trained on other weights of the backbone"):
        load(done, backbone=other)
    file = rewrite(tmp_path / "a.safetensors", done / "model.safetensors", seed=5)
    with pytest.raises(CheckpointError, match=r"than there are here .*--with-backbone"):
        load(file)


def test_missing_weights_are_named_and_can_be_put_into_the_file(registry, tmp_path):
    options = {k: v for k, v in BACKBONE.items() if k != "name"}
    backbone = create_backbone(**options)
    checkpoint = tmp_path / "vit.pt"
    torch.save(backbone.vit.state_dict(), checkpoint)
    settings = BACKBONE | {"checkpoint": str(checkpoint)}
    folder = run(tiny(tmp_path / "run", backbone=settings), registry=registry).folder
    images, _, logits = SEEN[-1]
    export_run(folder, tmp_path / "whole.safetensors", with_backbone=True, checkpoint=checkpoint)
    assert torch.equal(load(folder, checkpoint=checkpoint)(images), logits)
    checkpoint.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be built here: no weights.*vit\.pt.*--with"):
        load(folder, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=r"those of a file, where the run was; give the file"):
        load(folder)
    export_run(folder, tmp_path / "small.safetensors")  # needs no weights of the backbone
    for file in (folder / "model.safetensors", tmp_path / "small.safetensors"):
        assert str(tmp_path).encode() not in file.read_bytes().partition(b"strategy")[0]
        assert torch.equal(load(file, backbone=backbone)(images), logits)
    assert torch.equal(load(tmp_path / "whole.safetensors")(images), logits)


def test_a_backbone_of_a_package_that_is_not_there(done, tmp_path):
    backbone = {"name": "gone/big_vit"}
    file = rewrite(tmp_path / "a.safetensors", done / "model.safetensors", backbone=backbone)
    with pytest.raises(CheckpointError, match="unknown backbone 'gone/big_vit'"):
        load(file)


def test_files_that_are_no_network(done, tmp_path):
    whole = (done / "model.safetensors").read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
            load(tmp_path / "cut")
    (tmp_path / "flipped").write_bytes(whole[:200] + b"\xff" + whole[201:])
    with pytest.raises(CheckpointError):
        load(tmp_path / "flipped")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no exported network"):
        load(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="there is no file"):
        load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"there is no file .*model\.safetensors"):
        load(tmp_path)


SPEC = {"build": "avalanche_peftcl.models.networks.ntk_cl:NTKCLModel", "options": {}}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": 1}, "has format 1, this version of avalanche-peftcl reads 2"),
        ({"weights_sha256": "left out"}, "is damaged: wrong or missing weights_sha256"),
        ({"class_names": 3}, "is damaged: wrong or missing class_names"),
        ({"input_config": {}}, "is damaged: wrong or missing input_config"),
        ({"model": {"build": 3}}, "does not say how a network is built"),
        ({"model": SPEC | {"build": "os:system"}}, "os:system belongs to no plugin package"),
        ({"model": SPEC | {"build": "nothing"}}, "nothing belongs to no plugin package"),
        ({"model": SPEC | {"build": "avalanche_peftcl.gone:f"}}, "cannot be imported"),
        ({"model": SPEC | {"build": "avalanche_peftcl.cli:gone"}}, "cannot be imported"),
        ({"model": SPEC | {"build": "avalanche_peftcl.cli:main"}}, "not marked as exportable"),
        ({"model": SPEC | {"options": {"x": 1}}}, "unknown option 'x'"),
        ({"model": SPEC}, "the weights in .* do not fit the network"),
    ],
)
def test_a_file_that_says_what_cannot_be(done, tmp_path, changed, said):
    file = rewrite(tmp_path / "a.safetensors", done / "model.safetensors", **changed)
    with pytest.raises(CheckpointError, match=said):
        load(file)


# --- the command ---------------------------------------------------------------------------------


def test_the_command_writes_one_file_and_keeps_what_is_there(done, tmp_path):
    file = tmp_path / "a.safetensors"
    words = ["export", str(done), str(file), "--with-backbone"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert "naive after 2 of 2 experiences, with the weights of avalanche-peftcl/timm_vit" in (
        result.stdout.replace("\n", " ")
    )
    assert os.listdir(tmp_path) == ["a.safetensors"]
    file.write_text("mine")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "is there already; name another file or add --overwrite" in result.stderr
    assert file.read_text() == "mine"
    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 0
    assert isinstance(read_export(file)[0], ExportInfo)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (None, "holds no run record; give the folder of a run"),
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ({"finished": 0}, "has finished no experience; run it again"),
        ({"finished": 1, "size": 2}, "is of a version that kept no network; run it again"),
        ({"finished": 1, "not_exported": "no way"}, "of strategy 'ntk_cl' in .* not kept: no way"),
    ],
)
def test_a_folder_without_a_network_says_why(tmp_path, metrics, said, record_of):
    if isinstance(metrics, str):
        (tmp_path / "metrics.json").write_text(metrics)
    elif metrics is not None:
        RunRecord(tmp_path, record_of(**metrics)).write()
    result = CliRunner().invoke(app, ["export", str(tmp_path), str(tmp_path / "a.safetensors")])
    assert result.exit_code == 2
    assert re.search(said, result.stderr)
    assert "Traceback" not in result.output


def test_a_broken_network_is_not_exported(done, tmp_path):
    (tmp_path / "model.safetensors").write_bytes((done / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        export_run(tmp_path, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_a_full_disk_is_a_message_and_leaves_nothing_half(done, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "replace_file", full)
    with pytest.raises(ConfigError, match=r"cannot write .*No space left on device"):
        export_run(done, tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        export_run(done, tmp_path)
    with pytest.raises(ConfigError, match="there is no folder"):
        export_run(done, tmp_path / "no" / "a.safetensors")
