"""What gradient projection reads and keeps: images, chunks of a stream, memory."""

import random

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.core import SupervisedPlugin
from torch import nn

from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.training.plugins import GradientProjectionPlugin

DIM = 32
WEIGHTS = ("adapter.down.weight", "adapter.up.weight")


def stream(scenario="class", *, per_class=3, **options):
    """Three experiences of ``2 * per_class`` images: fewer rows than the adapter is wide."""
    return toy_benchmark(scenario, per_class=per_class, **options).train_stream


def projection(threshold=1.0, **options):
    return GradientProjectionPlugin(threshold, **({"n_samples": None} | options))


def weights(model):
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().clone() for name in WEIGHTS}


def leak(change, basis):
    """The share of a change's squared length that lies inside a basis."""
    inside = change.double() @ basis.double()
    return (inside.square().sum() / change.double().square().sum()).item()


# --- which images are read -----------------------------------------------------------------------


@pytest.fixture
def reader(toy):
    """The class of a toy model that keeps the images that pass in eval mode."""

    class Reader(toy):
        def __init__(self):
            super().__init__()
            self.read = []

        def forward(self, x):
            if not self.training:
                self.read.append(x.clone())
            return super().forward(x)

    return Reader


@pytest.mark.parametrize(("n_samples", "expected"), [(None, 6), (4, 4), (100, 6)])
def test_so_many_images_are_read_each_once_and_again_the_same(
    make_strategy, images, reader, n_samples, expected
):
    draws = []
    for _ in range(2):
        model, experience = reader(), stream(augment="random_resized_crop")[0]
        make_strategy(model, [projection(n_samples=n_samples)]).train(experience)
        draws.append(torch.cat(model.read))
    assert len(draws[0].unique(dim=0)) == len(draws[0]) == expected
    assert torch.equal(draws[0], draws[1])
    whole = images(experience)  # without augmentation
    assert all((image == whole).flatten(1).all(dim=1).any() for image in draws[0])


def test_another_seed_draws_others(make_strategy, reader):
    draws = []
    for seed in (0, 1):
        model = reader()
        make_strategy(model, [projection(n_samples=3, seed=seed)]).train(stream(per_class=12)[0])
        draws.append(torch.cat(model.read))
    assert not torch.equal(draws[0], draws[1])


def test_the_basis_spans_the_features_whatever_the_minibatches_and_their_order(
    toy, make_strategy, images, look
):
    spans = []
    for size, order in ((1, 1), (5, -1), (6, 1)):
        plugin, model = projection(), toy()
        (experience, *_), optimizer = stream(), "plain"
        strategy = make_strategy(
            model, [plugin], optimizer=optimizer, eval_mb_size=size, train_mb_size=6
        )
        experience.dataset = experience.dataset.subset(list(range(6))[::order])
        strategy.train(experience)
        features = look(model, images(experience))["adapter.down.weight"].double()
        basis = plugin.bases["adapter.down.weight"][0].double()
        assert basis.shape == (DIM, 6)  # fewer images than dimensions
        # the features heard here and those read before are passes of other minibatches: each a
        # float32 sum in another order; a span turns by such an error over its smallest direction
        values = torch.linalg.svdvals(features)
        error = 100 * torch.finfo(torch.float32).eps * float(values[0])
        torch.testing.assert_close(features @ basis @ basis.T, features, atol=error, rtol=0)
        spans.append(basis @ basis.T)
    for span in spans[1:]:
        turn = 2 * error / float(values[-1])
        assert turn < 0.01
        torch.testing.assert_close(span, spans[0], atol=turn, rtol=0)


def test_reading_draws_from_no_global_generator_and_restores_the_mode(toy, make_strategy):
    class Watched(GradientProjectionPlugin):
        def after_training_exp(self, strategy, **kwargs):
            before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
            super().after_training_exp(strategy, **kwargs)
            assert strategy.model.training
            assert torch.equal(torch.get_rng_state(), before[0])
            assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]

    plugin = Watched(1.0, n_samples=4)
    make_strategy(toy(), [plugin]).train(stream()[0])
    assert plugin.n_experiences_done == 1


# --- streams of chunks ---------------------------------------------------------------------------


class FirstUpdate(SupervisedPlugin):
    """Keeps the weights before and after the first update of each chunk; listed last."""

    def __init__(self):
        super().__init__()
        self.changes = []

    def before_training_exp(self, strategy, **kwargs):
        self.start = weights(strategy.model)
        self.seen = False

    def after_update(self, strategy, **kwargs):
        if not self.seen:
            end = weights(strategy.model)
            self.changes.append({name: end[name] - self.start[name] for name in WEIGHTS})
            self.seen = True


def test_an_online_stream_is_read_chunk_by_chunk_and_protected_experience_by_experience(
    make_strategy, reader
):
    plugin, first, model = projection(), FirstUpdate(), reader()
    strategy = make_strategy(model, [plugin, first], train_epochs=1, train_mb_size=2)
    sizes, bases, reads = [], [], []
    for chunk in stream("online", per_class=4, experience_size=3):
        strategy.train(chunk)
        bases.append({name: groups[0] for name, groups in plugin.bases.items()})
        sizes.append(bases[-1][WEIGHTS[0]].shape[1] if bases[-1] else 0)
        reads.append(sum(map(len, model.read)))
    # each experience has 8 images: chunks of 3, 3 and 2
    assert sizes == [0, 0, 8, 8, 8, 16, 16, 16, 24]
    assert reads == [3, 6, 8, 11, 14, 16, 19, 22, 24]
    assert len(torch.cat(model.read).unique(dim=0)) == 24
    assert len(plugin.summary()["experiences"]) == plugin.n_experiences_done == 3
    for i, change in enumerate(first.changes):
        for name in WEIGHTS:
            if i < 3:
                assert change[name].norm() > 0 or i == 0  # D gets no gradient while U is zero
            else:
                assert leak(change[name], bases[2][name]) < 1e-8


def test_each_chunk_gives_its_share_of_the_draw(make_strategy, reader):
    model = reader()
    strategy = make_strategy(model, [projection(n_samples=4)], train_epochs=1)
    reads = []
    for chunk in stream("online", per_class=4, experience_size=4):
        strategy.train(chunk)
        reads.append(sum(map(len, model.read)))
    assert reads == [2, 4, 6, 8, 10, 12]


def test_chunks_without_known_boundaries_are_experiences(toy, make_strategy):
    benchmark = toy_benchmark(per_class=3)
    chunks = split_online_stream(
        benchmark.train_stream, experience_size=3, shuffle=False, access_task_boundaries=False
    )
    plugin, sizes = projection(), []
    model = toy()
    model.head = nn.Linear(DIM, 6)  # the host's cannot grow without boundaries
    strategy = make_strategy(model, [plugin], train_epochs=1)
    for chunk in chunks:
        strategy.train(chunk)
        sizes.append(plugin.bases[WEIGHTS[0]][0].shape[1])
    assert sizes == [3, 6, 9, 12, 15, 18]


# --- memory --------------------------------------------------------------------------------------


def floats(held):
    """The numbers in all tensors that an object holds, itself or through others."""
    if torch.is_tensor(held):
        return held.numel()
    if isinstance(held, dict):
        return sum(map(floats, held.values()))
    if isinstance(held, list | tuple):
        return sum(map(floats, held))
    if type(held).__name__ in ("SiteStatistics", "RatioRule"):
        return floats(vars(held))
    if type(held).__name__ == "SiteBatch":
        return floats({k: v for k, v in vars(held).items() if k != "sites"})
    return 0


@pytest.mark.parametrize("scenario", ["class", "online"])
def test_memory_grows_neither_with_images_nor_with_experiences(toy, make_strategy, scenario):
    once = DIM**2 + 20**2 + 1  # d x d for each of the three sites
    for per_class in (3, 60):
        peak = []

        class Peak(GradientProjectionPlugin):
            def read(self, *args, **kwargs):
                super().read(*args, **kwargs)
                peak.append(floats(vars(self)))  # noqa: B023

        plugin = Peak(1.0, n_samples=None)
        strategy = make_strategy(toy(), [plugin], train_epochs=1, train_mb_size=30, eval_mb_size=30)
        for experience in stream(scenario, per_class=per_class):
            strategy.train(experience)
        assert once - 1 <= max(peak) <= 4 * once  # Gram matrices, bases, and bases in use
        assert 0 < plugin.stored_floats <= once
    assert plugin.stored_floats == once
