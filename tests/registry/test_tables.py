"""What is installed, on a terminal of 80 letters."""

import io

import pytest
from rich.console import Console

from avalanche_peftcl.errors import PluginLoadWarning
from avalanche_peftcl.registry import discover
from avalanche_peftcl.registry.tables import (
    component_json,
    component_page,
    component_table,
    components_json,
    package_table,
)


def shown(*parts, width=80):
    console = Console(width=width, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def test_at_80_columns_every_component_stands_in_one_piece_below_its_kind():
    registry = discover()
    text = shown(component_table(registry, width=80))
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= 80
    kind, found = "", []
    for line in lines:
        if line.strip() in registry.kinds:
            kind = line.strip()
        elif line.startswith("   ") and not line.startswith("    "):
            name, provider = line.split()[:2]
            found.append((kind, name, provider))
    assert found == [(e["kind"], e["name"], e["provider"]) for e in components_json(registry)]


def test_at_80_columns_options_have_lines_of_their_own():
    registry = discover()
    text = shown(*component_page(registry, "strategy", "pegp", width=80))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    whole = " ".join(text.split())
    for option in component_json(registry, "strategy", "pegp")["options"]:
        assert f"{option['name']} {option['type']}, " in whole
        assert " ".join(option["text"].split()) in whole


def test_at_80_columns_what_is_to_be_said_of_a_package_stands_below(install):
    install("broken", "import nowhere_to_be_found")
    with pytest.warns(PluginLoadWarning):
        registry = discover()
    text = shown(package_table(registry, width=80))
    head, remark = text.split("broken: ")
    assert "left out" in head
    assert " ".join(remark.split()).startswith("ModuleNotFoundError: No module named")
