"""Packages that are damaged in any way: left out alone, with one line that says why."""

import signal

import pytest

from avalanche_peftcl.registry import discover

BROKEN = {
    "import": (
        "import nowhere_to_be_found",
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    ),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "keyboard": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "generator exit": ("raise GeneratorExit", "GeneratorExit"),
    "no exception": (
        "class Odd(BaseException):\n    def __str__(self): 1 / 0\nraise Odd",
        "Odd",
    ),
    "None": (
        lambda good: good.replace("return [", "return None and ["),
        "hook peftcl_strategies must return an iterable of Component, not None",
    ),
    "text": (
        lambda good: good.replace("return [", "return 'good' or ["),
        "hook peftcl_strategies must return an iterable of Component, not 'good'",
    ),
    "without end": (
        lambda good: good.replace("return [", "i = iter(int, 1)\n        return (")
        .replace("a paper\")]", "a paper\") for _ in i)")
        .replace("\"{component}\"", "f\"a{next(n)}\"")
        .replace("def build", "import itertools\n    n = itertools.count()\n    def build"),
        "hook peftcl_strategies offers more than 10000 components",
    ),
    "arguments": (
        lambda good: good.replace("peftcl_strategies()", "peftcl_strategies(x)"),
        None,
    ),
    "source": (
        lambda good: good.replace("\"a paper\"", "None"),
        "component 'good': source=None is no text; name the paper or code that it follows",
    ),
    "build": (
        lambda good: good.replace("build, ", "7, "),
        "component 'good': build=7 is neither a callable nor an import path",
    ),
    "path": (
        lambda good: good.replace("build, ", "'a b:c', "),
        "component 'good': build='a b:c' is not an import path of the form "
        "\"package.module:attribute\"",
    ),
    "no name": (
        lambda good: good.replace("\"{component}\"", "None"),
        "component name None is not lower_snake_case (letters, digits and single underscores, "
        "starting with a letter)",
    ),
    "a subclass that checks nothing": (
        lambda good: good.replace("Component(", "Lax(")
        .replace("a paper\"", "a\" and None")
        .replace(
            "def build",
            "class Lax(Component):\n        def __post_init__(self): pass\n\n    def build"
        ),
        "component 'good': source=None is no text; name the paper or code that it follows",
    ),
    "misspelt": (
        lambda good: good.replace("peftcl_strategies", "peftcl_strategys"),
        "unknown hook 'peftcl_strategys' (did you mean 'peftcl_strategies'?); the hooks are "
        "peftcl_backbones, peftcl_modules, peftcl_heads, peftcl_benchmarks, peftcl_strategies, "
        "peftcl_strategy_plugins, peftcl_metrics, peftcl_loggers",
    ),
    "no hook": ("x = 1", "it has no hook; decorate a function with @avalanche_peftcl.hookimpl"),
    "name": (
        lambda good: good.replace("{component}", "Bad-Name"),
        "component name 'Bad-Name' is not lower_snake_case (letters, digits and single "
        "underscores, starting with a letter)",
    ),
    "raises": (
        lambda good: good + """
    @hookimpl
    def peftcl_metrics():
        raise RuntimeError('no\\n luck')
""",
        "RuntimeError: no luck",
    ),
    "generator raises": (
        lambda good: good.replace("return [", "yield from [") + "        1 / 0\n",
        "ZeroDivisionError: division by zero",
    ),
    "not a list": (
        lambda good: good.replace("return [Component", "return Component")
        .replace("paper\")]", "paper\")"),
        None,
    ),
    "not a component": (
        lambda good: good.replace("return [", "return ['good'] or ["),
        "hook peftcl_strategies must offer Component, not 'good'",
    ),
    "twice": (
        lambda good: good.replace("a paper\")]", "a paper\")] * 2"),
        "it offers strategy 'good' twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_package_is_left_out_alone(install, discover_with_warnings, case, left_out, good):
    source, cause = BROKEN[case]
    source = source(good) if callable(source) else source
    install("broken", source, release="0.3")
    install("a-good-one", component="first")
    install("z-good-one", component="last")
    registry, said = discover_with_warnings()
    names = registry.names("strategy")
    assert "first" in names
    assert "last" in names
    assert "good" not in names
    (record,) = [r for r in registry.plugins if not r.loaded]
    assert str(record.provider) == "broken 0.3"
    if cause is None:
        assert record.cause.startswith(
            ("hook peftcl_strategies must return an iterable of Component", "PluginValidationError")
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
def test_a_package_for_another_version_is_left_out_before_it_is_imported(
    install, discover_with_warnings, requires, cause, left_out
):
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
def test_a_package_for_this_version_is_loaded(install, discover_with_warnings, requires):
    install("good-pkg", requires=[requires])
    registry, said = discover_with_warnings()
    assert said == []
    assert "good" in registry.names("strategy")


def test_one_entry_point_of_a_package_may_fail(install, discover_with_warnings, tmp_path, left_out):
    install("two-points", points=["bad = nowhere_at_all", "good = two_points"])
    registry, said = discover_with_warnings()
    cause = "ModuleNotFoundError: No module named 'nowhere_at_all'"
    assert said == [left_out("two-points 1.0", cause, "bad")]
    assert [(r.entry_point, r.loaded) for r in registry.plugins[1:]] == [
        ("bad", False),
        ("good", True),
    ]
    assert "good" in registry.names("strategy")


def test_one_package_cannot_offer_a_name_from_two_entry_points(
    install, discover_with_warnings, left_out
):
    install("two-points", points=["a = two_points", "b = two_points"])
    registry, said = discover_with_warnings()
    assert said == [left_out("two-points 1.0", "it offers strategy 'good' twice", "b")]
    assert registry.get("strategy", "good").provider.name == "two-points"


INTERRUPTED = """
    import os, signal, time
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    {more}
"""


@pytest.mark.parametrize(
    "more", ["finally: pass", "except BaseException: pass", "except BaseException: 1 / 0"]
)
def test_a_real_interrupt_during_an_import_stops_the_program(install, more):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        install("slow", INTERRUPTED.replace("{more}", more))
        with pytest.raises(KeyboardInterrupt):
            discover()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
