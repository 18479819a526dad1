"""Builders: what they are handed, and what is said where they fail."""

import pytest
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.registry import discover

LAZY = """
    from avalanche_peftcl import Component, hookimpl

    def imports_late():
        import nowhere_to_be_found

    @hookimpl
    def peftcl_metrics():
        yield Component("missing", "nowhere_to_be_found:build", source="")
        yield Component("absent", "{name}:absent", source="")
        yield Component("late", imports_late, source="")
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "missing",
            "metric 'missing' of lazy 1.0 cannot be loaded from 'nowhere_to_be_found:build': "
            "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
        (
            "absent",
            "metric 'absent' of lazy 1.0 cannot be loaded from 'lazy:absent': "
            "AttributeError: module 'lazy' has no attribute 'absent'",
        ),
        (
            "late",
            "metric 'late' of lazy 1.0 cannot be built: "
            "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
    ],
)
def test_a_builder_that_cannot_be_imported(install, discover_with_warnings, name, message):
    install("lazy", LAZY)
    registry, said = discover_with_warnings()
    assert said == []
    with pytest.raises(ConfigError) as raised:
        registry.build("metric", name)
    assert str(raised.value) == message


def test_wrong_options_name_kind_name_option_and_what_there_is(install):
    install("good-pkg")
    with pytest.raises(ConfigError) as raised:
        discover().build("strategy", "good", {"sise": 3, "size": "big"})
    assert str(raised.value) == (
        "strategy 'good' of good-pkg 1.0:\n"
        "  unknown option 'sise' (did you mean 'size'?)\n"
        "  option 'size' should be a valid integer, unable to parse string as an integer, "
        "got 'big'\n"
        "the options there are:\n"
        "  size: int = 3"
    )


GIVEN = """
    from avalanche_peftcl import Component, hookimpl

    def build(*, backbone, device="cpu", lr: float = 0.1):
        return backbone, device, lr

    @hookimpl
    def peftcl_strategies():
        yield Component("taker", build, source="")
"""


def test_what_the_run_hands_in(install):
    install("taker", GIVEN)
    registry = discover()
    assert list(registry.options("strategy", "taker")) == ["lr"]
    given = {"backbone": "vit", "module": "adapter", "plugins": []}
    assert registry.build("strategy", "taker", {"lr": 1}, given) == ("vit", "cpu", 1.0)
    with pytest.raises(ConfigError) as raised:
        registry.build("strategy", "taker", {"device": "cuda"}, given)
    assert str(raised.value) == (
        "strategy 'taker' of taker 1.0:\n"
        "  'device' is handed in by the run and is not an option\n"
        "the options there are:\n"
        "  lr: float = 0.1"
    )
    with pytest.raises(ConfigError, match="needs backbone, which the run does not give"):
        registry.build("strategy", "taker")


ODD = """
    import inspect
    from typing import Annotated
    from avalanche_peftcl import Component, hookimpl

    class Broken:
        @property
        def __signature__(self):
            raise KeyboardInterrupt
        def __call__(self): ...

    class Evil:
        def __repr__(self): 1 / 0
        def __deepcopy__(self, memo): 1 / 0

    class Type:
        @classmethod
        def __get_pydantic_core_schema__(cls, source, handler):
            raise OSError("no schema")

    def plain(*args, **kwargs): return args, kwargs
    def first(a, /, b=1): return a
    def nonsense(*, r: "1 / 0" = 4): return r
    def default(*, r: int = Evil()): return "built"
    def typed(*, r: Type = 4): return r
    def nothing(): return None
    def fails(): return [].pop()
    def leaves(): raise SystemExit("now")
    def no(): raise ConfigErrorOfOurs("not so")
    from avalanche_peftcl.errors import DataError as ConfigErrorOfOurs

    @hookimpl
    def peftcl_metrics():
        for name, build in list(globals().items()):
            if inspect.isfunction(build) and build.__module__ == __name__ and name[:6] != "peftcl":
                yield Component(name, build, source="")
        yield Component("broken", Broken(), source="")
"""
SIGNATURE = "the signature of metric '{}' of odd 1.0 cannot be read: {}"
BUILT = "metric '{}' of odd 1.0 cannot be built: {}"


@pytest.mark.parametrize(
    ("name", "options", "form", "said"),
    [
        (
            "first",
            {"b": 2},
            BUILT,
            "TypeError: first() missing 1 required positional argument: 'a'",
        ),
        ("nonsense", {"r": 1}, SIGNATURE, "ZeroDivisionError: division by zero"),
        ("typed", {"r": 1}, SIGNATURE, "OSError: no schema"),
        ("nothing", {}, BUILT, "its builder returned None"),
        ("fails", {}, BUILT, "IndexError: pop from empty list"),
        ("leaves", {}, BUILT, "SystemExit: now"),
        ("broken", {}, SIGNATURE, "KeyboardInterrupt"),
    ],
)
def test_a_builder_that_is_broken_is_named_with_its_package(install, name, options, form, said):
    install("odd", ODD)
    with pytest.raises(ConfigError) as raised:
        discover().build("metric", name, options)
    assert str(raised.value).startswith(form.format(name, said))
    result = CliRunner().invoke(app, ["list", "metric", name])
    assert result.exit_code in (0, 2)
    assert isinstance(result.exception, SystemExit | None)


def test_builders_that_are_odd_but_work(install):
    install("odd", ODD)
    registry = discover()
    assert registry.build("metric", "plain", {"x": 1}) == ((), {"x": 1})
    assert registry.build("metric", "default") == "built"
    assert registry.build("metric", "default", {"r": 2}) == "built"
    ((*option, default),) = registry.schema("metric", "default").describe()
    assert option == ["r", "int"]
    assert default.startswith("<Evil instance")


def test_an_error_of_ours_stays_what_it_is(install):
    install("odd", ODD)
    with pytest.raises(DataError, match=r"^not so$"):
        discover().build("metric", "no")
