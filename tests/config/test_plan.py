"""The plan of a run: each component looked up, checked and completed once."""

from collections.abc import Iterable
from typing import Annotated

import pytest
from pydantic import Field

from avalanche_peftcl import Component
from avalanche_peftcl.config import ComponentConfig, RunConfig
from avalanche_peftcl.config.plan import make_plan
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import Registry
from avalanche_peftcl.registry.kinds import KINDS, Kind
from avalanche_peftcl.registry.packages import Entry, Provider


class Torchlike:
    def __init__(self, **options: object) -> None:
        self.options = options

    def parameters(self) -> Iterable[object]: ...
    def state_dict(self) -> dict[str, object]: ...
    def grow(self, n_rows: int) -> None: ...
    def forward(self, features: object) -> object: ...


class Stream:
    train_stream = test_stream = ()

    def __init__(self, **options: object) -> None:
        self.options = options


class Method:
    model, plugins = None, ()

    def __init__(self, **options: object) -> None:
        self.options = options

    def train(self) -> None: ...
    def eval(self) -> None: ...


Rank = Annotated[int, Field(ge=1)]


def whole(*, backbone, head=None, module=None, evaluator, plugins=(), lr: float = 0.1, mean=(0, 1)):
    return Method(backbone=backbone, head=head and head(7), module=module, lr=lr)


def own(*, backbone, module=None, evaluator, plugins=(), r: int = 4, lr: float = 0.1):
    return Method(module=module, r=r)


def bare(*, backbone, evaluator):
    return Method()


def unmeasured(*, backbone, head=None, module=None, plugins=()):
    return Method()


def stream(*, input_config=None, scenario: str = "class", seed: int = 0):
    return Stream(scenario=scenario, seed=seed, input_config=input_config)


def head(*, in_features: int, scale: float = 1.0):
    return Torchlike(in_features=in_features, scale=scale)


class Listener:
    def before_training(self) -> None: ...


PARTS = [
    ("backbone", Component("vit", lambda *, depth=2: Torchlike(depth=depth), source="")),
    ("module", Component("lora", lambda *, backbone, r: Torchlike(r=r), source="")),
    ("head", Component("ridge", head, source="")),
    ("head", Component("cosine", head, source="", scenarios=("class", "online"))),
    ("benchmark", Component("stream", stream, source="")),
    ("benchmark", Component("tasks", lambda: Stream(), source="", scenarios=("task",))),
    ("benchmark", Component("unsaid", lambda: Stream(), source="")),
    ("strategy", Component("whole", whole, source="")),
    ("strategy", Component("own", own, source="", own_module=("r",))),
    ("strategy", Component("bare", bare, source="")),
    ("strategy", Component("unmeasured", unmeasured, source="")),
    (
        "strategy_plugin",
        Component("classes_only", Listener, source="", scenarios=("class",)),
    ),
    ("strategy_plugin", Component("any", Listener, source="")),
]


class Counting(Registry):
    """Counts how often a component is looked up."""

    def __init__(self, parts=PARTS) -> None:
        super().__init__(
            Entry(kind, component, Provider("a-pkg", "1")) for kind, component in parts
        )
        self.asked: list[tuple[str, str]] = []

    def get(self, kind, name):
        self.asked.append((kind, name))
        return super().get(kind, name)


def config(**changed) -> RunConfig:
    settings = {"output": "run", "backbone": "vit", "benchmark": "stream", "strategy": "whole"}
    return RunConfig.model_validate(settings | changed)


FULL = {
    "seed": 5,
    "module": {"name": "lora", "r": 3},
    "head": {"name": "ridge", "scale": 2},
    "plugins": ["any", "any"],
}


def test_every_component_is_looked_up_once():
    registry = Counting()
    plan = make_plan(config(**FULL), registry)
    assert registry.asked == [
        ("backbone", "vit"),
        ("module", "lora"),
        ("head", "ridge"),
        ("benchmark", "stream"),
        ("strategy", "whole"),
        ("strategy_plugin", "any"),
        ("strategy_plugin", "any"),
    ]
    before = len(registry.asked)
    assert [e.component.name for e in plan.entries][:3] == ["vit", "lora", "ridge"]
    _ = plan.settings, plan.scenario, plan.build("backbone"), plan.with_option("head", "scale", 3.0)
    assert len(registry.asked) == before


def test_settings_are_the_defaults_and_what_was_given():
    settings = make_plan(config(**FULL), Counting()).settings
    assert settings["module"] == {"name": "lora", "r": 3}
    assert settings["head"] == {"name": "ridge", "scale": 2}
    assert settings["benchmark"] == {"name": "stream", "scenario": "class", "seed": 5}
    assert settings["strategy"] == {"name": "whole", "lr": 0.1, "mean": [0, 1]}
    assert settings["plugins"] == [{"name": "any"}] * 2
    assert (settings["metrics"], settings["output"], settings["seed"]) == ([], "run", 5)
    assert make_plan(config(), Counting()).settings["head"] is None


def test_what_a_strategy_says_of_its_own_module_is_said_where_it_makes_one_alone():
    registry, lora = Counting(), {"name": "lora", "r": 3}
    alone = make_plan(config(strategy={"name": "own", "r": 8}), registry)
    assert alone.settings["strategy"] == {"name": "own", "r": 8, "lr": 0.1}
    for given in ({}, {"r": 4}):  # the default, as records of earlier versions have it
        plan = make_plan(config(module=lora, strategy={"name": "own", "lr": 0.2} | given), registry)
        assert plan.settings["strategy"] == {"name": "own", "lr": 0.2}
        assert plan.config.strategy.options == {"lr": 0.2}
        assert plan.build("strategy", backbone=1, evaluator=1).options["r"] == 4
        settled = plan.with_option("strategy", "lr", 0.3)
        assert settled.settings["strategy"] == {"name": "own", "lr": 0.3}


def test_the_benchmark_gets_the_seed_unless_it_has_its_own_or_takes_none():
    own = make_plan(config(seed=5, benchmark={"name": "stream", "seed": 0}), Counting())
    assert own.build("benchmark").options["seed"] == 0
    given = make_plan(config(seed=5), Counting())
    assert given.build("benchmark").options["seed"] == 5
    assert given.config.benchmark == ComponentConfig(name="stream", seed=5)
    assert "seed" not in make_plan(config(benchmark="tasks"), Counting()).settings["benchmark"]


def test_building_hands_in_what_is_there():
    plan = make_plan(config(**FULL), Counting())
    vit = plan.build("backbone")
    module = plan.build("module", backbone=vit)
    built = plan.build(
        "strategy", backbone=vit, module=module, head=plan.head(vit), evaluator=1, unknown=2
    )
    assert (built.options["backbone"], built.options["module"]) == (vit, module)
    assert built.options["head"].options == {"in_features": 7, "scale": 2.0}
    assert len(plan.build_all("strategy_plugin")) == 2
    without = make_plan(config(), Counting())
    assert without.build("module", backbone=vit) is None
    assert without.head(vit) is None
    assert without.build_all("metric") == []
    built = without.build(
        "strategy", backbone=vit, module=None, head=without.head(vit), evaluator=1
    )
    assert built.options["module"] is None
    with pytest.raises(ConfigError, match="strategy 'whole' of a-pkg 1 needs evaluator, which"):
        without.build("strategy", backbone=vit)
    with pytest.raises(ConfigError, match="unknown kind 'headz'"):
        plan.build("headz")


def test_what_is_built_is_of_its_kind():
    parts = [p for p in PARTS if p[0] != "head"]
    odd = Component("ridge", lambda *, in_features: 3, source="")
    plan = make_plan(config(head="ridge"), Counting([*parts, ("head", odd)]))
    with pytest.raises(ConfigError, match="head 'ridge' of a-pkg 1 built 3, which is no head"):
        plan.build("strategy", backbone=1, head=plan.head(1), evaluator=1)


def test_an_option_may_be_settled_later():
    plan = make_plan(config(), Counting())
    other = plan.with_option("strategy", "lr", 0.5)
    assert [p.of("strategy")[0].option("lr") for p in (plan, other)] == [0.1, 0.5]
    assert other.config.strategy == ComponentConfig(name="whole", lr=0.5)
    assert other.build("strategy", backbone=1, evaluator=1).options["lr"] == 0.5
    assert other.of("strategy")[0].option("nothing_of_that_name") is None
    with pytest.raises(ConfigError, match="option 'lr' should be a valid number"):
        plan.with_option("strategy", "lr", "fast")


TASK = {"benchmark": {"name": "stream", "scenario": "task"}}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            TASK | {"plugins": ["any", "classes_only"]},
            "strategy_plugin 'classes_only' cannot serve scenario 'task'; use scenario class",
        ),
        (
            TASK | {"head": "cosine"},
            "head 'cosine' cannot serve scenario 'task'; use scenario class or online",
        ),
        (
            {"benchmark": "tasks", "head": "cosine"},
            "head 'cosine' cannot serve scenario 'task'; use scenario class or online",
        ),
        (
            {"benchmark": {"name": "stream", "scenario": "online"}, "plugins": ["classes_only"]},
            "strategy_plugin 'classes_only' cannot serve scenario 'online'; use scenario class",
        ),
        (
            {"strategy": "bare", "module": {"name": "lora", "r": 1}},
            "strategy 'bare' of a-pkg 1 takes no module; leave out the key 'module'",
        ),
        (
            {"strategy": "bare", "head": "ridge"},
            "strategy 'bare' of a-pkg 1 takes no head; leave out the key 'head'",
        ),
        (
            {"strategy": {"name": "own", "r": 8}, "module": {"name": "lora", "r": 3}},
            "strategy 'own' of a-pkg 1 makes no module where the run has one, so r=8 would have no "
            "effect: give module 'lora' its own options and leave these out, or leave out the key "
            "'module'",
        ),
        (
            {"strategy": "bare", "plugins": ["any"]},
            "strategy 'bare' of a-pkg 1 takes no plugins; leave out the key 'plugins'",
        ),
        (
            {"strategy": "unmeasured"},
            "strategy 'unmeasured' of a-pkg 1 takes no evaluator, without which no run is measured",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changed, said):
    with pytest.raises(ConfigError) as raised:
        make_plan(config(**changed), Counting())
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("changed", "planned"),
    [
        (TASK | {"plugins": ["any"], "head": "ridge"}, "vit ridge stream whole any"),
        (
            {"plugins": ["classes_only"], "head": "cosine"},
            "vit cosine stream whole classes_only",
        ),
        ({"benchmark": "tasks", "head": "ridge"}, "vit ridge tasks whole"),
        ({"benchmark": "unsaid", "head": "cosine"}, "vit cosine unsaid whole"),
        ({"strategy": "bare"}, "vit stream bare"),
    ],
)
def test_what_fits_is_planned(changed, planned):
    plan = make_plan(config(**changed), Counting())
    assert [entry.component.name for entry in plan.entries] == planned.split()


def test_a_kind_that_is_added_is_planned_and_built(monkeypatch):
    class WithSamplers(RunConfig):
        samplers: list[ComponentConfig] = Field(default_factory=list)

    def shuffled(*, output, length: Rank = 2):
        return [output] * length

    sampler = Kind(
        "sampler",
        "peftcl_samplers",
        "samplers",
        "list",
        lambda part: isinstance(part, list),
        given=frozenset({"output"}),
    )
    monkeypatch.setitem(KINDS, "sampler", sampler)
    registry = Counting([*PARTS, ("sampler", Component("shuffled", shuffled, source=""))])
    settings = {"output": "run", "backbone": "vit", "benchmark": "stream", "strategy": "whole"}

    def planned(options):
        chosen = settings | {"samplers": [{"name": "shuffled"} | options]}
        return make_plan(WithSamplers.model_validate(chosen), registry)

    plan = planned({})
    assert plan.settings["samplers"] == [{"name": "shuffled", "length": 2}]
    assert plan.entries[-1].kind == "sampler"
    assert plan.build_all("sampler", output="x") == [["x", "x"]]
    with pytest.raises(ConfigError, match="option 'length' should be greater than or equal to 1"):
        planned({"length": 0})
