"""Every option of every built-in component: extreme values are refused or work."""

import math
import typing
from itertools import product
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from PIL import Image

from avalanche_peftcl.errors import PEFTCLError
from avalanche_peftcl.models import CosineHead, InputConfig, PEFTModel, PrototypeHead
from avalanche_peftcl.registry import discover
from avalanche_peftcl.testing import toy_backbone
from avalanche_peftcl.testing.toys import toy_benchmark
from avalanche_peftcl.training.plugins import DriftCompensationPlugin, MarginLossPlugin

REGISTRY = discover(only=["avalanche-peftcl"])
ALL = [(entry.kind, entry.component.name) for entry in REGISTRY.entries()]
EXTREME: list[Any] = [0, -1, 1, 1e300, -1e300, 1e-300, math.nan, math.inf, -math.inf, 2**63, 10**12]
EXTREME += ["x" * 100_000, "", "0", True, None, [], {}, [2**63], [-1], [math.nan], ["x"] * 3, [[]]]
SOME = [0, -1, 1e300, 1e-300, math.nan, 2**63, "x" * 100_000]
LOADERS = {"svhn", "cifar10", "cifar100", "tiny_imagenet", "cub200", "oxford_pets", "eurosat"}
LOADERS |= {"mnist", "core50", "five_datasets"}  # the same options as fashion_mnist
# numbers that are checked against the network or the data, not by a range
FREE = {"blocks", "class_order", "img_size", "params"}
FEW = {"train_epochs": 2, "head_epochs": 1, "eval_mb_size": 4, "train_mb_size": 4}


def numbers(annotation: Any) -> list[tuple[float, float]]:
    """Return the range of each number in an annotation."""
    if typing.get_origin(annotation) is Annotated:
        if typing.get_origin(annotation.__origin__) is Literal:
            return []
        limits = [m for a in annotation.__metadata__ for m in getattr(a, "metadata", [a])]
        low = [getattr(m, k) for m in limits for k in ("ge", "gt") if hasattr(m, k)]
        high = [getattr(m, k) for m in limits for k in ("le", "lt") if hasattr(m, k)]
        return [(*low, -math.inf)[:1] + (*high, math.inf)[:1]]
    if typing.get_origin(annotation) is Literal:
        return []
    if annotation in (int, float):
        return [(-math.inf, math.inf)]
    return [pair for inner in typing.get_args(annotation) for pair in numbers(inner)]


def given(kind: str) -> dict[str, Any]:
    """Return what a run hands in, as small as can be."""
    torch.manual_seed(0)
    return {
        "backbone": toy_backbone(depth=1),
        "in_features": 12,
        "input_config": InputConfig(img_size=16),
        "device": "cpu",
        "plugins": [],
        "evaluator": EvaluationPlugin(),
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for part, name in product(("train", "test"), ("cat", "dog")):
        (root / part / name).mkdir(parents=True)
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(root / part / name / "0.png")
    return root


def required(kind: str, name: str, images: Any, tmp_path: Any) -> dict[str, Any]:
    """Return options with which a component is built here, or ends where data are missing."""
    options = REGISTRY.options(kind, name)
    small = {
        "backbone": {"img_size": 32} if name == "vit_glyph" else {
            "model_name": "vit_tiny_patch16_224", "img_size": 32, "depth": 1, "embed_dim": 12,
            "num_heads": 2,
        },
        "module": {"tuner": "lora", "r": 2} if name == "peft_tuner" else {},
        "benchmark": {"n_experiences": 1} if name == "image_text" else
        {"train_per_class": 1} if name != "image_folder" else {},
        "strategy_plugin": {"weight": 1.0} if name == "retention" else {},
        "strategy": {key: value for key, value in FEW.items() if key in options},
    }.get(kind, {})  # fmt: skip
    if name == "dual_encoder":
        small = {"model_name": "test_vit", "img_size": 64, "out_features": 4}
    if name == "open_clip":
        small = {"model_name": "local-dir:nowhere"}
    if name == "running_mean":
        small = {"source": "a", "targets": ["b"]}
    if "root" in options:
        small["root"] = images if name == "image_folder" else tmp_path / "nothing"
    return small | ({"download": False} if "download" in options else {})


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_number_has_a_range(kind, name):
    for option, parameter in REGISTRY.options(kind, name).items():
        if option not in FREE:
            for low, high in numbers(parameter.annotation):
                assert math.isfinite(low), (option, low)
                assert math.isfinite(high), (option, high)


def problems(kind, name, values, images, folder) -> list[str]:
    """Give each option each value; return what was neither refused nor built."""
    options, handed = required(kind, name, images, folder), given(kind)
    handed |= {"output": folder, "resume": False, "settings": {}}
    schema, wrong = REGISTRY.schema(kind, name), []
    for option, value in product([*schema.options, *(["more"] if schema.further else [])], values):
        if option == "pretrained" and value is True:
            continue  # a download
        try:
            if kind == "logger":  # building one starts a run elsewhere
                schema.check({option: value})
            else:
                REGISTRY.build(kind, name, options | {option: value}, handed)
        except PEFTCLError as error:
            said = str(error)
            if " cannot be built: " in said or len(said) > 5_000:
                wrong.append(f"{option}={str(value)[:20]}: {said[:300]}")
    return wrong


@pytest.mark.parametrize(("kind", "name"), [each for each in ALL if each[1] not in LOADERS])
def test_extreme_values_are_refused_or_built(kind, name, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert problems(kind, name, SOME, images, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_more_extreme_values_are_refused_or_built(kind, name, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert problems(kind, name, EXTREME, images, tmp_path) == []


def edges(kind: str, name: str) -> list[tuple[str, float]]:
    """Return the smallest and largest value of every option that is one finite float."""
    found = []
    for option, parameter in REGISTRY.options(kind, name).items():
        base = next(iter(typing.get_args(parameter.annotation)), None)
        if option in FREE or (base is not float and typing.get_args(base)[:1] != (float,)):
            continue
        ((low, high),) = numbers(parameter.annotation)[:1]
        for value in (low, math.nextafter(low, 1), high, math.nextafter(high, 0)):
            try:
                REGISTRY.schema(kind, name).check({option: value})
            except PEFTCLError:
                continue  # outside of an open range
            found.append((option, value))
    return found


MODULES = [(n, *edge) for k, n in ALL if k == "module" for edge in edges(k, n)]
STRATEGIES = [(n, *edge) for k, n in ALL if k == "strategy" for edge in edges(k, n)]
PLUGINS = [(n, *edge) for k, n in ALL if k == "strategy_plugin" for edge in edges(k, n)]


def test_there_are_edges():
    assert {option for _, option, _ in MODULES} == {
        "scale", "dropout", "alpha", "carry", "init_bound"
    }  # fmt: skip
    assert {"lr", "temperature", "threshold"} <= {option for _, option, _ in STRATEGIES}
    assert {"ewc_lambda", "threshold"} <= {option for _, option, _ in PLUGINS}


@pytest.mark.parametrize(("name", "option", "value"), MODULES)
def test_a_module_at_the_edge_of_its_range_gives_finite_features(name, option, value):
    backbone = toy_backbone(depth=1)
    torch.manual_seed(0)
    branch = REGISTRY.build("module", name, {option: value}, {"backbone": backbone})
    features = PEFTModel(backbone, branch).embed(torch.randn(3, 3, 16, 16))
    assert features.isfinite().all()
    features.sum().backward()
    assert all(p.grad.isfinite().all() for p in branch.parameters() if p.grad is not None)


def outcome(name: str, options: dict[str, Any], plugins: list[Any]) -> str:
    """Train two experiences, evaluate; return the error of ours, or whether weights are finite."""
    torch.manual_seed(0)
    backbone = toy_backbone(depth=1)
    handed = given("strategy") | {"backbone": backbone, "plugins": plugins}
    if "module" in REGISTRY.schema("strategy", name).given:
        handed["module"] = REGISTRY.build("module", "adapter", {}, {"backbone": backbone})
    if any(isinstance(plugin, MarginLossPlugin) for plugin in plugins):
        handed["head"] = CosineHead  # what else trains here has no cosines
    if any(isinstance(plugin, DriftCompensationPlugin) for plugin in plugins):
        handed["head"] = PrototypeHead  # what moves is fitted
    few = {k: v for k, v in FEW.items() if k in REGISTRY.options("strategy", name)}
    strategy = REGISTRY.build("strategy", name, few | options, handed)
    benchmark = toy_benchmark(classes_per_experience=(2, 2), per_class=4)
    try:
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[])
        strategy.eval(benchmark.test_stream)
    except PEFTCLError as error:
        return str(error)
    trained = [p for p in strategy.model.parameters() if p.requires_grad]
    return "finite" if all(bool(p.isfinite().all()) for p in trained) else "diverged in silence"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "option", "value"), STRATEGIES)
def test_a_strategy_at_the_edge_of_a_range_trains_or_says_that_it_diverged(name, option, value):
    assert "finite" in outcome(name, {option: value}, [])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "option", "value"), PLUGINS)
def test_a_plugin_at_the_edge_of_a_range_trains_or_says_that_it_diverged(name, option, value):
    plugin = REGISTRY.build("strategy_plugin", name, {option: value})
    assert "finite" in outcome("naive", {}, [plugin])
