"""What guides, examples and plugin packages use is public: it stands in an ``__all__``."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest
from guides import ROOT, blocks

import avalanche_peftcl
from avalanche_peftcl import functional

PACKAGE = avalanche_peftcl.__name__


def _sources() -> Iterator[tuple[str, str]]:
    """Yield where code stands and its text: modules of examples and plugins, blocks of guides."""
    for path in sorted([*ROOT.glob("examples/**/*.py"), *ROOT.glob("plugins/**/*.py")]):
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for block in blocks():
        if block.language == "python":
            yield str(block), block.text


def uses(code: str) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of all that ``code`` takes from the package.

    Example:
        >>> list(uses("import avalanche_peftcl as a\\nfrom avalanche_peftcl.x import b\\na.load()"))
        [('avalanche_peftcl.x', 'b'), ('avalanche_peftcl', 'load')]
    """
    tree, called = ast.parse(code), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    called[alias.asname or PACKAGE] = alias.name if alias.asname else PACKAGE
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in called
        ):
            yield called[node.value.id], node.attr


def private(code: str) -> list[str]:
    """Return what ``code`` takes from the package although it is in no ``__all__``."""
    return sorted(
        f"{module}.{name}"
        for module, name in set(uses(code))
        if name not in getattr(importlib.import_module(module), "__all__", ())
    )


SOURCES = list(_sources())


def test_there_is_something_to_look_at():
    used = {pair for _, code in SOURCES for pair in uses(code)}
    assert {("avalanche_peftcl", "hookimpl"), ("avalanche_peftcl.training", "PEGP")} <= used


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from avalanche_peftcl.models import vit_glyph, pi", ["avalanche_peftcl.models.pi"]),
        (
            "from avalanche_peftcl.models.branch import Branch",
            ["avalanche_peftcl.models.branch.Branch"],
        ),
        ("import avalanche_peftcl as a\na.cli.app()", ["avalanche_peftcl.cli"]),
        ("import avalanche_peftcl\navalanche_peftcl.load('f')", []),
    ],
)
def test_what_is_not_public_is_found(code, found):
    assert private(code) == found


@pytest.mark.parametrize(("where", "code"), SOURCES, ids=[where for where, _ in SOURCES])
def test_names_that_are_used_are_public(where, code):
    assert private(code) == []


def test_functional_lists_its_functions():
    written = set()
    for module in pkgutil.iter_modules(functional.__path__):
        inside = importlib.import_module(f"{functional.__name__}.{module.name}")
        for name, value in vars(inside).items():
            here = getattr(value, "__module__", None) == inside.__name__
            if here and not name.startswith("_") and inspect.isroutine(value):
                written.add(name)
    listed = {name for name in functional.__all__ if inspect.isroutine(getattr(functional, name))}
    assert written == listed
