"""What objects of all kinds remember, said by name, by attributes, or for them."""

import re
from collections import Counter, OrderedDict, defaultdict, deque
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import Accuracy, Mean
from avalanche.training.plugins import EWCPlugin
from torch import nn

from avalanche_peftcl.checkpoints import (
    Surroundings,
    host_state,
    load_host_state,
    load_state_of,
    state_of,
)
from avalanche_peftcl.checkpoints.archive import decode_state, encode_state
from avalanche_peftcl.errors import CheckpointError

AROUND = Surroundings(None)


def carry(old, new):
    """Bring ``new`` to the state of ``old``, through the bytes of a file."""
    load_state_of(new, decode_state(encode_state(state_of(old, AROUND)), "it"), AROUND)
    return new


class Thing:
    """Something with the attributes that it is given."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


class Kept(Thing):
    remembers = ("a",)


class KeptMore(Kept):
    remembers = ("b",)


def mean(value):
    filled = Mean()
    filled.update(value)
    return filled


VALUES = {
    "plain": (lambda: {"a": [1, (2.5, "x"), {3}, None], (1, 2): True}, lambda: None),
    "tensor": (lambda: torch.arange(3), lambda: torch.zeros(7)),
    "array": (lambda: np.arange(6.0).reshape(2, 3), lambda: None),
    "number of numpy": (lambda: np.int64(3), lambda: 0),
    "deque": (lambda: deque([1, 2], maxlen=3), deque),
    "frozenset": (lambda: frozenset({1}), lambda: None),
    "counter": (lambda: Counter("aab"), Counter),
    "ordered": (lambda: OrderedDict(b=1, a=np.zeros(2)), lambda: None),
    "list of arrays": (lambda: [np.zeros(2), [np.ones(1)]], list),
    "defaultdict": (lambda: defaultdict(list, {1: [2]}), lambda: defaultdict(list)),
}


def told(value):
    """Return a value in words, kinds and defaults included."""
    extra = getattr(value, "maxlen", getattr(value, "default_factory", None))
    return f"{type(value).__name__} {value!r} {extra!r}"


@pytest.mark.parametrize("kind", [Thing, Kept])
@pytest.mark.parametrize("value", VALUES)
def test_values_come_back_with_their_kind(kind, value):
    filled, empty = VALUES[value]
    got = carry(kind(a=filled()), kind(a=empty())).a
    expected = filled().item() if value == "number of numpy" else filled()
    assert told(got) == told(expected)


def test_metrics_of_the_host_come_back_wherever_they_stand():
    accuracies = defaultdict(Accuracy)
    accuracies[3].update(torch.tensor([1, 0]), torch.tensor([1, 1]))
    old = Thing(one=mean(2.0), some=[mean(3.0)], by={"a": mean(4.0)}, each=accuracies)
    new = carry(old, Thing(one=Mean(), some=[], by={}, each=defaultdict(Accuracy)))
    assert [new.one.result(), new.some[0].result(), new.by["a"].result()] == [2.0, 3.0, 4.0]
    assert new.each[3].result() == 0.5
    assert new.each[4].result() == 0.0  # what makes new ones is still there


def test_a_generator_goes_on():
    old = Thing(generator=torch.Generator().manual_seed(3))
    torch.rand(5, generator=old.generator)
    new = carry(old, Thing(generator=torch.Generator()))
    assert torch.equal(*(torch.rand(4, generator=each.generator) for each in (old, new)))


def test_what_an_object_is_built_with_is_left_out():
    old = Thing(f=len, g=lambda: 0, h=partial(int, "3"), k=int, d=torch.device("cpu"), n=1)
    assert state_of(old, AROUND)["host"].keys() == {"n"}


def test_an_object_without_attributes_has_no_state():
    assert state_of(Thing(), AROUND) == {"host": {}}


def test_a_class_adds_its_names_to_those_of_its_bases():
    new = carry(KeptMore(a=1, b=2, c=3), KeptMore(a=0, b=0, c=0))
    assert (new.a, new.b, new.c) == (1, 2, 0)


def test_named_modules_and_what_hands_out_its_state_are_kept():
    old = Kept(a=nn.Linear(2, 3))
    new = carry(old, Kept(a=nn.Linear(2, 1)))  # it may have grown
    assert torch.equal(new.a.weight, old.a.weight)
    optimizers = [torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=lr) for lr in (0.1, 0.2)]
    assert carry(*(Kept(a=o) for o in optimizers)).a.param_groups[0]["lr"] == 0.1
    assert carry(Kept(a=Kept(a=5)), Kept(a=Kept(a=0))).a.a == 5


def test_both_ways_count():
    class Both(Kept):
        def state_dict(self):
            return {"b": self.b}

        def load_state_dict(self, state):
            self.b = state["b"]

    new = carry(Both(a=1, b=2), Both(a=0, b=0))
    assert (new.a, new.b) == (1, 2)


def test_a_property_with_a_setter_is_an_attribute():
    class Doubled:
        remembers = ("a",)

        def __init__(self, value):
            self.half = value

        @property
        def a(self):
            return 2 * self.half

        @a.setter
        def a(self, value):
            self.half = value / 2

    assert carry(Doubled(3), Doubled(0)).half == 3


# --- classes of others ---------------------------------------------------------------------------


class Foreign:
    def __init__(self, seen=()):
        self.lock, self.seen = object(), list(seen)


class OwnForeign(Foreign):
    remembers = ("more",)
    more = 0


class SilentForeign(Foreign):
    pass


@pytest.fixture
def registered():
    @host_state.register
    def _(part: Foreign, around: Surroundings):
        return {"seen": part.seen}

    @load_host_state.register
    def _(part: Foreign, state: dict, around: Surroundings):
        part.seen = state["seen"]

    yield
    for function in (host_state, load_host_state):  # back to how it is where nothing is said
        function.register(Foreign, function.registry[object])


def test_a_package_says_how_the_class_of_another_is_kept(registered):
    assert carry(Foreign([1, 2]), Foreign()).seen == [1, 2]
    old = OwnForeign([3])
    old.more = 4
    new = carry(old, OwnForeign())
    assert (new.seen, new.more) == ([3], 4)
    assert carry(Kept(a=Foreign([5])), Kept(a=Foreign())).a.seen == [5]
    with pytest.raises(CheckpointError, match="SilentForeign is a Foreign and does not say what"):
        state_of(SilentForeign(), AROUND)


def test_both_functions_are_asked_for():
    class Half:
        pass

    host_state.register(Half, lambda part, around: {})
    with pytest.raises(CheckpointError, match="Half has a host_state and no load_host_state"):
        state_of(Half(), AROUND)


# --- what is refused -----------------------------------------------------------------------------


class Slotted:
    __slots__ = ("a",)


class OneName:
    remembers = "a"


MODULE = nn.Linear(1, 1)
REFUSED = {
    "Thing.a is a object, whose state is not known; say what Thing keeps: remembers =": (
        lambda: Thing(a=object())
    ),
    "Thing.a is a Linear, whose state": lambda: Thing(a=MODULE),
    "Thing.a is a SGD, whose state": lambda: Thing(a=torch.optim.SGD(MODULE.parameters(), lr=0.1)),
    "Thing.a is a Parameter, whose state": lambda: Thing(a=MODULE.weight),
    "Thing.a is a object in a container in a container, whose": lambda: Thing(a=[{1: object()}]),
    "Thing.a is a Accuracy in a container, whose": lambda: Thing(a={1: Accuracy()}),
    "Thing.a is a ndarray, whose": lambda: Thing(a=np.array(["text"])),
    "Kept.a is a object, whose state is not known; name what is plain": lambda: Kept(a=object()),
    "Kept.a is a function, whose": lambda: Kept(a=lambda: 0),
    "Kept remembers 'a' and has no such attribute; set it in __init__": Kept,
    "Slotted keeps its attributes in slots; say which: remembers =": Slotted,
    "OneName.remembers must be a tuple of names, not 'a'; write": OneName,
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_not_known_is_told_with_the_way_out(said):
    with pytest.raises(CheckpointError, match=re.escape(said)):
        state_of(REFUSED[said](), AROUND)


def test_to_remember_nothing_is_a_way_out():
    class Nothing(Thing):
        remembers = ()

    assert state_of(Nothing(a=object()), AROUND) == {"attributes": {}}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (Kept(a=1), KeptMore(a=1, b=1), "KeptMore remembered a, now it remembers a, b"),
        (Kept(a=1), Thing(a=1), "of Thing was kept attributes, now it is host"),
        (Kept(a=MODULE), Kept(a=1), "Kept.a was a module, is a int"),
        (Kept(a=mean(1)), Kept(a=Accuracy()), "Kept.a: a Accuracy stands where a Mean stood"),
        (Kept(a=defaultdict(list)), Kept(a={}), "Kept.a was a defaultdict, is a dict"),
    ],
)
def test_the_state_of_something_else_is_refused(old, new, said):
    with pytest.raises(CheckpointError, match=re.escape(said)):
        carry(old, new)


def test_a_registered_plugin_of_the_host_is_not_kept_by_attributes():
    assert state_of(EWCPlugin(1.0), Surroundings(Thing(model=MODULE))).keys() == {"host"}
