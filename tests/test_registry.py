"""Discovery of distributions that are really installed: module and dist-info on the path."""

import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent

import pytest

from avalanche_peftcl import discovery
from avalanche_peftcl.errors import (
    AmbiguousComponentError,
    ConfigError,
    PEFTCLError,
    PluginLoadWarning,
    UnknownComponentError,
)
from avalanche_peftcl.registry import Provider, discover

HOST = "avalanche-peftcl"
OURS = f"{HOST} {version(HOST)}"
GOOD = """
    from avalanche_peftcl import Component, hookimpl

    def build(*, size: int = 3):
        return "{name}", size

    @hookimpl
    def peftcl_strategies():
        return [Component("{component}", build, source="a paper")]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a distribution on ``sys.path``; of those of this machine only our own is seen."""
    real = discovery.distributions

    def visible():
        return [d for d in real() if d.name == HOST or Path(str(d.locate_file(""))) == tmp_path]

    monkeypatch.setattr(discovery, "distributions", visible)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(discovery.SWITCH, raising=False)
    before = set(sys.modules)

    def put(name, source, *, release="1.0", requires=(), points=None, component="good"):
        module = name.replace("-", "_")
        source = dedent(source.format(name=name, component=component))
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{module}-{release}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {release}"]
        lines += [f"Requires-Dist: {r}" for r in requires]
        (info / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
        points = points or [f"plugin = {module}"]
        text = "\n".join(["[avalanche_peftcl]", *points]) + "\n"
        (info / "entry_points.txt").write_text(text, encoding="utf-8")

    yield put
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def left_out(package: str, cause: str, point: str = "plugin") -> str:
    return f"plugin package {package} (entry point {point!r}, with {OURS}) was left out: {cause}"


def discover_with_warnings():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry = discover()
    assert all(w.category is PluginLoadWarning for w in caught)
    return registry, [str(w.message) for w in caught]


def test_only_the_built_in(install):
    registry, said = discover_with_warnings()
    assert said == []
    assert [str(r.provider) for r in registry.plugins] == [OURS]
    assert registry.kinds == (
        "backbone",
        "module",
        "benchmark",
        "strategy",
        "strategy_plugin",
        "metric",
        "logger",
    )
    assert {e.kind for e in registry.entries()} == set(registry.kinds)


def test_good_package(install):
    install("good-pkg", GOOD)
    registry, said = discover_with_warnings()
    assert said == []
    entry = registry.get("strategy", "good")
    assert entry.provider == Provider("good-pkg", "1.0")
    assert registry.get("strategy", "good-pkg/good") is entry
    assert registry.get("strategy", "Good_Pkg/good") is entry
    assert registry.build("strategy", "good", {"size": 5}) == ("good-pkg", 5)


BROKEN = {
    "import": (
        "import nowhere_to_be_found",
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    ),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "misspelt": (
        GOOD.replace("peftcl_strategies", "peftcl_strategys"),
        "unknown hook 'peftcl_strategys' (did you mean 'peftcl_strategies'?); the hooks are "
        "peftcl_backbones, peftcl_modules, peftcl_benchmarks, peftcl_strategies, "
        "peftcl_strategy_plugins, peftcl_metrics, peftcl_loggers",
    ),
    "no hook": ("x = 1", "it has no hook; decorate a function with @avalanche_peftcl.hookimpl"),
    "name": (
        GOOD.replace("{component}", "Bad-Name"),
        "component name 'Bad-Name' is not lower_snake_case (letters, digits and single "
        "underscores, starting with a letter)",
    ),
    "raises": (
        GOOD + """
    @hookimpl
    def peftcl_metrics():
        raise RuntimeError('no\\n luck')
""",
        "RuntimeError: no luck",
    ),
    "generator raises": (
        GOOD.replace("return [", "yield from [") + "        1 / 0\n",
        "ZeroDivisionError: division by zero",
    ),
    "not a list": (
        GOOD.replace("return [Component", "return Component").replace("paper\")]", "paper\")"),
        None,
    ),
    "not a component": (
        GOOD.replace("return [", "return ['good'] or ["),
        "hook peftcl_strategies must offer Component, not 'good'",
    ),
    "twice": (
        GOOD.replace("a paper\")]", "a paper\")] * 2"),
        "it offers strategy 'good' twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_is_left_out_alone(install, case):
    source, cause = BROKEN[case]
    install("broken", source, release="0.3")
    install("a-good-one", GOOD, component="first")
    install("z-good-one", GOOD, component="last")
    registry, said = discover_with_warnings()
    names = registry.names("strategy")
    assert "first" in names
    assert "last" in names
    assert "good" not in names
    (record,) = [r for r in registry.plugins if not r.loaded]
    assert str(record.provider) == "broken 0.3"
    if cause is None:
        assert record.cause.startswith(
            "hook peftcl_strategies must return an iterable of Component"
        )
    else:
        assert record.cause == cause
    assert said == [left_out("broken 0.3", record.cause)]


@pytest.mark.parametrize(
    ("requires", "cause"),
    [
        (["avalanche-peftcl<0.0.1"], "it requires avalanche-peftcl<0.0.1"),
        (["torch", "Avalanche.PEFTCL >= 99"], "it requires avalanche-peftcl>=99"),
        (["avalanche-peftcl>=99; python_version > '3'"], "it requires avalanche-peftcl>=99"),
    ],
)
def test_a_package_for_another_version_is_left_out_before_it_is_imported(install, requires, cause):
    install("other-age", "raise RuntimeError('imported')", requires=requires)
    registry, said = discover_with_warnings()
    assert said == [left_out("other-age 1.0", cause)]
    assert registry.plugins[-1].cause == cause


@pytest.mark.parametrize(
    "requires",
    [
        "avalanche-peftcl",
        "avalanche-peftcl>=0.0.1",
        "avalanche-peftcl>=99; extra == 'x'",
        "torch<0",
    ],
)
def test_a_package_for_this_version_is_loaded(install, requires):
    install("good-pkg", GOOD, requires=[requires])
    registry, said = discover_with_warnings()
    assert said == []
    assert "good" in registry.names("strategy")


def test_same_entry_point_name_in_two_distributions(install):
    install("pkg-a", GOOD, component="one")
    install("pkg-b", GOOD, component="two")
    registry = discover()
    assert registry.build("strategy", "one") == ("pkg-a", 3)
    assert registry.build("strategy", "two") == ("pkg-b", 3)


def test_one_entry_point_of_a_package_may_fail(install, tmp_path):
    install("two-points", GOOD, points=["bad = nowhere_at_all", "good = two_points"])
    registry, said = discover_with_warnings()
    cause = "ModuleNotFoundError: No module named 'nowhere_at_all'"
    assert said == [left_out("two-points 1.0", cause, "bad")]
    assert [(r.entry_point, r.loaded) for r in registry.plugins[1:]] == [
        ("bad", False),
        ("good", True),
    ]
    assert "good" in registry.names("strategy")


def test_one_package_cannot_offer_a_name_from_two_entry_points(install):
    install("two-points", GOOD, points=["a = two_points", "b = two_points"])
    registry, said = discover_with_warnings()
    assert said == [left_out("two-points 1.0", "it offers strategy 'good' twice", "b")]
    assert registry.get("strategy", "good").provider.name == "two-points"


def test_clash_nobody_wins(install):
    install("pkg-b", GOOD, release="2.0")
    install("pkg-a", GOOD)
    registry, said = discover_with_warnings()
    assert said == []
    with pytest.raises(AmbiguousComponentError) as raised:
        registry.get("strategy", "good")
    assert str(raised.value) == (
        "strategy 'good' is offered by 2 packages (pkg-a 1.0, pkg-b 2.0); "
        "write 'pkg-a/good' or 'pkg-b/good'"
    )
    assert isinstance(raised.value, PEFTCLError)
    assert isinstance(raised.value, LookupError)
    assert registry.build("strategy", "pkg-a/good") == ("pkg-a", 3)
    assert registry.build("strategy", "pkg-b/good") == ("pkg-b", 3)
    assert {"pkg-a/good", "pkg-b/good"} <= set(registry.names("strategy"))


def test_clash_with_a_built_in(install):
    install("pkg-a", GOOD, component="ntk_cl")
    registry = discover()
    with pytest.raises(
        AmbiguousComponentError, match=r"'avalanche-peftcl/ntk_cl' or 'pkg-a/ntk_cl'"
    ):
        registry.get("strategy", "ntk_cl")
    assert registry.get("strategy", "avalanche-peftcl/ntk_cl").provider.name == HOST


def test_same_name_in_two_kinds_is_no_clash(install):
    install("pkg-a", GOOD, component="ewc")
    registry = discover()
    assert registry.get("strategy", "ewc").provider.name == "pkg-a"
    assert registry.get("strategy_plugin", "ewc").provider.name == HOST


def test_unknown_name_says_what_is_known_and_what_was_left_out(install):
    install("broken", "import nowhere_to_be_found")
    registry, _ = discover_with_warnings()
    with pytest.raises(UnknownComponentError) as raised:
        registry.get("strategy", "ntk_kl")
    assert str(raised.value) == (
        "unknown strategy 'ntk_kl' (did you mean 'ntk_cl'?); known: naive, nearest_class_mean, "
        "ntk_cl, pegp; left out: broken 1.0 (ModuleNotFoundError: No module named "
        "'nowhere_to_be_found')"
    )
    assert isinstance(raised.value, LookupError)


def test_unknown_name_without_a_near_one(install):
    with pytest.raises(UnknownComponentError) as raised:
        discover().get("strategy", "zzz")
    assert str(raised.value) == (
        "unknown strategy 'zzz'; known: naive, nearest_class_mean, ntk_cl, pegp"
    )


def test_wrong_package_in_front_of_a_name(install):
    with pytest.raises(UnknownComponentError, match=r"'other/ntk_cl' \(did you mean 'ntk_cl'\?\)"):
        discover().get("strategy", "other/ntk_cl")


def test_unknown_kind(install):
    with pytest.raises(ConfigError) as raised:
        discover().entries("strategies")
    assert str(raised.value) == (
        "unknown kind 'strategies' (did you mean 'strategy'?); the kinds are backbone, module, "
        "benchmark, strategy, strategy_plugin, metric, logger"
    )


def test_switch_unset_loads_all_empty_none_and_a_list_those(install, monkeypatch):
    install("pkg-a", GOOD, component="one")
    install("pkg-b", GOOD, component="two")

    def loaded():
        registry, said = discover_with_warnings()
        assert said == []
        return [r.provider.name for r in registry.plugins if r.loaded]

    assert loaded() == [HOST, "pkg-a", "pkg-b"]
    monkeypatch.setenv(discovery.SWITCH, "")
    assert loaded() == [HOST]
    monkeypatch.setenv(discovery.SWITCH, " Pkg_B , ")
    assert loaded() == [HOST, "pkg-b"]
    registry = discover()
    with pytest.raises(UnknownComponentError) as raised:
        registry.get("strategy", "one")
    assert str(raised.value).endswith("left out: pkg-a 1.0 (not named in AVALANCHE_PEFTCL_PLUGINS)")


def test_switch_names_what_is_not_installed(install, monkeypatch):
    install("pkg-a", GOOD)
    monkeypatch.setenv(discovery.SWITCH, "pkg-a,pkg-x")
    registry, said = discover_with_warnings()
    assert said == [
        "AVALANCHE_PEFTCL_PLUGINS names 'pkg-x', but no installed distribution of that name has "
        "an entry point in group 'avalanche_peftcl'; those that have: avalanche-peftcl, pkg-a"
    ]
    assert "good" in registry.names("strategy")


def test_a_switched_off_package_is_not_imported(install, monkeypatch):
    install("broken", "raise RuntimeError('imported')")
    monkeypatch.setenv(discovery.SWITCH, "")
    _, said = discover_with_warnings()
    assert said == []


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
def test_a_builder_that_cannot_be_imported(install, name, message):
    install("lazy", LAZY)
    registry, said = discover_with_warnings()
    assert said == []
    with pytest.raises(ConfigError) as raised:
        registry.build("metric", name)
    assert str(raised.value) == message


def test_wrong_options_name_kind_name_option_and_what_there_is(install):
    install("good-pkg", GOOD)
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
