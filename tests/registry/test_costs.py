"""Formulas of costs: what they come to, what is none, how they are shown."""

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from avalanche_peftcl import Component, Costs
from avalanche_peftcl.cli import app
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import discover
from avalanche_peftcl.registry.costs import SYMBOLS, value
from avalanche_peftcl.registry.tables import cost_table


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("3", 3.0),
        ("D + D^2", 20.0),
        ("2*L*D*r + T", 51.0),
        ("(D - 1)/2", 1.5),
        ("L*(2*D*r + r + D)", 66.0),
    ],
)
def test_what_a_formula_comes_to(formula, expected):
    assert value(formula, D=4, L=3, r=2, T=3) == expected


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        ("D +", "is no formula"),
        ("X + 1", "has 'X'; there are 'T', 'C1', 'D'"),
        ("max(D, 1)", "has more than numbers"),
        ("-D", "has more than numbers"),
        ("D.real", "has more than numbers"),
        ("'D'", "has more than numbers"),
        (4, "is no text"),
    ],
)
def test_what_is_no_formula(formula, said):
    with pytest.raises(ConfigError, match=said):
        Costs(per_class=formula)


@pytest.mark.parametrize("options", [{"at_most": True}, {"at_most": ("tests",)}])
def test_what_cannot_be_the_most(options):
    with pytest.raises(ConfigError, match=r"at_most=.* is not a tuple of some of 'step', 'test'"):
        Costs(**options)


def test_other_costs_are_refused():
    with pytest.raises(ConfigError, match="needs_length=1 is not true or false"):
        Costs(needs_length=1)
    with pytest.raises(ConfigError, match="component 'thing': costs='1' is no Costs"):
        Component("thing", "a:b", source="", costs="1")


def test_what_is_stored_adds_up():
    costs = Costs(per_class="T*D", per_experience="r", once="P")
    assert costs.stored(T=3, D=10, r=4, P=100, classes=5) == 5 * 30 + 3 * 4 + 100


@pytest.mark.parametrize("width", [80, 200])
def test_each_strategy_stands_in_the_table(width, monkeypatch):
    monkeypatch.setenv("AVALANCHE_PEFTCL_PLUGINS", "")
    console = Console(width=width, file=io.StringIO())
    console.print(cost_table(discover(), width=width))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).replace("│", " ").split())
    for entry in discover().entries("strategy"):
        costs, served = entry.component.costs, ", ".join(entry.component.scenarios)
        assert f"{entry.component.name} {served}" in text
        assert costs.per_class in text
        assert costs.once in text
    assert all(f"{symbol}: {meaning}" in text for symbol, meaning in SYMBOLS.items())
    result = CliRunner().invoke(app, ["list", "strategies", "--costs"])
    assert result.exit_code == 0
    assert "<= P + L*(D^2 + r^2)" in result.stdout


def test_a_program_reads_them_too(monkeypatch):
    monkeypatch.setenv("AVALANCHE_PEFTCL_PLUGINS", "")
    told = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    costs = {each["name"]: each["costs"] for each in told if each["kind"] == "strategy"}
    assert costs["ntk_cl"]["step"] == "4"
    assert costs["pegp"]["at_most"] == ["step", "once"]
    assert not any(each["costs"] for each in told if each["kind"] != "strategy")


@pytest.mark.parametrize("words", [["heads"], [], ["strategy", "naive"]])
def test_costs_are_those_of_strategies(words):
    result = CliRunner().invoke(app, ["list", *words, "--costs"])
    assert result.exit_code != 0
    assert "write: peftcl list strategies --costs" in str(result.exception) + result.stderr
