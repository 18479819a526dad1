import pytest
import torch
from torch import nn

from avalanche_peftcl.functional.subspace import extend_basis, gram, remove_component
from avalanche_peftcl.models.modules.adapter import Adapter
from avalanche_peftcl.models.modules.attention_adapter import AttentionAdapter
from avalanche_peftcl.models.projection.sites import (
    Probe,
    ProjectionSite,
    column,
    entries,
    heads_of_keys,
    heads_of_values,
    linear_sites,
    ones,
    projection_sites,
    rows,
    same,
)

# view, shape of the parameter, shape of the view, where entry (g, r, d) of the view comes from
VIEWS = {
    "rows": (rows, (3, 4), (1, 3, 4), lambda g, r, d: (r, d)),
    "column": (column, (3,), (1, 3, 1), lambda g, r, d: (r,)),
    "entries": (entries, (3,), (3, 1, 1), lambda g, r, d: (g,)),
    "entries of a column": (entries, (3, 1), (3, 1, 1), lambda g, r, d: (g, 0)),
    "keys": (heads_of_keys(2), (3, 8), (2, 3, 4), lambda g, r, d: (r, 4 * g + d)),
    "values": (heads_of_values(2), (3, 8), (2, 4, 3), lambda g, r, d: (d, 4 * g + r)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_have_their_shape_and_copy_nothing(name):
    view, shape, expected, source = VIEWS[name]
    parameter = nn.Parameter(torch.randn(shape))
    seen = view(parameter.detach())
    assert seen.shape == expected
    assert seen.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
    for index in torch.cartesian_prod(*map(torch.arange, expected)).tolist():
        assert seen[tuple(index)] == parameter[source(*index)]
    seen.zero_()
    assert parameter.abs().max() == 0


# what a layer of each kind computes of features, such as its site shows them: x to output
LAYERS = {
    "weight": (rows, same, (5, 12), lambda w, x: x @ w.T),
    "bias": (column, ones, (12,), lambda b, x: x + b),
    "factor": (entries, same, (12,), lambda f, x: x * f),
    "keys": (
        heads_of_keys(3),
        same,
        (5, 12),
        lambda k, x: torch.einsum("nhd,phd->nhp", x.view(-1, 3, 4), k.view(5, 3, 4)),
    ),
    "values": (
        heads_of_values(3),
        same,
        (4, 12),
        lambda v, x: torch.einsum("nhp,phd->nhd", x.view(-1, 3, 4), v.view(4, 3, 4)),
    ),
}


@pytest.mark.parametrize("zeros", [0, 5])
@pytest.mark.parametrize("kind", LAYERS)
def test_what_a_site_protects_stays_and_the_rest_moves(kind, zeros):
    torch.manual_seed(0)
    view, features, shape, compute = LAYERS[kind]
    parameter = torch.randn(shape)
    old, new = torch.randn(2, 12), torch.randn(2, 12)
    old[:, :zeros] = 0
    groups, _, dim = view(parameter).shape
    grams = gram(features(old), groups=groups)
    bases = [extend_basis(torch.zeros(dim, 0), each, threshold=1.0)[0] for each in grams]
    moved = parameter.clone()
    for group, basis in zip(view(moved), bases, strict=True):
        group += remove_component(torch.randn_like(group), basis)
    torch.testing.assert_close(compute(moved, old), compute(parameter, old), atol=1e-5, rtol=1e-5)
    change = (compute(moved, new) - compute(parameter, new)).abs().max()
    free = kind not in ("bias", "factor") or (kind == "factor" and zeros)
    assert change > 0.1 if free else change < 1e-5


def test_features_of_a_bias_are_ones_of_any_leading_axes():
    features = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.equal(ones(features), torch.ones(2, 3, 1, dtype=torch.float64))
    assert same(features) is features


@pytest.mark.parametrize(
    ("frozen", "names"),
    [((), ["l.weight", "l.bias"]), (("bias",), ["l.weight"]), (("weight", "bias"), [])],
)
def test_what_is_frozen_in_a_linear_layer_has_no_site(frozen, names):
    layer = nn.Linear(4, 3)
    for name in frozen:
        getattr(layer, name).requires_grad_(False)
    sites = list(linear_sites("l", layer))
    assert [site.name for site in sites] == names
    assert all(site.place is layer for site in sites)
    assert [s.name for s in linear_sites("l", nn.Linear(4, 3, bias=False))] == ["l.weight"]


def test_sites_are_named_like_the_parameters_of_the_model():
    model = nn.Sequential(nn.ModuleDict({"a": AttentionAdapter(8)}), nn.Linear(8, 8), Adapter(8))
    sites = projection_sites(model)
    assert [site.name for site in sites] == [
        *(f"0.a.{name}" for name in ("down.weight", "up.weight", "scale")),
        *(f"2.{layer}.{kind}" for layer in ("down", "up") for kind in ("weight", "bias")),
    ]
    parameters = dict(model.named_parameters())
    assert all(site.parameter is parameters[site.name] for site in sites)
    alone = projection_sites(model[0]["a"])
    assert [site.name for site in alone] == ["down.weight", "up.weight", "scale"]


def test_only_a_method_states_sites_and_a_shared_module_once():
    class Attribute(nn.Module):
        projection_sites = None

    adapter = AttentionAdapter(8, learn_scale=False)
    sites = projection_sites(nn.ModuleList([Attribute(), adapter, adapter]))
    assert [site.name for site in sites] == ["1.down.weight", "1.up.weight"]


def test_a_site_has_rows_and_its_features_as_they_are_unless_said_otherwise():
    parameter = nn.Parameter(torch.zeros(2, 3))
    site = ProjectionSite("w", parameter, Probe())
    assert site.view(site.parameter).shape == (1, 2, 3)
    assert site.features(parameter) is parameter


def test_a_probe_listens_while_it_has_a_hook():
    probe, features = Probe(), torch.randn(2)
    assert not probe.listening
    handle = probe.register_forward_pre_hook(lambda module, args: None)
    assert probe.listening
    assert probe(features) is features
    handle.remove()
    assert not probe.listening
