"""Kinds, each declared once: what is no part of its kind is named with its package."""

import pytest
import torch
from typer.testing import CliRunner

from avalanche_peftcl import Component, cli
from avalanche_peftcl.config import ComponentConfig
from avalanche_peftcl.config.plan import Part
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import Registry, discover, hookspecs
from avalanche_peftcl.registry.kinds import KINDS, Kind
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.registry.registry import schema_of
from avalanche_peftcl.runs import run
from avalanche_peftcl.testing.toys import toy_backbone, toy_benchmark

PLACES = {
    "backbone": {"backbone": "odd"},
    "module": {"module": "odd"},
    "head": {"head": "odd", "strategy": "headed"},
    "benchmark": {"benchmark": "odd"},
    "strategy": {"strategy": "odd"},
    "strategy_plugin": {"plugins": ["odd"]},
    "metric": {"metrics": ["odd"]},
    "logger": {"loggers": ["odd"]},
}


def fails(**given):
    raise LookupError("no\nsuch luck")


def headed(*, backbone, head, module=None, evaluator=None, train_epochs=1):
    return head(backbone.embed_dim)


BUILDERS = {
    "number": (lambda *, evaluator=None, module=None, plugins=None: 3, " built 3, which is no "),
    "class": (
        lambda *, evaluator=None, module=None, plugins=None: dict,
        "built <class 'dict'>, which is no ",
    ),
    "None": (
        lambda *, evaluator=None, module=None, plugins=None: None,
        "cannot be built: its builder returned None",
    ),
    "error": (
        lambda *, evaluator=None, module=None, plugins=None: fails(),
        "cannot be built: LookupError: no such luck",
    ),
}


def registry(kind: str, build) -> Registry:
    toys = [
        ("backbone", Component("toy", lambda: toy_backbone(depth=1), source="test")),
        ("benchmark", Component("toy", lambda: toy_benchmark(), source="test")),
        ("strategy", Component("headed", headed, source="test")),
        (kind, Component("odd", build, source="test")),
    ]
    entries = [Entry(kind, component, Provider("odd-pkg", "1.5")) for kind, component in toys]
    return Registry([*discover(only=["avalanche-peftcl"]).entries(), *entries])


@pytest.mark.parametrize("how", BUILDERS)
@pytest.mark.parametrize("kind", PLACES)
def test_what_is_not_of_its_kind_is_one_message(tmp_path, monkeypatch, kind, how):
    build, said = BUILDERS[how]
    offered = registry(kind, build)
    monkeypatch.setattr(run, "discover", lambda: offered)
    file = tmp_path / "run.yaml"
    settings = {
        "output": str(tmp_path / "run"),
        "backbone": "toy",
        "benchmark": "toy",
        "module": "adapter",
        "strategy": {"name": "naive", "train_epochs": 1},
    }
    file.write_text(dump_settings(settings | PLACES[kind]))
    result = CliRunner().invoke(cli.app, ["run", str(file)])
    assert result.exit_code == 2, result.exception
    assert f"error: {kind} 'odd' of odd-pkg 1.5 " in result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_list_of_metrics_is_one():
    from avalanche.evaluation.metrics import loss_metrics

    assert KINDS["metric"].fits(loss_metrics(epoch=True))
    assert KINDS["module"].fits(torch.nn.Linear(1, 1))


SAMPLER_HOOK = """
    from typing import Annotated
    from pydantic import Field
    from avalanche_peftcl import Component, hookimpl

    def shuffled(*, output, length: Annotated[int, Field(ge=1)] = 2):
        return [f"{output}/{i}" for i in range(length)]

    @hookimpl
    def peftcl_samplers():
        yield Component("shuffled", shuffled, source="a test")
"""


def test_a_kind_is_added_by_its_hook_and_its_entry(install, monkeypatch):
    def peftcl_samplers():
        return ()

    sampler = Kind(
        "sampler",
        "peftcl_samplers",
        "samplers",
        "list",
        lambda part: isinstance(part, list),
        given=frozenset({"output"}),
    )
    monkeypatch.setattr(
        hookspecs, "peftcl_samplers", hookspecs.hookspec(peftcl_samplers), raising=False
    )
    monkeypatch.setitem(KINDS, "sampler", sampler)
    install("with-samplers", SAMPLER_HOOK)

    listed = CliRunner().invoke(cli.app, ["list", "sampler"]).stdout
    assert ["sampler", "shuffled", "with-samplers", "1.0", "a test"] in [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in listed.splitlines()
    ]
    offered = discover()
    assert offered.kinds[-1] == "sampler"
    assert list(offered.options("sampler", "shuffled")) == ["length"]
    assert offered.build("sampler", "shuffled", {"length": 1}, {"output": "a"}) == ["a/0"]
    with pytest.raises(ConfigError, match="option 'length' should be greater than or equal to 1"):
        offered.build("sampler", "shuffled", {"length": 0}, {"output": "a"})
    with pytest.raises(ConfigError, match="'output' is handed in by the run and is not an option"):
        offered.build("sampler", "shuffled", {"output": "b"}, {"output": "a"})
    with pytest.raises(ConfigError, match="'it' built 3, which is no list"):
        sampler.check(3, "'it'")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "built", [None, [], 3, object()], ids=["nothing", "list", "number", "object"]
)
def test_what_is_none_of_its_kind_is_refused_with_the_name_of_the_hook(kind, built):
    entry = Entry(kind, Component("odd", lambda: built, source="test"), Provider("them", "1"))
    schema = schema_of(entry)
    part = Part(KINDS[kind], ComponentConfig(name="odd"), entry, schema, {})
    with pytest.raises(ConfigError, match=rf"'odd' of them 1 .*hook {KINDS[kind].hook} asks"):
        part.build()
