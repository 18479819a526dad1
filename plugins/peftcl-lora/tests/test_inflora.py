"""InfLoRA: A against NumPy, computed from the inputs of a network that is run by hand."""

import copy

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from peftcl_lora.dual_gpm import extend_memory, free_directions
from peftcl_lora.inflora import InfLoRAPlugin, build_inflora

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.testing import toy_backbone, toy_benchmark

SETTINGS = {"mixed_precision": "no", "evaluator": EvaluationPlugin(), "train_mb_size": 6}
SHARE = 0.9999  # of the squared energy, nearly all of which is that of the mean


def inputs_by_hand(model, experience):
    """Return R of each block's attention input, of a network with the pairs in its weights."""
    network = copy.deepcopy(model.backbone)
    for block, layer in zip(network.blocks, model.branch.paired(), strict=True):
        ups, downs = (torch.cat([layer.past(n), getattr(layer, n)[None]]) for n in ("up", "down"))
        for i, row in enumerate((32, 64)):  # k and v, of width 32
            block.attn.qkv.weight.data[row : row + 32] += (ups[:, i] @ downs[:, i]).sum(0)
    dataset, found = experience.dataset.eval(), []
    with torch.no_grad():
        tokens = network.embed(torch.stack([dataset[i][0] for i in range(len(dataset))]))
        for block in network.blocks:
            x = block.norm1(tokens).flatten(0, 1).double().numpy()
            found.append(x.T @ x / len(x))
            tokens = block(tokens)
    return found


def leading(matrix, share):
    """Return left singular vectors that hold a share of the squared singular values."""
    left, values, _ = np.linalg.svd(matrix)
    held = np.cumsum(values**2) / np.sum(values**2)
    return left[:, : 1 + np.searchsorted(held, share)]


@pytest.fixture(scope="module")
def trained():
    """The networks after each of two experiences, the benchmark and the strategy."""
    torch.manual_seed(0)
    benchmark, ends = toy_benchmark(classes_per_experience=(2, 2)), []
    strategy = build_inflora(
        backbone=toy_backbone(), r=3, threshold=SHARE, lr=0.02, train_epochs=3, **SETTINGS
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        ends.append(copy.deepcopy(strategy.model).requires_grad_(False))
    return strategy, benchmark, ends


def test_a_is_orthogonal_to_old_inputs_and_leading_among_the_rest(trained):
    strategy, benchmark, (first, second) = trained
    old = inputs_by_hand(first, benchmark.train_stream[0])
    new = inputs_by_hand(first, benchmark.train_stream[1])  # as the second one finds it
    (plugin,) = (p for p in strategy.plugins if isinstance(p, InfLoRAPlugin))
    sizes = []
    for place, layer in enumerate(second.branch.paired()):
        taken = leading(old[place], SHARE)
        sizes.append(taken.shape[1])
        rest = new[place] - taken @ taken.T @ new[place]
        expected = np.linalg.svd(rest)[0][:, :3].T
        for part in range(2):
            rows = layer.down[part].double().numpy() * np.sqrt(3)
            np.testing.assert_allclose(rows @ taken, 0, atol=1e-5)
            np.testing.assert_allclose(np.abs(rows @ expected.T), np.eye(3), atol=1e-3)
    assert min(sizes) >= 1
    assert max(sizes) > 1
    # what is remembered after the second experience still holds what was after the first
    for place, size in enumerate(sizes):
        basis = plugin.bases[str(place)].numpy()
        assert basis.shape[1] >= size
        taken = leading(old[place], SHARE)
        np.testing.assert_allclose(basis @ basis.T @ taken, taken, atol=1e-4)


def test_the_first_a_is_leading_among_all(trained):
    _, benchmark, (first, _) = trained
    network = copy.deepcopy(first)
    for layer in network.branch.paired():
        layer.up.zero_()
    for layer, mean in zip(
        first.branch.paired(), inputs_by_hand(network, benchmark.train_stream[0]), strict=True
    ):
        expected = np.linalg.svd(mean)[0][:, :3].T
        rows = layer.down[1].double().numpy() * np.sqrt(3)
        np.testing.assert_allclose(np.abs(rows @ expected.T), np.eye(3), atol=1e-3)


def test_b_alone_trains(trained):
    strategy, _, (first, second) = trained
    for old, new in zip(first.branch.paired(), second.branch.paired(), strict=True):
        assert torch.equal(new.past_down[0], old.down)
        assert torch.equal(new.past_up[0], old.up)
        assert bool((new.up != 0).any())
    names = {n for n, p in strategy.model.branch.named_parameters() if p.requires_grad}
    assert names == {f"layers.{i}.up" for i in range(3)}


@pytest.mark.parametrize("rank", [4, 11])  # of 16: the other side of the switch
def test_what_is_remembered_wholly_is_never_touched(rank):
    rng = np.random.default_rng(0)
    basis, spans_free, taken = torch.zeros(16, 0), False, np.zeros((0, 16))
    for rows in (rank, 2):
        x = rng.normal(size=(rows, 16))
        gram = torch.from_numpy(x.T @ x / rows)
        basis, spans_free = extend_memory(gram, basis, spans_free=spans_free, threshold=1.0)
        taken = np.concatenate([taken, x])
        assert spans_free == (rank > 8)
        assert basis.shape[1] == (16 - len(taken) if spans_free else len(taken))
        new = rng.normal(size=(40, 16))
        directions = free_directions(
            torch.from_numpy(new.T @ new / 40), basis, 3, spans_free=spans_free
        ).numpy()
        np.testing.assert_allclose(directions @ taken.T, 0, atol=1e-9)
        np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-9)


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_memory_holds_its_share_and_not_a_direction_more(threshold):
    rng = np.random.default_rng(1)
    basis, spans_free = torch.zeros(12, 0), False
    for _ in range(4):
        x = rng.normal(size=(60, 12)) * 0.5 ** np.arange(12)
        mean = x.T @ x / 60
        old = basis.shape[1]
        basis, spans_free = extend_memory(
            torch.from_numpy(mean), basis, spans_free=spans_free, threshold=threshold
        )
        inside = basis.numpy() @ basis.numpy().T @ mean
        rest = inside if spans_free else mean - inside
        assert np.sum(rest**2) <= (1 - threshold) * np.sum(mean**2) + 1e-9
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-9)
        if old == 0 and not spans_free:
            assert basis.shape[1] == leading(mean, threshold).shape[1]


def test_nothing_is_left_where_old_inputs_take_all():
    every = torch.eye(5)
    basis, spans_free = extend_memory(every, torch.zeros(5, 0), spans_free=False, threshold=1.0)
    assert basis.shape == (5, 0)
    assert spans_free
    assert not free_directions(every, basis, 2, spans_free=spans_free).any()


def test_the_share_grows_only_where_the_number_of_experiences_is_given():
    given, open_ended = InfLoRAPlugin(0.9, n_experiences=4), InfLoRAPlugin(0.9)
    given.n_done = open_ended.n_done = 2
    assert given.share() == pytest.approx(0.95)
    assert open_ended.share() == 0.9


def test_more_experiences_than_said_are_refused():
    strategy = build_inflora(
        backbone=toy_backbone(), r=2, n_experiences=1, train_epochs=1, **SETTINGS
    )
    stream = toy_benchmark().train_stream
    strategy.train(stream[0])
    with pytest.raises(ConfigError, match="n_experiences=1"):
        strategy.train(stream[1])


def test_more_directions_than_a_token_has_are_refused():
    with pytest.raises(ConfigError, match="r=33 directions do not fit"):
        build_inflora(backbone=toy_backbone(), r=33)
