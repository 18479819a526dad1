import pytest

from avalanche_peftcl import Component
from avalanche_peftcl.errors import ConfigError, PEFTCLError


def build() -> str:
    return "built"


def test_a_path_is_imported_at_first_use():
    component = Component("later", "no_such_module:build", source="nowhere")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        component.load()


@pytest.mark.parametrize("given", [build, "functools:reduce"])
def test_load_returns_the_callable(given):
    import functools

    expected = build if given is build else functools.reduce
    assert Component("thing", given, source="here").load() is expected


@pytest.mark.parametrize("name", ["a", "ntk_cl", "l2p", "cifar100", "a_1_b"])
def test_good_names(name):
    assert Component(name, build, source="").name == name


@pytest.mark.parametrize("name", ["", "A", "NTK-CL", "_a", "a_", "a__b", "1a", "a b", "a/b", "ä"])
def test_bad_names(name):
    with pytest.raises(ConfigError) as raised:
        Component(name, build, source="")
    assert str(raised.value) == (
        f"component name {name!r} is not lower_snake_case (letters, digits and single "
        "underscores, starting with a letter)"
    )
    assert isinstance(raised.value, PEFTCLError | ValueError)


@pytest.mark.parametrize("path", ["module", "a:b:c", ""])
def test_bad_paths(path):
    with pytest.raises(ConfigError, match='not an import path of the form "package'):
        Component("thing", path, source="")


@pytest.mark.parametrize("served", ["task", (), ["class"], ("classes",), ("class", []), None])
def test_bad_scenarios(served):
    with pytest.raises(ConfigError) as raised:
        Component("thing", build, source="", scenarios=served)
    assert str(raised.value).startswith("component 'thing': scenarios=")
    assert str(raised.value).endswith(
        " is not a tuple of some of 'class', 'task', 'domain', 'online'"
    )


@pytest.mark.parametrize("named", ["scipy", ["scipy"], ("",), ("scipy>=1",), (1,), None])
def test_bad_libraries(named):
    with pytest.raises(ConfigError, match=r"component 'thing': libraries=.* is not a tuple of nam"):
        Component("thing", build, source="", libraries=named)


@pytest.mark.parametrize("named", ["r", ["r"], (1,), None])
def test_bad_options_of_an_own_module(named):
    with pytest.raises(
        ConfigError, match=r"component 'thing': own_module=.* is not a tuple of nam"
    ):
        Component("thing", build, source="", own_module=named)


def test_a_component_serves_all_scenarios_unless_it_says_otherwise():
    assert Component("thing", build, source="").scenarios == ("class", "task", "domain", "online")
