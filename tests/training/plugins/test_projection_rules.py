"""Gradient projection in part, by centred energy, and by the ratio of energies."""

import json

import numpy as np
import pytest
import torch
from scipy.linalg import eigh, subspace_angles

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.projection.sites import projection_sites
from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.training.plugins import GradientProjectionPlugin
from avalanche_peftcl.training.plugins.gradient_projection import build_gradient_projection

DIM, R = 32, 20
WEIGHTS = ("adapter.down.weight", "adapter.up.weight")
SCALE = "adapter.scale"


def stream(*, per_class=3, **options):
    """Three experiences of ``2 * per_class`` images."""
    return toy_benchmark(per_class=per_class, **options).train_stream


def projection(threshold=1.0, **options):
    return GradientProjectionPlugin(threshold, **({"n_samples": None} | options))


def weights(model):
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in WEIGHTS}


def leak(change, basis):
    """The share of a change's squared length that lies inside a basis."""
    inside = change.double() @ basis.double()
    return (inside.square().sum() / change.double().square().sum()).item()


def end(toy, make_strategy, plugins, **options):
    model = toy()
    torch.manual_seed(1)
    strategy = make_strategy(model, plugins, **options)
    for experience in stream():
        strategy.train(experience)
    return model.state_dict()


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


# --- in part -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["step", "gradient"])
def test_strength_1_is_hard_projection_and_0_none(toy, make_strategy, where):
    hard = end(toy, make_strategy, [projection(where=where)])
    none = end(toy, make_strategy, [])
    assert not same(hard, none)
    assert same(end(toy, make_strategy, [projection(where=where, strength=1.0)]), hard)
    nothing = projection(where=where, strength=0.0)
    assert same(end(toy, make_strategy, [nothing]), none)
    sites = nothing.summary()["experiences"][2]  # bases are made and reported all the same
    assert all(site["size"] > 0 and site["removed_share"] == 0 for site in sites)


@pytest.mark.parametrize("where", ["step", "gradient"])
@pytest.mark.parametrize("strength", [0.25, 0.5])
def test_a_share_of_the_component_is_removed(toy, make_strategy, where, strength):
    """Of one step of plain gradient descent, from the same weights."""
    changes, plugins = {}, {}
    for alpha in (0.0, strength):
        plugin, model = projection(where=where, strength=alpha), toy()
        once = {"optimizer": "plain", "train_mb_size": 6, "train_epochs": 1}
        strategy = make_strategy(model, [plugin], **once)
        first, second, _ = stream()
        strategy.train(first)
        start, basis = weights(model), plugin.bases[WEIGHTS[1]][0].clone()
        strategy.train(second)
        changes[alpha] = weights(model)[WEIGHTS[1]] - start[WEIGHTS[1]]
        plugins[alpha] = plugin
    whole = changes[0.0].double()
    inside = whole @ basis @ basis.T
    assert inside.norm() > 1e-3 * whole.norm()
    torch.testing.assert_close(
        changes[strength].double(), whole - strength * inside, atol=1e-6, rtol=1e-5
    )
    site = next(s for s in plugins[strength].summary()["experiences"][1] if s["site"] == WEIGHTS[1])
    share = 1 - (whole - strength * inside).square().sum() / whole.square().sum()
    assert site["removed_share"] == pytest.approx(share.item(), abs=1e-4)


def test_more_strength_moves_old_features_less(toy, make_strategy, images, look):
    drift = []
    for strength in (0.0, 0.5, 0.9, 1.0):
        model = toy()
        torch.manual_seed(1)
        strategy = make_strategy(model, [projection(strength=strength)], optimizer="plain")
        first, second, _ = stream()
        strategy.train(first)
        before = look(model, images(first))["output"]
        strategy.train(second)
        drift.append((look(model, images(first))["output"] - before).norm().item())
    assert drift == sorted(drift, reverse=True)
    assert drift[-1] < 1e-4 * drift[0]


# --- by centred energy ---------------------------------------------------------------------------


def by_singular_values(basis, rows, threshold):
    """The mean, then singular vectors of the centred rows outside of what is held."""
    mean = rows.mean(axis=0)
    held = np.linalg.qr(np.column_stack([basis, mean]))[0]
    centred = rows - mean
    _, values, right = np.linalg.svd(centred - centred @ held @ held.T)
    energy, left = np.square(centred).sum(), np.square(values).sum()
    taken = []
    for value, direction in zip(values, right, strict=False):
        if left <= (1 - threshold) * energy:
            break
        taken.append(direction)
        left -= value**2
    return np.column_stack([held, *taken]), 1 - left / energy


@pytest.mark.parametrize("size", [1, 4, 24])
def test_the_basis_is_that_of_singular_values_of_centred_features(
    toy, make_strategy, images, look, size
):
    plugin, model = projection(0.8, centred=True), toy()
    strategy = make_strategy(model, [plugin], eval_mb_size=size)
    expected = {name: np.zeros((width, 0)) for name, width in zip(WEIGHTS, (DIM, R), strict=True)}
    for t, experience in enumerate(stream(per_class=12)[:2]):
        strategy.train(experience)
        seen = look(model, images(experience))
        for name in WEIGHTS:
            rows = seen[name].double().numpy()
            expected[name], share = by_singular_values(expected[name], rows, 0.8)
            basis = plugin.bases[name][0].numpy()
            assert basis.shape == expected[name].shape
            assert subspace_angles(basis, expected[name]).max() < 1e-3  # features in float32
            mean = rows.mean(axis=0)
            assert np.linalg.norm(mean - basis @ (basis.T @ mean)) < 1e-6 * np.linalg.norm(mean)
            site = next(s for s in plugin.summary()["experiences"][t] if s["site"] == name)
            assert site["captured_energy"] == pytest.approx(share, abs=1e-5)
            assert site["captured_energy"] >= 0.8


def test_the_mean_is_protected_whatever_the_threshold(toy, make_strategy, images, look):
    plugin, model, experiences = projection(0.0, centred=True), toy(), stream()
    strategy = make_strategy(model, [plugin])
    strategy.train(experiences[0])
    mean = look(model, images(experiences[0]))[WEIGHTS[0]].mean(0)
    before, scale = model.adapter.down.weight.detach() @ mean, model.adapter.scale.item()
    start = weights(model)
    strategy.train(experiences[1])
    torch.testing.assert_close(model.adapter.down.weight @ mean, before, atol=1e-5, rtol=1e-4)
    assert (model.adapter.down.weight - start[WEIGHTS[0]]).abs().max() > 1e-3
    assert model.adapter.scale.item() == pytest.approx(scale, abs=1e-6)  # one dimension
    assert [site["size"] for site in plugin.summary()["experiences"][0]] == [1, 1, 1]


def test_centred_protects_more_where_the_mean_holds_the_energy(toy, make_strategy):
    class Shifted(toy):
        def adapted(self, x):
            hidden = torch.tanh(self.frozen(x.flatten(1))) + 3
            return hidden + self.adapter(hidden)

    sizes = []
    for centred in (False, True):
        plugin = projection(0.9, centred=centred)
        make_strategy(Shifted(), [plugin]).train(stream(per_class=12)[0])
        sizes.append(plugin.bases[WEIGHTS[0]][0].shape[1])
    assert sizes[0] == 1 < 5 < sizes[1]


# --- by the ratio of energies --------------------------------------------------------------------


def scipy_directions(new, old, k):
    """The last ``k`` solutions of SciPy, and the gap between them and the others."""
    level = 1e-3 * np.trace(old) / len(old)
    values, vectors = eigh(new, old + level * np.eye(len(old)))
    return vectors[:, len(old) - k :], values[len(old) - k] / values[len(old) - k - 1]


def test_updates_keep_to_the_directions_of_the_largest_ratio(toy, make_strategy, images, look):
    plugin, model = projection(rule="ratio", kept=0.25), toy()
    strategy, experiences = make_strategy(model, [plugin]), stream(per_class=24)
    old = dict.fromkeys(WEIGHTS, 0.0)
    for t, experience in enumerate(experiences):
        before, start = look(model, images(experience)), weights(model)
        strategy.train(experience)
        change = {name: value - start[name] for name, value in weights(model).items()}
        report = {site["site"]: site for site in plugin.summary()["experiences"][t]}
        for name, width in zip(WEIGHTS, (DIM, R), strict=True):
            rows = before[name].double().numpy()
            if t == 0:
                assert (report[name]["size"], report[name]["captured_energy"]) == (0, 1.0)
            else:
                k = int(0.25 * width)
                directions, gap = scipy_directions(rows.T @ rows, old[name], k)
                assert gap > 1.01
                held = plugin.bases[name][0].numpy()
                assert held.shape == (width, width - k)
                q = np.linalg.qr(directions)[0]
                assert np.abs(q.T @ held).max() < 1e-3  # features in float32
                assert leak(change[name], torch.tensor(q)) > 0.99
                share = np.trace(held.T @ old[name] @ held) / np.trace(old[name])
                assert report[name]["captured_energy"] == pytest.approx(share, abs=1e-4)
                assert report[name]["size"] == width - k
            after = look(model, images(experience))[name].double().numpy()
            old[name] = old[name] + after.T @ after


@pytest.mark.parametrize("kept", [0.0, 1.0])
def test_all_and_nothing_stays_open(toy, make_strategy, kept):
    plugin = projection(rule="ratio", kept=kept)
    if kept == 1:
        free = end(toy, make_strategy, [])
        assert same(end(toy, make_strategy, [plugin]), free)
        return
    model, experiences = toy(), stream()
    strategy = make_strategy(model, [plugin])
    strategy.train(experiences[0])
    start = model.adapter.state_dict()
    start = {name: value.clone() for name, value in start.items()}
    strategy.train(experiences[1])
    for name, value in model.adapter.state_dict().items():
        torch.testing.assert_close(value, start[name], atol=1e-6, rtol=1e-5)


def test_images_are_read_before_and_after_an_experience_and_memory_is_told(toy, make_strategy):
    class Reader(toy):
        read = 0

        def forward(self, x):
            self.read += 0 if self.training else len(x)
            return super().forward(x)

    plugin, model, reads = projection(rule="ratio", n_samples=4), Reader(), []
    strategy = make_strategy(model, [plugin])
    for experience in stream():
        strategy.train(experience)
        reads.append(model.read)
    assert reads == [4, 12, 20]
    grams = DIM**2 + R**2 + 1
    bases = DIM * DIM // 2 + R * R // 2 + 1
    assert plugin.stored_floats == grams + bases


def test_of_an_online_stream_the_first_chunk_chooses(toy, make_strategy):
    plugin, model = projection(rule="ratio"), toy()
    strategy, bases = make_strategy(model, [plugin], train_epochs=1), []
    for chunk in toy_benchmark("online", per_class=4, experience_size=4).train_stream:
        strategy.train(chunk)
        bases.append(plugin.bases[WEIGHTS[0]][0] if plugin.bases else None)
    sizes = [0 if basis is None else basis.shape[1] for basis in bases]
    assert sizes == [0, 0, DIM // 2, DIM // 2, DIM // 2, DIM // 2]
    assert torch.equal(bases[2], bases[3])
    assert not torch.equal(bases[3], bases[4])
    removed = [site["removed_share"] for site in plugin.summary()["experiences"][1]]
    assert max(removed) > 0.1


# --- what is told, and what is refused -----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, {"rule": "energy", "threshold": 0.9, "centred": False, "strength": 1.0}),
        (
            {"centred": True, "strength": 0.5},
            {"rule": "energy", "threshold": 0.9, "centred": True, "strength": 0.5},
        ),
        ({"rule": "ratio", "kept": 0.3}, {"rule": "ratio", "kept": 0.3, "strength": 1.0}),
    ],
)
def test_the_summary_says_how_it_was_projected(toy, make_strategy, options, told):
    plugin = build_gradient_projection(threshold=0.9, n_samples=4, **options)
    strategy = make_strategy(toy(), [plugin])
    for experience in stream()[:2]:
        strategy.train(experience)
    summary = json.loads(json.dumps(plugin.summary()))
    assert {key: summary[key] for key in told} == told
    assert ("threshold" in summary) is (told["rule"] == "energy")
    names = [site.name for site in projection_sites(strategy.model)]
    assert [[site["site"] for site in each] for each in summary["experiences"]] == [names] * 2
    assert summary["watched_drift"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 1.5}, r"strength must be in \[0, 1\], not 1.5"),
        ({"strength": float("nan")}, r"strength must be in \[0, 1\], not nan"),
        ({"kept": -0.1, "rule": "ratio"}, r"kept must be in \[0, 1\], not -0.1"),
        ({"rule": "fisher"}, "rule must be energy or ratio, not 'fisher'"),
        ({"rule": "ratio", "centred": True}, r"centred=True counts .* leave centred out"),
        ({"watch": -1}, "watch must be a number of images, 0 for none, not -1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, words):
    for build in (GradientProjectionPlugin, build_gradient_projection):
        with pytest.raises(ConfigError, match=words):
            build(**options)
