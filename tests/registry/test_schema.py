import functools
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.schema import Schema


def build(
    *,
    backbone: object = None,
    r: Annotated[int, Field(ge=1, le=8)] = 4,
    mode: Literal["a", "b"] = "a",
    scale: tuple[float, float] = (0.05, 1.0),
    path: Path | None = None,
    order: list[int] | None = None,
    schema: bool = False,
    plain=1,
):
    return r, mode, scale, path, order, schema, plain


def required(a: int, *, b: float):
    return a, b


def passes_on(name: str, **more):
    return name, more


def strings(*, r: "Annotated[int, Field(ge=1)]" = 4, other: "NotThere | None" = None):  # noqa: F821
    return r


def strings_that_resolve(*, backbone: "NotThere", r: "Annotated[int, Field(ge=1)]" = 4):  # noqa: F821
    return r


class Thing:
    def __init__(self, *, r: "Annotated[int, Field(ge=1)]" = 4) -> None:
        self.r = r

    def __call__(self, *, n: "Annotated[int, Field(ge=1)]" = 2) -> int:
        return n


def schema(builder, given=frozenset({"backbone"})) -> Schema:
    return Schema.of(builder, given=given, title="module 'x' of here 1.0")


def problems(builder, values) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        schema(builder).check(values)
    lines = str(raised.value).split("\n")
    assert lines[0] == "module 'x' of here 1.0:"
    return [line.strip() for line in lines[1 : lines.index("the options there are:")]]


def test_describe():
    assert schema(build).describe() == [
        ("r", "int (>= 1, <= 8)", "4"),
        ("mode", "'a' | 'b'", "'a'"),
        ("scale", "tuple[float, float]", "(0.05, 1.0)"),
        ("path", "Path | None", "None"),
        ("order", "list[int] | None", "None"),
        ("schema", "bool", "False"),
        ("plain", "any", "1"),
    ]
    assert schema(required).describe() == [("a", "int", ""), ("b", "float", "")]
    assert schema(passes_on).describe()[-1] == ("**more", "further options", "")


def test_values_are_converted_and_defaults_left_to_the_builder():
    given = {"scale": [0, 1], "path": "x", "order": (1, 2), "schema": True, "r": 2.0, "plain": []}
    checked = schema(build).check(given)
    assert checked == {
        "scale": (0.0, 1.0),
        "path": Path("x"),
        "order": [1, 2],
        "schema": True,
        "r": 2,
        "plain": [],
    }
    assert build(**checked)[1] == "a"
    assert schema(build).check({}) == {}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"r": 0}, "option 'r' should be greater than or equal to 1, got 0"),
        ({"r": 9}, "option 'r' should be less than or equal to 8, got 9"),
        ({"r": None}, "option 'r' should be a valid integer, got None"),
        ({"r": True}, "option 'r' should be int (>= 1, <= 8), got True"),
        ({"r": "2"}, "option 'r' should be int (>= 1, <= 8), got '2'"),
        ({"schema": 1}, "option 'schema' should be bool, got 1"),
        ({"mode": "c"}, "option 'mode' should be 'a' or 'b', got 'c'"),
        ({"order": [1, "x"]}, "option 'order' [1] should be a valid integer"),
        ({"scale": [1]}, "option 'scale' [1] is required"),
        ({"modes": "a"}, "unknown option 'modes' (did you mean 'mode'?)"),
        ({"zzz": 1}, "unknown option 'zzz'"),
        ({"backbone": 1}, "'backbone' is handed in by the run and is not an option"),
    ],
)
def test_one_problem(values, problem):
    (said,) = problems(build, values)
    assert said.startswith(problem)


def test_every_problem_has_its_line():
    assert problems(build, {"r": 0, "mode": 1, "x": 2}) == [
        "unknown option 'x'",
        "option 'r' should be greater than or equal to 1, got 0",
        "option 'mode' should be 'a' or 'b', got 1",
    ]


def test_required_options():
    assert problems(required, {"a": 1}) == ["option 'b' is required"]
    assert problems(required, {}) == ["option 'a' is required", "option 'b' is required"]


def test_further_options_pass():
    assert schema(passes_on).check({"name": "x", "depth": 2}) == {"name": "x", "depth": 2}
    assert problems(passes_on, {"name": "x", "backbone": 1}) == [
        "'backbone' is handed in by the run and is not an option"
    ]


@pytest.mark.parametrize(
    "builder",
    [strings_that_resolve, Thing, functools.partial(Thing, r=3)],
    ids=["function", "class", "partial"],
)
def test_annotations_written_as_strings(builder):
    assert schema(builder).check({"r": 2.0}) == {"r": 2}
    assert problems(builder, {"r": 0}) == ["option 'r' should be greater than or equal to 1, got 0"]


def test_a_callable_object():
    assert schema(Thing()).describe() == [("n", "int (>= 1)", "2")]


def test_no_options():
    with pytest.raises(ConfigError, match="unknown option 'a'\nit has no options"):
        schema(lambda: None).check({"a": 1})


@pytest.mark.parametrize("builder", [strings, 3])
def test_signatures_that_cannot_be_read(builder):
    with pytest.raises(ConfigError, match=r"signature of module 'x' of here 1\.0 cannot be read"):
        schema(builder)
