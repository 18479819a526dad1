import json
import math
from collections import OrderedDict, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from avalanche_peftcl.checkpoints.packing import pack, unpack
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
KEYS = st.text() | st.integers() | st.none() | st.booleans()
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


@given(STATES)
def test_what_is_packed_comes_back(state):
    held, tree = pack(state)
    assert_equal(unpack(held, json.loads(json.dumps(tree, allow_nan=False))), state)


@given(STATES)
def test_tensors_share_no_memory_and_are_contiguous(state):
    held, _ = pack(state)
    assert all(value.is_contiguous() for value in held.values())
    places = [value.data_ptr() for value in held.values() if value.numel()]
    assert len(set(places)) == len(places)


def test_strides_come_back_unless_entries_overlap():
    turned = torch.arange(6.0).reshape(2, 3).T
    sliced = torch.arange(12.0).reshape(3, 4)[:, :2]
    spread = torch.ones(3, 1).expand(3, 4)
    back = unpack(*pack([turned, sliced, spread]))
    assert [t.stride() for t in back] == [turned.stride(), sliced.stride(), (4, 1)]
    assert torch.equal(back[0], turned)
    assert torch.equal(back[1], sliced)


def test_what_comes_back_is_no_view():
    state = {"w": torch.ones(3)}
    held, tree = pack(state)
    state["w"].zero_()
    back = unpack(held, tree)
    held["0 w"].zero_()
    assert back["w"].tolist() == [1, 1, 1]


def test_kinds_of_mappings_and_parameters_become_plain():
    state = OrderedDict(a=defaultdict(int, {1: 2}), p=torch.nn.Parameter(torch.ones(2)))
    back = unpack(*pack(state))
    assert type(back) is dict
    assert type(back["a"]) is dict
    assert type(back["p"]) is torch.Tensor
    assert not back["p"].requires_grad


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": [object()]}, "a.0 is a object, which no checkpoint can hold"),
        (lambda: 0, "the state is a function"),
        ({"a": {(1, 2): 0}}, "a has a tuple as key"),
        ({"w": torch.ones(2, 2).to_sparse()}, "w is a tensor without plain memory"),
        ({"w": torch.ones(2, device="meta")}, "w is a tensor without plain memory"),
    ],
)
def test_what_cannot_be_held_is_named(state, said):
    with pytest.raises(CheckpointError, match=said):
        pack(state)


@pytest.mark.parametrize(
    "tree",
    [{"tensor": "lost"}, {"what": 1}, {}, {"dict": 3}, {"float": "x"}, {"set": [[]]}],
    ids=str,
)
def test_a_tree_that_is_none_is_refused(tree):
    with pytest.raises(CheckpointError, match="does not belong to the tensors"):
        unpack({}, tree)
