"""Where options are searched."""

import math
from typing import Annotated

import pytest
from pydantic import Field

from avalanche_peftcl import Component
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.config.plan import make_plan
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.registry.ranges import Searched
from avalanche_peftcl.sweeps.space import Choice, Range, points, search_space

PARTS = {"output": "runs/a", "backbone": "vit_glyph", "benchmark": "digits"}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover()


def space_of(registry: Registry, *asked: str, **parts: object) -> dict[str, str]:
    config = RunConfig.model_validate({**PARTS, "strategy": {"name": "pegp", "lr": 0.01}, **parts})
    return {k: str(v) for k, v in search_space(make_plan(config, registry), asked).items()}


def test_what_is_annotated_is_searched_around_its_value(registry):
    found = space_of(registry)
    assert found["strategy.lr"] == "0.001 to 0.1, log"
    assert all(key.startswith("strategy.") for key in found)


def test_a_weight_of_zero_is_left_alone_and_options_of_plugins_have_their_place(registry):
    plugins = [{"name": "replay"}, {"name": "lwf", "alpha": 2.0}]
    on = space_of(registry, plugins=plugins)
    off = space_of(registry, plugins=[plugins[0], {"name": "lwf", "alpha": 0.0}])
    assert on.keys() - off.keys() == {"plugins.1.alpha"}
    assert on["plugins.1.alpha"] == "0.2 to 20, log"


def test_what_is_asked_for_is_all_that_is_searched(registry):
    asked = ["strategy.lr=1e-3..1", "strategy.momentum=0.8..0.95", "strategy.train_epochs=1..5"]
    asked.append("strategy.where=[step, gradient]")
    assert space_of(registry, *asked) == {
        "strategy.lr": "0.001 to 1, log",
        "strategy.momentum": "0.8 to 0.95",
        "strategy.train_epochs": "1 to 5",
        "strategy.where": "step, gradient",
    }


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("strategy.rl", "no option 'strategy.rl' to search.*strategy.lr"),
        ("strategy.train_epochs", "nothing says where.*strategy.train_epochs=LOW..HIGH"),
        ("strategy.lr=1..0.1", r"not LOW\.\.HIGH"),
        ("strategy.lr=a..b", r"not LOW\.\.HIGH"),
        ("strategy.lr=0.1", r"neither LOW\.\.HIGH nor a list"),
        ("strategy.lr=[0.1]", r"neither LOW\.\.HIGH nor a list"),
        ("strategy.lr=-1..1", "lr"),
        ("strategy.train_epochs=0.5..2.5", "train_epochs"),
        ("strategy.where=[step, steps]", "where"),
    ],
)
def test_what_cannot_be_searched_is_told(registry, asked, said):
    with pytest.raises(ConfigError, match=said):
        space_of(registry, asked)


def test_an_option_is_searched_once(registry):
    with pytest.raises(ConfigError, match="named twice"):
        space_of(registry, "strategy.lr", "strategy.lr=0.1..1")


def test_nothing_to_search_names_the_way(registry):
    with pytest.raises(ConfigError, match=r"--search strategy\.NAME=LOW"):
        space_of(registry, strategy={"name": "nearest_class_mean"})


def test_a_stranger_marks_an_option(registry):
    own = Annotated[float, Field(gt=0), Searched(3)]

    def build_own(*, backbone, evaluator, mine: own | None = 6.0, other: float = 1.0):
        """Build nothing."""

    entry = Entry("strategy", Component("own", build_own, source="test"), Provider("them", "1"))
    own_too = Registry([*registry.entries(), entry])
    assert space_of(own_too, strategy={"name": "own"}) == {"strategy.mine": "2 to 18, log"}


def test_points_fill_the_space_evenly_and_are_a_sequence():
    space = {"a": Range(1e-3, 1.0, log=True), "b": Range(2, 5, whole=True), "c": Choice((1, 2))}
    few, many = points(space, 17, 3), points(space, 65, 3)
    assert many[: len(few)] == few
    assert points(space, 17, 4) != few
    thirds = [math.floor(math.log10(each["a"])) for each in many]
    assert all(15 <= thirds.count(k) <= 28 for k in (-3, -2, -1))
    assert {each["b"] for each in many} == {2, 3, 4, 5}
    assert 24 <= sum(each["c"] == 1 for each in many) <= 40


def test_ends_belong_to_a_range():
    assert Range(0.123456, 0.9).at(0.0) >= 0.123456
    assert [Range(1, 3, whole=True, log=True).at(share) for share in (0.0, 1.0)] == [1, 3]
