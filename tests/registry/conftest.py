"""Distributions that are really installed: module and dist-info on the path."""

import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent

import pytest

from avalanche_peftcl.errors import PluginLoadWarning
from avalanche_peftcl.registry import discover, installed
from avalanche_peftcl.registry import packages as discovery

HOST = "avalanche-peftcl"
GOOD = """
    from avalanche_peftcl import Component, hookimpl

    def build(*, size: int = 3):
        return "{name}", size

    @hookimpl
    def peftcl_strategies():
        return [Component("{component}", build, source="a paper")]
"""


@pytest.fixture
def good() -> str:
    """The source of a package that offers one strategy."""
    return GOOD


@pytest.fixture
def left_out():
    """Write what is said of a package that is left out."""

    def write(package: str, cause: str, point: str = "plugin") -> str:
        ours = f"{HOST} {version(HOST)}"
        return (
            f"plugin package {package} (entry point {point!r}, with {ours}) was left out: {cause}"
        )

    return write


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a distribution on ``sys.path``; of those of this machine only our own is seen."""
    real = installed.distributions

    def visible():
        return [d for d in real() if Path(str(d.locate_file(""))) == tmp_path or d.name == HOST]

    monkeypatch.setattr(installed, "distributions", visible)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(discovery.SWITCH, raising=False)
    before = set(sys.modules)

    def put(
        name, source=GOOD, *, release="1.0", requires=(), points=None, component="good", **files
    ):
        module = name.replace("-", "_")
        source = dedent(source.replace("{name}", name).replace("{component}", component))
        (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
        info = tmp_path / f"{module}-{release}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {release}"]
        lines += [f"Requires-Dist: {r}" for r in requires]
        points = points or [f"plugin = {module}"]
        files = {
            "METADATA": "\n".join(lines).encode() + b"\n",
            "entry_points.txt": "\n".join(["[avalanche_peftcl]", *points]).encode() + b"\n",
        } | files
        for file, content in files.items():
            if content is not None:
                (info / file).write_bytes(content)

    yield put
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def discover_with_warnings():
    """Discover, and return the registry and what was said."""

    def call():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            registry = discover()
        assert all(w.category is PluginLoadWarning for w in caught)
        return registry, [str(w.message) for w in caught]

    return call
