import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avalanche_peftcl.functional.subspace import (
    gram,
    orthonormal_basis,
    remove_component,
    stack_bases,
)

SEEDS = st.integers(0, 10_000)
SIZES = st.integers(1, 9)


def orthonormal(generator, size, count):
    return np.linalg.qr(generator.normal(size=(size, count)))[0]


# --- the basis of a matrix ---


def test_orthonormal_basis_of_nothing_and_of_no_matrix():
    assert orthonormal_basis(torch.zeros(3, 0)).shape == (3, 0)
    assert orthonormal_basis(torch.zeros(3, 2)).shape == (3, 0)
    with pytest.raises(ValueError, match=r"\(D, C\)"):
        orthonormal_basis(torch.zeros(3))


# --- the Gram ---


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6), (2, 3, 5, 6), (0, 6), (2, 0, 6)])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_gram_of_any_leading_axes_and_groups(shape, groups):
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours = gram(features, groups=groups)
    width = 6 // groups
    assert ours.shape == (groups, width, width)
    for g in range(groups):
        block = features.double().numpy().reshape(-1, 6)[:, g * width : (g + 1) * width]
        np.testing.assert_allclose(ours[g].numpy(), block.T @ block, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gram_multiplies_in_float64(dtype):
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + 100
    features = features.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = gram(features)[0]
    exact = features.detach().double().numpy()
    assert ours.dtype == torch.float64
    assert not ours.requires_grad
    np.testing.assert_allclose(ours.numpy(), exact.T @ exact, rtol=1e-13)


@pytest.mark.parametrize(("shape", "groups"), [((2, 5), 2), ((2, 4), 0), ((), 1)])
def test_gram_refuses_groups_that_do_not_divide(shape, groups):
    with pytest.raises(ValueError, match="groups"):
        gram(torch.zeros(shape), groups=groups)


# --- removing a component ---


@given(
    seed=SEEDS,
    r=SIZES,
    d=SIZES,
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    data=st.data(),
)
def test_remove_component_is_the_dense_formula_rounded_once(seed, r, d, dtype, data):
    generator = np.random.default_rng(seed)
    v = orthonormal(generator, d, data.draw(st.integers(0, d)))
    # far along the span, so that products in half precision would be seen
    x = generator.normal(size=(r, d)) + 30 * generator.normal(size=(r, v.shape[1])) @ v.T
    x = torch.tensor(x).to(dtype)
    before = x.clone()
    ours = remove_component(x, torch.tensor(v))
    assert ours.dtype == dtype
    assert torch.equal(x, before)
    dense = x.double() @ torch.tensor(np.eye(d) - v @ v.T)
    rounding = {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(dtype, 1e-6)
    torch.testing.assert_close(ours.double(), dense, rtol=rounding, atol=2e-4)


def test_remove_component_with_no_columns_is_x_itself():
    x = torch.randn(2, 3)
    assert remove_component(x, torch.zeros(3, 0)) is x


@given(seed=SEEDS, r=SIZES, d=SIZES, strength=st.floats(0, 1), data=st.data())
def test_a_share_of_the_component_is_removed(seed, r, d, strength, data):
    generator = np.random.default_rng(seed)
    v = orthonormal(generator, d, data.draw(st.integers(0, d)))
    x = generator.normal(size=(r, d))
    ours = remove_component(torch.tensor(x), torch.tensor(v), strength=strength)
    inside = x @ v @ v.T  # g <- (1 - a) g + a (g - g V Vᵀ)
    expected = (1 - strength) * x + strength * (x - inside)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-13)


def test_all_and_nothing_of_the_component():
    x, basis = torch.randn(4, 6), orthonormal_basis(torch.randn(6, 3))
    assert torch.equal(remove_component(x, basis, strength=1.0), remove_component(x, basis))
    assert remove_component(x, basis, strength=0.0) is x


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_remove_component_refuses_another_strength(strength):
    with pytest.raises(ValueError, match=r"strength must lie in \[0, 1\]"):
        remove_component(torch.zeros(2, 3), torch.zeros(3, 1), strength=strength)


@pytest.mark.parametrize(
    ("x", "basis"), [((2, 4), (3, 1)), ((2, 3), (3,)), ((), (3, 1)), ((5, 2, 4), (5, 3, 0))]
)
def test_remove_component_refuses_another_dimension(x, basis):
    with pytest.raises(ValueError, match=r"\(\.\.\., D, K\)"):
        remove_component(torch.zeros(x), torch.zeros(basis))


# --- many bases at once ---


def test_stacked_bases_remove_what_each_would():
    generator = np.random.default_rng(0)
    bases = [torch.tensor(orthonormal(generator, 5, size)) for size in (1, 2, 3, 4, 0)]
    stacked = stack_bases(bases)
    assert stacked.shape == (5, 5, 4)
    assert torch.equal(stacked[0], torch.cat([bases[0], torch.zeros(5, 3)], dim=1))
    x = torch.randn(5, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.stack([remove_component(*pair) for pair in zip(x, bases, strict=True)])
    torch.testing.assert_close(remove_component(x, stacked), expected)
    # the axes in front broadcast
    shared = torch.stack([remove_component(part, bases[0]) for part in x])
    torch.testing.assert_close(remove_component(x, bases[0]), shared)
    many = torch.stack([remove_component(x[0], basis) for basis in bases])
    torch.testing.assert_close(remove_component(x[0], stacked), many)


@pytest.mark.parametrize("bases", [[], [torch.zeros(3)], [torch.zeros(3, 1), torch.zeros(2, 1)]])
def test_stack_bases_refuses(bases):
    with pytest.raises(ValueError, match="one D"):
        stack_bases(bases)
