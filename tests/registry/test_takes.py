"""Shared options: a builder that takes them is like one that lists them itself."""

import inspect
import pickle
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest
from pydantic import Field
from torch import nn

from avalanche_peftcl import takes
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import exportable
from avalanche_peftcl.registry.schema import Schema

Rate = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What both take.

    Args:
        width: Of the thing.
        lr: Learning rate,
            above 0.
        mode: One of two.
        order: Of arrival.
    """

    width: int
    lr: "Rate" = 0.1
    mode: Literal["a", "b"] = "a"
    order: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Faster(Shared):
    lr: Rate = 0.5


def by_hand(
    first: str = "x",
    *,
    backbone: object = None,
    width: int,
    lr: Rate = 0.5,
    mode: Literal["a", "b"] = "a",
    order: list[int] = [],  # noqa: B006  # what the factory of the dataclass makes
    r: "Annotated[int, Field(ge=1)]" = 4,
    **more: object,
) -> tuple:
    """Build it."""
    return first, backbone, Faster(width=width, lr=lr, mode=mode, order=order), r, more


@takes(Faster)
def taken(
    first: str = "x",
    *,
    backbone: object = None,
    options: Faster,
    r: "Annotated[int, Field(ge=1)]" = 4,
    **more: object,
) -> tuple:
    """Build it."""
    return first, backbone, options, r, more


def schema(builder) -> Schema:
    return Schema.of(builder, given=frozenset({"backbone"}), title="module 'x' of here 1.0")


def test_the_schema_is_that_of_a_builder_that_lists_them():
    assert schema(taken).describe() == schema(by_hand).describe()
    assert schema(taken).describe()[1:4] == [
        ("width", "int", ""),
        ("lr", "float (> 0, <= 1)", "0.5"),
        ("mode", "'a' | 'b'", "'a'"),
    ]
    by_name = {
        name: (p.kind, p.default) for name, p in inspect.signature(by_hand).parameters.items()
    }
    assert by_name == {
        name: (p.kind, p.default) for name, p in inspect.signature(taken).parameters.items()
    }
    assert set(taken.__annotations__) == set(by_hand.__annotations__) - {"return"}


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"width": 1, "lr": 0},
        {"width": 1, "options": 3, "lr": "fast"},
        {"width": 1, "backbone": 1},
        {"width": 1, "mode": "c", "order": ["x"]},
        {"width": 1, "r": 0},
    ],
    ids=str,
)
def test_errors_are_those_of_a_builder_that_lists_them(values):
    said = []
    for builder in (taken, by_hand):
        try:
            said.append(schema(builder).check(values))
        except ConfigError as error:
            said.append(str(error))
    assert said[0] == said[1]
    assert isinstance(said[0], str)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {"width": 3}),
        (("y",), {"width": 3, "lr": 0.2, "r": 1, "backbone": "vit"}),
        ((), {"first": "z", "width": 3, "order": [2], "deep": True}),
    ],
)
def test_it_builds_the_same(args, kwargs):
    assert taken(*args, **kwargs) == by_hand(*args, **kwargs)


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        ((), {}, "missing a required (keyword-only )?argument: 'width'"),
        (("y", "z"), {"width": 1}, "too many positional arguments"),
    ],
)
def test_a_wrong_call_is_refused_in_the_words_of_python(args, kwargs, said):
    with pytest.raises(TypeError, match=said):
        taken(*args, **kwargs)


def test_it_is_itself_elsewhere():
    assert taken.__name__ == "taken"
    assert taken.__doc__.startswith("Build it.\n\nArgs:\n    width: Of the thing.\n    lr: ")
    assert pickle.loads(pickle.dumps(taken)) is taken


class Built(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.options = options


def test_the_docstring_describes_every_argument():
    @takes(Faster)
    def build(*, r: int = 1, options: Faster) -> None:
        """Build it.

        Args:
            r: Rank.
            mode: Which one.
            options: The others.

        Returns:
            Nothing.
        """

    assert inspect.getdoc(build) == inspect.cleandoc("""
        Build it.

        Args:
            r: Rank.
            mode: Which one.
            width: Of the thing.
            lr: Learning rate,
                above 0.
            order: Of arrival.

        Returns:
            Nothing.
        """)


def test_a_fixed_field_is_no_option_and_is_handed_on():
    @dataclass(frozen=True, kw_only=True)
    class OneMode(Shared):
        mode: Literal["a", "b"] = field(default="b", init=False)

    @takes(OneMode)
    def build(*, options: OneMode) -> dict[str, object]:
        return vars(options)

    assert "mode" not in inspect.signature(build).parameters
    assert build(width=1) == {"width": 1, "lr": 0.1, "mode": "b", "order": []}
    with pytest.raises(TypeError, match="unexpected keyword argument 'mode'"):
        build(width=1, mode="a")


def test_what_it_builds_can_be_exported():
    @exportable
    @takes(Faster)
    def build(*, backbone: object, options: Faster) -> Built:
        return Built(options)

    spec = build(backbone=None, width=2).export_spec
    assert dict(spec.options) == {"width": 2, "lr": 0.5, "mode": "a", "order": []}


def test_a_class_takes_them_in_its_init():
    class Thing:
        @takes(Shared)
        def __init__(self, *, options: Shared) -> None:
            self.options = options

    assert Thing(width=2).options == Shared(width=2)
    assert [row[0] for row in schema(Thing).describe()] == ["width", "lr", "mode", "order"]


def test_what_cannot_take_them_is_refused():
    with pytest.raises(ConfigError, match=r"takes\(\) needs a dataclass of options, got 3"):
        takes(3)
    with pytest.raises(ConfigError, match="takes no keyword-only argument 'options'; give it one"):
        takes(Shared)(lambda options: options)
    with pytest.raises(ConfigError, match="that its options hold too: lr; to change a default"):
        takes(Shared)(lambda *, lr, options: options)

    @dataclass
    class Unknown:
        a: "NotThere" = 1  # noqa: F821  # on purpose

    with pytest.raises(ConfigError, match="the annotations of Unknown name what is not there"):
        takes(Unknown)
