import inspect
from importlib import import_module

import pytest

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.registry import Registry, builtin, discover, hookspecs
from avalanche_peftcl.registry.kinds import KINDS
from avalanche_peftcl.registry.schema import Schema


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("AVALANCHE_PEFTCL_PLUGINS", "")
    return discover()


OFFERED = [
    (kind.name, component.name)
    for kind in KINDS.values()
    for component in getattr(builtin, kind.hook)()
]


def test_every_hook_has_a_kind():
    hooks = [n for n, f in inspect.getmembers(hookspecs, inspect.isfunction) if n[:7] == "peftcl_"]
    assert sorted(hooks) == sorted(kind.hook for kind in KINDS.values())


def test_every_kind_has_its_key_in_a_configuration():
    fields = RunConfig.model_fields
    of_components = [k for k, field in fields.items() if "ComponentConfig" in str(field.annotation)]
    assert sorted(of_components) == sorted(kind.key for kind in KINDS.values())


def test_builtins_come_through_the_hooks(registry):
    assert [(e.kind, e.component.name) for e in registry.entries()] == sorted(
        OFFERED, key=lambda pair: (list(KINDS).index(pair[0]), pair[1])
    )
    assert {e.provider.name for e in registry.entries()} == {"avalanche-peftcl"}


def test_ntk_cl_is_there(registry):
    assert registry.get("strategy", "ntk_cl").component.source == "arXiv 2407.17120"


@pytest.mark.parametrize(("kind", "name"), OFFERED)
def test_every_path_names_a_builder_whose_options_can_be_read(registry, kind, name):
    component = registry.get(kind, name).component
    assert isinstance(component.build, str)
    assert component.source
    module, _, attribute = component.build.partition(":")
    builder = getattr(import_module(module), attribute)
    schema = Schema.of(builder, given=KINDS[kind].given, title=name)
    empty = inspect.Parameter.empty
    assert [k for k, p in schema.options.items() if p.annotation is empty] == []


@pytest.mark.parametrize("name", ["replay", "ewc", "lwf"])
def test_host_plugins_need_no_options(registry, name):
    from avalanche.core import SupervisedPlugin

    assert isinstance(registry.build("strategy_plugin", name), SupervisedPlugin)
