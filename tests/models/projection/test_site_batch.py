import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from avalanche_peftcl.functional.subspace import orthonormal_basis
from avalanche_peftcl.models.projection.site_batch import SiteBatch, batch_sites
from avalanche_peftcl.models.projection.sites import (
    Probe,
    ProjectionSite,
    column,
    entries,
    heads_of_keys,
    heads_of_values,
    linear_sites,
    listen,
    rows,
)

SHAPES = {  # a view, and shapes of parameters
    "rows": (rows, [(2, 3), (3, 3), (3, 2)]),
    "column": (column, [(1,), (3,)]),
    "entries": (entries, [(3,)]),
    "keys": (heads_of_keys(2), [(3, 4), (2, 6)]),
    "values": (heads_of_values(2), [(3, 4)]),
}
DTYPES = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.05}


def transposed(parameter):
    return parameter.T[None]


def site(name, parameter, view=rows):
    return ProjectionSite(name, parameter, Probe(), view=view)


def draw_basis(dim, size):
    """An orthonormal basis in float64, as the plugin keeps them."""
    return orthonormal_basis(torch.randn(dim, min(size, dim), dtype=torch.float64))


def dense(view, change, bases, strength=1.0):
    """The change after removing the components by full projectors, group by group, in float64."""
    out = change.double().clone()
    for group, basis in zip(view(out), bases, strict=True):
        group -= strength * (group @ (basis @ basis.mT))
    return out


@st.composite
def networks(draw):
    """Sites of many shapes, some alike; bases of many sizes, some absent or empty."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    dtype = draw(st.sampled_from(list(DTYPES)))
    sites, bases = [], {}
    for i, kind in enumerate(draw(st.lists(st.sampled_from(list(SHAPES)), min_size=1, max_size=6))):
        view, shapes = SHAPES[kind]
        shape = draw(st.sampled_from(shapes))
        parameter = nn.Parameter(torch.randn(shape, dtype=dtype))
        sites.append(site(f"s{i}", parameter, view))
        groups, _, dim = view(parameter.detach()).shape
        if draw(st.integers(0, 4)):
            sizes = draw(st.lists(st.integers(0, dim), min_size=groups, max_size=groups))
            bases[f"s{i}"] = [draw_basis(dim, size) for size in sizes]
        if kind == "rows" and draw(st.booleans()):
            sites.append(site(f"s{i}:columns", parameter, transposed))
            bases[f"s{i}:columns"] = [draw_basis(shape[0], draw(st.integers(0, shape[0])))]
    return sites, bases, dtype


@given(networks(), st.sampled_from(["gradient", "step"]), st.sampled_from([1.0, 0.5, 0.0]))
def test_batches_do_what_dense_projectors_do_site_by_site(network, where, strength):
    sites, bases, dtype = network
    batches = batch_sites(sites, bases, strength=strength)
    parameters = list({id(s.parameter): s.parameter for s in sites}.values())
    starts = [p.detach().clone() for p in parameters]
    changes = [torch.randn_like(p) for p in parameters]
    expected = []
    for p, change in zip(parameters, changes, strict=True):
        for each in sites:
            if each.parameter is p and each.name in bases:
                change = dense(each.view, change, bases[each.name], strength)
        expected.append(change)
    if where == "gradient":
        for p, change in zip(parameters, changes, strict=True):
            p.grad = change.clone()
        for batch in batches:
            batch.project_gradients()
        ends = [p.grad for p in parameters]
        assert all(torch.equal(p, start) for p, start in zip(parameters, starts, strict=True))
    else:
        for batch in batches:
            batch.snapshot()
        with torch.no_grad():
            for p, change in zip(parameters, changes, strict=True):
                p += change
        for batch in batches:
            batch.project_step()
        ends = [p.detach().double() - s.double() for p, s in zip(parameters, starts, strict=True)]
    for end, change in zip(ends, expected, strict=True):
        tolerance = DTYPES[dtype]
        torch.testing.assert_close(end.double(), change.double(), atol=tolerance, rtol=tolerance)


@given(networks())
def test_sites_of_one_shape_go_together_and_those_without_a_basis_nowhere(network):
    sites, bases, _ = network
    batches = batch_sites(sites, bases)
    held = [each.name for batch in batches for each in batch.sites]
    wanted = {name for name, groups in bases.items() if any(basis.shape[1] for basis in groups)}
    assert sorted(held) == sorted(wanted)
    shapes = []
    for batch in batches:
        assert len({id(each.parameter) for each in batch.sites}) == len(batch.sites)
        kinds = {each.view(each.parameter.detach()).shape for each in batch.sites}
        assert len(kinds) == 1
        shapes.append(kinds.pop())
    firsts = [name for name in held if not name.endswith(":columns")]
    if len(firsts) == len(held):
        assert len(set(shapes)) == len(shapes)
    for name in firsts:
        assert f"{name}:columns" not in held[: held.index(name)]


@pytest.mark.parametrize("where", ["gradient", "step"])
def test_both_conditions_of_one_parameter_hold_in_the_end(where):
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(6, 8))
    sites = [site("w", parameter), site("w:values", parameter, transposed)]
    bases = {"w": [draw_basis(8, 5)], "w:values": [draw_basis(6, 3)]}
    batches, change = batch_sites(sites, bases), torch.randn(6, 8)
    before = parameter.detach().clone()
    parameter.grad = change.clone()
    for batch in batches:
        batch.snapshot() if where == "step" else batch.project_gradients()
    if where == "step":
        with torch.no_grad():
            parameter += change
        for batch in batches:
            batch.project_step()
        change = parameter.detach() - before
    else:
        change = parameter.grad
    assert change.norm() > 0.1
    assert (change @ bases["w"][0].float()).abs().max() < 1e-6
    assert (bases["w:values"][0].float().T @ change).abs().max() < 1e-6


def three():
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(4, 3, bias=False) for _ in range(3))
    sites = [each for i, layer in enumerate(layers) for each in linear_sites(str(i), layer)]
    return layers, sites, [[draw_basis(4, size)] for size in (1, 2, 4)]


def test_a_parameter_without_gradient_is_left_out():
    layers, sites, bases = three()
    (batch,) = batch_sites(sites, {s.name: b for s, b in zip(sites, bases, strict=True)})
    gradients = [torch.randn(3, 4), None, torch.randn(3, 4)]
    for layer, gradient in zip(layers, gradients, strict=True):
        layer.weight.grad = None if gradient is None else gradient.clone()
    batch.project_gradients()
    assert layers[1].weight.grad is None
    expected = dense(rows, gradients[0], bases[0])
    torch.testing.assert_close(layers[0].weight.grad, expected.float(), atol=1e-6, rtol=1e-5)
    assert layers[2].weight.grad.abs().max() < 1e-6
    share = 1 - (expected.square().sum() / gradients[0].double().square().sum()).item()
    removed = batch.removed()
    assert removed["0.weight"] == pytest.approx(share, abs=1e-5)
    assert removed["1.weight"] == 0
    assert removed["2.weight"] == pytest.approx(1)
    for layer in layers:
        layer.weight.grad = None
    batch.project_gradients()
    assert batch.removed() == removed


def test_removed_adds_up_over_updates():
    layers, sites, bases = three()
    batch = SiteBatch(sites[:1], bases[:1])
    whole = left = 0.0
    for size in (0.1, 3.0, 1.0):
        change = size * torch.randn(3, 4)
        batch.snapshot()
        with torch.no_grad():
            layers[0].weight += change
        batch.project_step()
        whole += change.double().square().sum().item()
        left += dense(rows, change, bases[0]).square().sum().item()
    assert batch.removed()["0.weight"] == pytest.approx(1 - left / whole, abs=1e-4)


def test_a_step_is_projected_once_and_only_after_a_snapshot():
    layers, sites, bases = three()
    batch = SiteBatch(sites, bases)
    start = layers[2].weight.detach().clone()
    with torch.no_grad():
        layers[2].weight.add_(1)
    batch.project_step()
    assert torch.equal(layers[2].weight, start + 1)
    batch.snapshot()
    batch.project_step()
    assert torch.equal(layers[2].weight, start + 1)  # it has not moved
    assert batch.removed() == dict.fromkeys(("0.weight", "1.weight", "2.weight"), 0.0)
    with torch.no_grad():
        layers[2].weight.add_(1)
    batch.project_step()
    assert torch.equal(layers[2].weight, start + 2)


def test_projection_leaves_the_parameter_objects_in_place():
    layers, sites, bases = three()
    batch, held = SiteBatch(sites, bases), [layer.weight for layer in layers]
    addresses = [weight.data_ptr() for weight in held]
    batch.snapshot()
    batch.project_step()
    assert [layer.weight.data_ptr() for layer in layers] == addresses
    assert all(layer.weight is weight for layer, weight in zip(layers, held, strict=True))
    assert all(weight.is_leaf and weight.requires_grad for weight in held)


def test_features_are_heard_at_every_pass_and_hooks_are_gone_afterwards():
    layer, heard = nn.Linear(4, 2), []
    sites = list(linear_sites("0", layer))
    x = torch.randn(5, 4)
    with listen(sites, lambda each, features: heard.append((each.name, features))):
        layer(x)
        layer(x[:2])
    assert [name for name, _ in heard] == ["0.weight", "0.bias"] * 2
    assert heard[0][1] is x
    assert torch.equal(heard[3][1], torch.ones(2, 1))
    layer(x)
    assert len(heard) == 4

    def fail():
        with listen(sites, lambda each, features: None):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not layer._forward_pre_hooks
