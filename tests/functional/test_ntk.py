import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from torch import nn
from torch.func import functional_call, jacrev

from avalanche_peftcl.functional import (
    inner_products,
    output_directions,
    predicted_change,
    tangent_kernel,
    tangents,
)
from avalanche_peftcl.models import Branch, CosineHead, PEFTModel, build_adapters
from avalanche_peftcl.testing import toy_backbone

EPS = torch.finfo(torch.float64).eps


def small(*, outputs=3, seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)).double()
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    return network, parameters, lambda p, x: functional_call(network, dict(p), (x,))


def inputs(n, *, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64)


def jacobian(function, parameters, x):
    """All at once, by reverse mode over the whole batch: ``(n, R, P)``."""
    by_name = jacrev(lambda p: function(p, x))(parameters)
    return torch.cat([by_name[name].flatten(2) for name in parameters], dim=2)


def differences(function, parameters, x, *, step=1e-6):
    """Central differences, a number at a time."""
    columns = []
    for name, tensor in parameters.items():
        for i in range(tensor.numel()):
            moved = []
            for sign in (1, -1):
                other = tensor.clone()
                other.view(-1)[i] += sign * step
                moved.append(function({**parameters, name: other}, x))
            columns.append((moved[0] - moved[1]) / (2 * step))
    return torch.stack(columns, dim=2)


def by_form(a, b, form, directions):
    """The kernel out of Jacobians ``(n, R, P)``, as the formulas say."""
    if form == "logit":
        return a.flatten(0, 1) @ b.flatten(0, 1).T
    blocks = torch.einsum("irp,jsp->ijrs", a, b)
    return torch.einsum("kr,ijrs,ks->ij", directions, blocks, directions) / len(directions)


@pytest.mark.parametrize("form", ["logit", "pseudo", "sketch"])
@pytest.mark.parametrize(("reference", "tolerance"), [(jacobian, 1e-12), (differences, 1e-7)])
def test_it_is_the_product_of_jacobians(form, reference, tolerance):
    _, parameters, function = small()
    a, b = inputs(6), inputs(5, seed=2)
    directions = output_directions(form, 3, n_directions=2, seed=3)
    found = tangent_kernel(function, parameters, a, b, form=form, n_directions=2, seed=3)
    ja, jb = reference(function, parameters, a), reference(function, parameters, b)
    torch.testing.assert_close(found, by_form(ja, jb, form, directions), rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", ["logit", "pseudo", "sketch"])
def test_it_is_symmetric_and_positive_semidefinite(form):
    _, parameters, function = small()
    kernel = tangent_kernel(function, parameters, inputs(70), form=form)
    assert torch.equal(kernel, kernel.T)
    values = torch.linalg.eigvalsh(kernel)
    assert values[0] > -len(kernel) * EPS * values[-1]
    assert int((values > len(kernel) * EPS * values[-1]).sum()) <= sum(
        p.numel() for p in parameters.values()
    )


@pytest.mark.parametrize("form", ["logit", "pseudo", "sketch"])
def test_the_size_of_chunks_changes_nothing_beyond_rounding(form):
    _, parameters, function = small()
    a, b = inputs(7), inputs(5, seed=2)
    whole = tangent_kernel(function, parameters, a, b, form=form, chunk_size=100)
    for chunk_size in (1, 3):
        cut = tangent_kernel(function, parameters, a, b, form=form, chunk_size=chunk_size)
        torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-13)
    itself = tangent_kernel(function, parameters, a, form=form, chunk_size=3)
    other_way = tangent_kernel(function, parameters, a, a, form=form)
    torch.testing.assert_close(itself, other_way, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("form", ["logit", "pseudo", "sketch"])
def test_of_a_linear_model_it_is_the_gram_of_its_inputs(form):
    x = inputs(6)
    kernel = tangent_kernel(
        lambda p, x: x @ p["w"].T, {"w": torch.randn(3, 4).double()}, x, form=form
    )
    expected = x @ x.T
    if form == "logit":
        expected = torch.kron(expected, torch.eye(3).double())
    torch.testing.assert_close(kernel, expected, rtol=1e-12, atol=1e-12)


def test_a_sketch_tends_to_the_mean_of_the_logits_kernels():
    _, parameters, function = small(outputs=6)
    x = inputs(5)
    whole = jacobian(function, parameters, x)
    mean = torch.einsum("irp,jrp->ij", whole, whole) / 6
    exact = tangent_kernel(function, parameters, x, form="sketch", n_directions=6)
    torch.testing.assert_close(exact, mean, rtol=1e-12, atol=1e-13)

    def error(draws):
        drawn = [
            tangent_kernel(function, parameters, x, form="sketch", n_directions=1, seed=s)
            for s in range(draws)
        ]
        return float((torch.stack(drawn).mean(dim=0) - mean).norm() / mean.norm())

    assert error(256) < error(4)
    assert error(256) < 0.15


def test_chosen_parameters_alone_are_differentiated():
    network, parameters, function = small()
    x = inputs(4)
    last = {name: p for name, p in parameters.items() if name.startswith("2.")}
    kernel = tangent_kernel(
        lambda p, x: function({**parameters, **p}, x), last, x, form="sketch", n_directions=3
    )
    hidden = torch.cat([network[:2](x), torch.ones(4, 1)], dim=1).detach()
    torch.testing.assert_close(kernel, hidden @ hidden.T, rtol=1e-12, atol=1e-12)


def test_tangents_tell_outputs_and_leave_parameters_alone():
    network, parameters, function = small()
    x = inputs(5)
    there = tangents(function, parameters, x, chunk_size=2)
    torch.testing.assert_close(there.outputs, network(x).detach(), rtol=1e-12, atol=1e-13)
    assert all(p.grad is None for p in network.parameters())
    kernel = inner_products(there.rows, there.rows)
    torch.testing.assert_close(
        kernel, tangent_kernel(function, parameters, x), rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("ridge", [0.01, 3.0])
def test_training_the_linearised_model_is_ridge_regression_in_the_kernel(ridge):
    _, parameters, function = small(outputs=1)
    x, y = inputs(20), torch.sin(inputs(20)[:, :1])
    new = inputs(6, seed=5)
    kernel = tangent_kernel(function, parameters, x)
    cross = tangent_kernel(function, parameters, new, x)
    residual = y - function(parameters, x)
    found = function(parameters, new) + predicted_change(cross, kernel, residual, ridge)
    # a step to the minimum, in the space of parameters
    j, j_new = jacobian(function, parameters, x)[:, 0], jacobian(function, parameters, new)[:, 0]
    step = torch.linalg.solve(j.T @ j + ridge * torch.eye(j.shape[1]).double(), j.T @ residual)
    trained = function(parameters, new) + j_new @ step
    torch.testing.assert_close(found, trained, rtol=1e-8, atol=1e-9)
    judge = KernelRidge(alpha=ridge, kernel="precomputed").fit(kernel.numpy(), residual.numpy())
    by_judge = function(parameters, new).numpy() + judge.predict(cross.numpy())
    np.testing.assert_allclose(found.numpy(), by_judge, rtol=1e-8, atol=1e-9)


def test_a_sketch_draws_from_no_global_generator():
    before = torch.get_rng_state()
    first, again = (output_directions("sketch", 5, n_directions=2) for _ in range(2))
    assert torch.equal(first, again)
    torch.testing.assert_close(first @ first.T, torch.eye(2).double(), rtol=0, atol=1e-12)
    assert torch.equal(before, torch.get_rng_state())


def test_down_projections_have_no_part_in_it_where_adapters_start():
    backbone = toy_backbone()
    for branch, there in ((build_adapters(backbone=backbone), True), (Branch(), False)):
        model = PEFTModel(backbone, branch, CosineHead).eval()
        model.start_experience([(0, 0), (0, 1)])
        parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        size = backbone.input_config.img_size
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        rows = tangents(lambda p, x, m=model: functional_call(m, dict(p), (x,)), parameters, x).rows
        moved = {name: float(r.norm()) for name, r in zip(parameters, rows, strict=True)}
        down = [value for name, value in moved.items() if ".down" in name]
        assert bool(down) == there
        assert not any(down)
        assert all(value > 0 for name, value in moved.items() if ".up" in name or "head" in name)
