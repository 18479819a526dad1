"""How far features of images that were set aside move: of the experience at hand, of old ones."""

import json

import pytest
import torch

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.movement import relative_movement
from avalanche_peftcl.models import PEFTModel
from avalanche_peftcl.models.modules.attention_adapter import build_attention_adapters
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.plugins import GradientProjectionPlugin


def stream(scenario="class", **options):
    return toy_benchmark(scenario, **({"per_class": 4} | options)).train_stream


def network():
    torch.manual_seed(0)
    backbone = toy_backbone(depth=1)
    return PEFTModel(backbone, build_attention_adapters(backbone=backbone, r=4))


@torch.no_grad()
def features(model, experience, images):
    data = experience.dataset.eval()
    return model.eval()(torch.stack([data[i][0] for i in images])), model.last_features


@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_what_moved_in_an_experience_and_since_it(make_strategy, strength):
    plugin, model = GradientProjectionPlugin(0.99, watch=3, n_samples=4, strength=strength), None
    model = network()
    strategy = make_strategy(model, [plugin], strategy=PEFTTemplate)
    kept, expected, experiences = [], [], list(stream())
    for t, experience in enumerate(experiences):
        # the draw's last images: seed and number of the experience give them
        generator = torch.Generator().manual_seed(t)
        images = torch.randperm(8, generator=generator).tolist()[-3:]
        before = features(model, experience, images)[1]
        model.train()
        strategy.train(experience)
        after = features(model, experience, images)[1]
        old = [
            (features(model, experiences[e], chosen)[1] - then).norm() / then.norm()
            for e, (chosen, then) in enumerate(kept)
        ]
        expected.append((((after - before).norm() / before.norm()).item(), [o.item() for o in old]))
        kept.append((images, after))
    drifts = json.loads(json.dumps(plugin.summary()))["watched_drift"]
    assert [drift["images"] for drift in drifts] == [3, 3, 3]
    for drift, (learnt, old) in zip(drifts, expected, strict=True):
        assert drift["learnt"] == pytest.approx(learnt, rel=1e-3, abs=1e-6)
        assert drift["old"] == pytest.approx(old, rel=1e-3, abs=1e-6)
    assert drifts[2]["learnt"] > (1e-3 if strength == 0 else 1e-5)
    assert [len(drift["old"]) for drift in drifts] == [0, 1, 2]
    assert plugin.stored_floats == 9 * 32 + sum(b.numel() for g in plugin.bases.values() for b in g)
    told = strategy.evaluator.get_last_metrics()
    assert told["Drift_Learnt/train_phase/train_stream"] == drifts[2]["learnt"]
    for e in (0, 1):
        assert told[f"Drift_Old/train_phase/train_stream/Exp{e:03d}"] == drifts[2]["old"][e]
    old = [100 * moved for moved in drifts[2]["old"]]
    assert plugin.headline().endswith(
        f"; its features moved by {100 * drifts[2]['learnt']:.1f} %, "
        f"old ones by {min(old):.1f} to {max(old):.1f} %"
    )


def test_projection_lets_new_features_move_more_than_old_ones(make_strategy):
    drifts = {}
    for strength in (0.0, 1.0):
        plugin = GradientProjectionPlugin(0.999, watch=4, n_samples=None, strength=strength)
        model = network()
        torch.manual_seed(1)
        strategy = make_strategy(model, [plugin], strategy=PEFTTemplate)
        for experience in stream(per_class=8)[:2]:
            strategy.train(experience)
        drifts[strength] = plugin.summary()["watched_drift"][1]
    assert drifts[1.0]["old"][0] < 0.5 * drifts[0.0]["old"][0]


def test_images_that_are_watched_make_no_basis(toy, make_strategy):
    plugin = GradientProjectionPlugin(1.0, n_samples=None, watch=3)
    make_strategy(toy(), [plugin]).train(stream(per_class=4)[0])
    assert plugin.bases["adapter.down.weight"][0].shape[1] == 5  # of 8 images
    most = GradientProjectionPlugin(1.0, n_samples=None, watch=100)
    make_strategy(toy(), [most]).train(stream(per_class=4)[0])
    assert most.summary()["watched_drift"][0]["images"] == 4  # at most half
    assert most.bases["adapter.down.weight"][0].shape[1] == 4


@pytest.mark.parametrize("rule", ["energy", "ratio"])
def test_watching_changes_nothing_else(toy, make_strategy, rule):
    ends = []
    for watch in (0, 3):
        model = toy()
        torch.manual_seed(1)
        plugin = GradientProjectionPlugin(0.9, n_samples=4, watch=watch, rule=rule)
        strategy = make_strategy(model, [plugin])
        for experience in stream():
            strategy.train(experience)
        ends.append(model.state_dict())
        assert bool(plugin.summary()["watched_drift"]) is (watch > 0)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_outputs_of_a_model_of_somebody_else_are_those_it_had_then(toy, make_strategy):
    plugin = GradientProjectionPlugin(0.9, n_samples=4, watch=2)
    strategy = make_strategy(toy(), [plugin])
    for experience in stream():
        strategy.train(experience)
    drifts = plugin.summary()["watched_drift"]
    assert 0 < drifts[2]["old"][0] < 10  # not by the -1000 of classes that came later


def test_an_experience_of_one_image_has_none_to_watch(toy, make_strategy):
    plugin = GradientProjectionPlugin(0.9, watch=2)
    (experience, *_) = stream()
    experience.dataset = experience.dataset.subset([0])
    make_strategy(toy(), [plugin], train_mb_size=1).train(experience)
    assert plugin.summary()["watched_drift"] == [{"images": 0, "learnt": 0.0, "old": []}]


def test_an_online_stream_is_refused(toy, make_strategy):
    plugin = GradientProjectionPlugin(0.9, watch=2)
    strategy = make_strategy(toy(), [plugin], train_epochs=1)
    words = "an online stream shows none twice; leave watch out"
    with pytest.raises(ConfigError, match=words):
        strategy.train(stream("online", experience_size=4)[0])


def test_relative_movement():
    before = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert relative_movement(before, 1.25 * before) == pytest.approx(0.25)
    assert relative_movement(before, before) == 0.0
    assert relative_movement(0 * before, 0 * before) == 0.0
    assert relative_movement(0 * before, before) == 1.0
    assert relative_movement(before[:0], before[:0]) == 0.0
    with pytest.raises(ValueError, match="one shape"):
        relative_movement(before, before[:2])
