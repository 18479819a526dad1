"""What a checkpoint holds comes back as it was, and what it cannot hold is named."""

import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from avalanche_peftcl.checkpoints.archive import decode_state, encode_state
from avalanche_peftcl.checkpoints.plain import plain_state
from avalanche_peftcl.errors import CheckpointError

DTYPES = [np.float64, np.float32, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Draw a tensor of any dtype, with nan too, and any strides."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    value = torch.from_numpy(np.array(draw(arrays.arrays(dtype, shape))))
    if draw(st.booleans()) and dtype == np.float32:
        value = value.bfloat16()
    change = draw(st.sampled_from(["none", "transposed", "sliced", "expanded"]))
    if value.ndim > 1 and change == "transposed":
        return value.mT
    if value.ndim > 0 and change == "sliced":
        return value[..., ::2]
    return value.expand(2, *value.shape) if change == "expanded" else value


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
KEYS = st.text() | st.integers() | st.none() | st.tuples(st.integers(), st.booleans())
STATES = st.recursive(
    PLAIN | tensors(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.dictionaries(KEYS, inner)
        | st.sets(st.integers() | st.text())
    ),
    max_leaves=12,
)


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if one.numel():
            bits = [
                torch.empty(t.shape, dtype=t.dtype).copy_(t).flatten().view(torch.uint8).tolist()
                for t in (one, other)
            ]
            assert bits[0] == bits[1]
        return
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, float):
        assert math.isnan(one) == math.isnan(other)
        assert math.isnan(one) or one.hex() == other.hex()
    else:
        assert one == other


def read(content: bytes) -> Any:
    return decode_state(content, "it")


@given(STATES)
def test_what_is_written_comes_back(state):
    assert_equal(read(encode_state(state)), state)


@given(STATES)
def test_tensors_share_no_memory(state):
    def places(value):
        if isinstance(value, torch.Tensor):
            return [value.untyped_storage().data_ptr()] if value.numel() else []
        inner = value.values() if isinstance(value, dict) else value
        parts = inner if isinstance(inner, Iterable) else ()
        return [place for part in parts if not isinstance(part, str) for place in places(part)]

    held = places(plain_state([state, state]))
    assert len(set(held)) == len(held)


def test_strides_come_back_unless_entries_overlap_or_lie_far_apart():
    turned = torch.arange(6.0).reshape(2, 3).T
    sliced = torch.arange(12.0).reshape(3, 4)[:, :2]
    spread = torch.ones(3, 1).expand(3, 4)
    far = torch.arange(2.0**22).reshape(2, -1)[:, :3]
    back = read(encode_state([turned, sliced, spread, far]))
    assert [t.stride() for t in back] == [turned.stride(), sliced.stride(), (4, 1), (3, 1)]
    for one, other in zip(back, (turned, sliced, spread, far), strict=True):
        assert torch.equal(one, other)


def test_a_view_brings_no_memory_along():
    whole = torch.ones(2**18)
    assert len(encode_state([whole[:10], whole[5:15]])) < 3000
    assert b"secret" not in encode_state(
        torch.frombuffer(bytearray(b"a secret."), dtype=torch.uint8)[::2]
    )


def test_what_comes_back_is_no_view():
    state = {"w": torch.ones(3)}
    content = encode_state(state)
    state["w"].zero_()
    assert read(content)["w"].tolist() == [1, 1, 1]


def test_kinds_of_containers_and_parameters_become_plain():
    class Number(int):
        pass

    state = OrderedDict(a=defaultdict(int, {1: 2}), p=torch.nn.Parameter(torch.ones(2)))
    state |= {"n": Number(3), "s": torch.Size([1, 2]), "f": frozenset({1})}
    back = read(encode_state(state))
    assert [type(v) for v in (back, back["a"], back["p"], back["n"], back["s"], back["f"])] == [
        *(dict, dict, torch.Tensor, int, tuple, set)
    ]
    assert not back["p"].requires_grad


def test_hooks_and_attributes_of_tensors_stay_behind():
    value = torch.ones(2, requires_grad=True)
    value.register_hook(print)
    value.note = "mine"
    assert not hasattr(read(encode_state({"w": value}))["w"], "note")


def itself() -> list:
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": [object()]}, "a.0 is a object, which no checkpoint can hold"),
        (lambda: 0, "the state is a function"),
        ({"a": {b"1": 0}}, "a has a bytes as key"),
        ({"a": {(1, frozenset()): 0}}, "a has a frozenset as key"),
        ({"a": b"1"}, "a is a bytes"),
        ({"a": 1 << 2000}, "a is a number of 2001 bits"),
        ({"w": torch.ones(2, 2).to_sparse()}, "w is a tensor without plain memory"),
        ({"w": torch.ones(2, device="meta")}, "w is a tensor without plain memory"),
        (itself(), "nested too deeply, or holds itself"),
    ],
)
def test_what_cannot_be_held_is_named(state, said):
    with pytest.raises(CheckpointError, match=said):
        encode_state(state)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_tensor_is_named():
    state = {"w": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}
    with pytest.raises(CheckpointError, match="w is a tensor without plain memory"):
        encode_state(state)
