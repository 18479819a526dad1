"""Options in words: what docstrings say of them, and what JSON may stand for them."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from avalanche_peftcl import Component
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.described import descriptions
from avalanche_peftcl.registry.kinds import KINDS, kind_of
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.registry.registry import schema_of
from avalanche_peftcl.registry.schema import Schema
from avalanche_peftcl.registry.tables import broken_builders


class Sphinx:
    """A class as Avalanche documents it."""

    def __init__(self, alpha: float, mem_size=200):
        """Make it.

        :param alpha: how strong it is,
            from 0 on.
        :param int mem_size: images

        More text.
        """


class Google:
    """A class of ours.

    Args:
        weight: Of the term, see :class:`title <a.b>` and :math:`\\mu`.
        short (int): In ``floats``.

    Raises:
        ValueError: never.
    """


def build(*, weight: float = 1.0, own: int = 2) -> "Google":
    """Build it.

    Args:
        own: What the function says itself.
    """


def test_docstrings_of_both_customs_are_read():
    assert descriptions(Sphinx) == {"alpha": "how strong it is, from 0 on.", "mem_size": "images"}
    assert descriptions(Google) == {
        "weight": "Of the term, see title and mu.",
        "short": "In floats.",
    }


def test_a_docstring_that_cannot_be_read_says_nothing():
    def odd(*, a: int = 1):
        """Odd.

        Args:
        no entry here
        """

    assert descriptions(odd) == {}


def test_what_a_function_does_not_say_the_class_says_that_it_returns():
    told = descriptions(build)
    assert told["own"] == "What the function says itself."
    assert told["weight"].startswith("Of the term")
    assert descriptions(lambda x: x) == {}


def test_every_option_that_is_offered_here_is_described():
    mute = [
        f"{entry.kind} {entry.component.name} {option.name}"
        for entry in discover().entries()
        if entry.provider.name.startswith(("avalanche-peftcl", "peftcl-"))
        for option in schema_of(entry).told()
        if not option.text
    ]
    assert mute == []


def test_an_option_is_a_schema_with_range_and_default():
    def build(
        *,
        r: Annotated[int, Field(ge=1, le=9)] = 4,
        mode: Literal["a", "b"] | None = None,
        lr: float,
        odd: object = object(),
    ): ...

    told = {o.name: o for o in Schema.of(build, given=frozenset(), title="it").told()}
    assert told["r"].schema == {"type": "integer", "minimum": 1, "maximum": 9, "default": 4}
    assert told["mode"].schema["anyOf"] == [
        {"enum": ["a", "b"], "type": "string"},
        {"type": "null"},
    ]
    assert told["lr"].required
    assert told["lr"].schema == {"type": "number"}
    assert "default" not in told["odd"].schema


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_known_in_the_singular_and_plural(kind):
    plural = KINDS[kind].hook.removeprefix("peftcl_")
    assert kind_of(plural) is kind_of(kind) is kind_of(plural.replace("_", "-"))


def test_builders_that_cannot_be_read_are_told():
    def unreadable(*, r: "Nowhere"): ...  # noqa: F821 (that is the fault)

    offered: list[Any] = [
        Component("good", build, source="test"),
        Component("gone", "no_such_module:build", source="test"),
        Component("bad", unreadable, source="test"),
    ]
    registry = Registry([Entry("module", each, Provider("them", "1")) for each in offered])
    told = dict(broken_builders(registry))
    assert sorted(told) == ["module them/bad", "module them/gone"]
    assert "No module named 'no_such_module'" in told["module them/gone"]
    assert "Nowhere" in told["module them/bad"]
