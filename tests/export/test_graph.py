"""Exported networks as graphs: ``torch.export`` and ONNX, with the logits of the network."""

import builtins
import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.errors import ConfigError, ExportError
from avalanche_peftcl.export.graph import Graph, export_program, onnx_bytes
from avalanche_peftcl.export.load import load
from avalanche_peftcl.models import NTKCLModel, PEFTModel
from avalanche_peftcl.registry import discover
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.testing import toy_backbone
from tests.export.test_write import tiny
from tests.models.heads.test_zero_shot import image_text

IA3 = {"tuner": "ia3", "feedforward_modules": ["qkv"]}
PAIRS = [  # each module and each head once; by its kind another head of kernel_ridge
    ("frozen", {}, "gaussian", {}),
    ("adapter", {}, "linear", {}),
    ("attention_adapter", {}, "cosine", {}),
    ("linear_adapter", {}, "zero_shot", {}),
    ("lora", {}, "prototypes", {}),
    ("patch_prompt", {}, "lda", {}),
    ("peft_tuner", IA3, "ridge", {}),
    ("prefix", {}, "random_ridge", {"n_features": 60}),
    ("prompt", {}, "kernel_ridge", {"n_features": 60}),
    ("adapter", {}, "kernel_ridge", {"exact": True}),
    ("frozen", {}, "text_context", {}),
    ("lora", {}, "zero_shot_ridge", {}),
]


class Told:
    """What a graph needs of an exported network, around any model."""

    def __init__(self, model, task_labels=()):
        self.model = model.eval()
        self.class_names = [f"class {c}" for c in range(4)]  # the last of them never trained
        self.task_labels = list(task_labels)
        self.input_config = model.backbone.input_config
        self.score_name = "probability"
        self.info = type("Info", (), {"strategy": {"name": "toy"}})()


def pictures(n=5):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def network(module="adapter", options=None, head="linear", head_options=None, tasks=False):
    """A network of random weights; heads that are fitted have seen features of noise."""
    registry = discover()
    texts = head in ("zero_shot", "text_context", "zero_shot_ridge")
    backbone = image_text() if texts or module == "linear_adapter" else toy_backbone()
    torch.manual_seed(0)
    branch = registry.build("module", module, options or {}, given={"backbone": backbone})

    def build(width):
        given = {"in_features": width, **({"backbone": backbone} if texts else {})}
        return registry.build("head", head, head_options or {}, given=given)

    model = PEFTModel(backbone, branch, build)
    model.start_experience([(0, 0), (1 if tasks else 0, 2)])
    model.start_rows(0, ["cat", "dog", "owl"])
    with torch.no_grad():
        for parameter in (*branch.parameters(), *model.head.parameters()):
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        if model.head.fitted:
            features, rows = torch.randn(40, model.head.in_features), torch.arange(40) % 2
            model.head.begin([0, 1], [20, 20])
            model.head.observe(features + rows[:, None], rows)
            model.head.settle()
    if head == "text_context":
        model.head.refresh()
        model.head.texts = None  # as of a network that was loaded
    return Told(model, [0, 1] if tasks else [])


def by_onnxruntime(content, **fed):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in fed.items()})[0]


def test_a_program_of_any_number_of_images_has_the_logits_of_the_network():
    told = network()
    program = export_program(told).module()
    for n in (1, 5):
        with torch.no_grad():
            expected = Graph(told)(pictures(n))
        torch.testing.assert_close(program(pictures(n)), expected, atol=1e-5, rtol=1e-5)
        assert expected.shape == (n, 4)
        assert (expected[:, [1, 3]] == -1000).all()


def test_what_no_graph_can_hold_is_refused_by_name():
    told = network(module="frozen")
    told.model.embed = lambda images: told.model.backbone(images) * float(images.sum())
    with pytest.raises(ExportError, match=r"strategy 'toy' cannot be written as a graph: \w+"):
        export_program(told)


def test_missing_packages_are_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'avalanche-peftcl\[onnx\]'"):
        onnx_bytes(network())


@pytest.mark.slow
@pytest.mark.parametrize(("module", "options", "head", "head_options"), PAIRS)
def test_onnxruntime_has_the_logits_of_every_module_and_head(module, options, head, head_options):
    told = network(module, options, head, head_options)
    with torch.no_grad():
        expected = Graph(told)(pictures()).numpy()
    found = by_onnxruntime(onnx_bytes(told), images=pictures())
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert np.ptp(expected[:, 0]) > 0  # the images tell


@pytest.mark.slow
def test_every_module_and_head_is_among_them():
    offered = {
        (entry.kind, entry.component.name)
        for entry in discover(only=["avalanche-peftcl"]).entries()
    }
    assert {("module", m) for m, *_ in PAIRS} == {o for o in offered if o[0] == "module"}
    assert {("head", h) for *_, h, _ in PAIRS} == {o for o in offered if o[0] == "head"}


@pytest.mark.slow
def test_task_labels_are_an_input_where_they_are_needed():
    told, tasks = network(tasks=True), torch.tensor([0, 1, 0, 1, 1])
    with torch.no_grad():
        expected = Graph(told)(pictures(), tasks).numpy()
    found = by_onnxruntime(onnx_bytes(told), images=pictures(), task_labels=tasks)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert (found[[0, 2], 2] == -1000).all()


@pytest.mark.slow
def test_ntk_cl_is_a_graph():
    model = NTKCLModel(toy_backbone(), r=2, prompt_length=2)
    model.start_experience([(0, 0), (0, 2)])
    model.prototypes.add([0, 1], torch.randn(2, model.embed_dim), torch.tensor([3, 3]))
    told = Told(model)
    with torch.no_grad():
        expected = Graph(told)(pictures()).numpy()
    found = by_onnxruntime(onnx_bytes(told), images=pictures())
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_command_writes_a_graph_of_a_run(tmp_path):
    onnx = pytest.importorskip("onnx")
    folder = run(tiny(tmp_path / "run", plugins=[])).folder
    file = tmp_path / "network.onnx"
    words = ["export", str(folder), str(file), "--onnx"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert "images (B, 3, 16, 16) to logits (B, 10), ONNX" in result.stdout
    again = CliRunner().invoke(app, words)
    assert (again.exit_code, "is there already" in again.stderr) == (2, True)
    (entry,) = onnx.load(file).metadata_props
    model = load(folder)
    assert json.loads(entry.value)["class_names"] == model.class_names
    expected = model(pictures()).numpy()
    found = by_onnxruntime(file.read_bytes(), images=pictures())
    bound = 1e-5 if model.info.mixed_precision == "no" else 0.05
    np.testing.assert_allclose(found, expected, atol=bound)
