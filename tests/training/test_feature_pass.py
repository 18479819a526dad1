"""Reading an experience after it was trained."""

import random

import numpy as np
import pytest
import torch
from avalanche.models import MTSimpleMLP, SimpleMLP
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import AdapterBranch, PEFTModel
from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.feature_pass import draw, feature_pass

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


def network(backbone):
    torch.manual_seed(0)
    return PEFTModel(backbone, AdapterBranch(backbone.embed_dim, backbone.depth))


def trained(model, experience, strategy=PEFTTemplate, **options):
    built = strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=6,
        eval_mb_size=5,
        evaluator=EvaluationPlugin(),
        **options,
    )
    built.train(experience)
    built.experience = experience  # as in a plugin's after_training_exp
    return built


def generators():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize("strategy", [PEFTTemplate, Naive])
def test_features_rows_and_labels_of_all_images_in_their_order(backbone, strategy):
    benchmark = toy_benchmark("task", augment="random_resized_crop")
    model, experience = network(backbone), benchmark.train_stream[0]
    seen = []
    feature_pass(trained(model, experience, strategy), seen.append)
    assert [len(batch.targets) for batch in seen] == [5, 5, 2]
    data = experience.dataset.eval()
    images = torch.stack([data[i][0] for i in range(len(data))])
    with torch.no_grad():
        expected = model.eval().embed(images)
    torch.testing.assert_close(torch.cat([batch.features for batch in seen]), expected)
    targets = torch.cat([batch.targets for batch in seen])
    assert targets.tolist() == [int(y) for y in data.targets]
    labels = torch.cat([batch.task_labels for batch in seen])
    rows = torch.cat([batch.rows for batch in seen])
    assert torch.equal(rows, model.classes.index(targets, labels))
    assert not any(batch.features.requires_grad for batch in seen)


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_generators_are_as_before(backbone, fails):
    class Draws(nn.Module):
        def forward(self, x):
            assert not self.training
            return x + 0 * (torch.rand(()) + random.random() + np.random.rand())

    model, experience = network(backbone), toy_benchmark().train_stream[0]
    strategy = trained(model, experience)
    model.branch.register_module("draws", Draws())
    embed = model.embed
    model.embed = lambda images: model.branch.draws(embed(images))
    model.train()
    model.branch.adapters.eval()  # a part that somebody keeps in eval mode
    modes, before = [m.training for m in model.modules()], generators()

    def consume(batch):
        if fails:
            raise RuntimeError("enough")

    if fails:
        with pytest.raises(RuntimeError, match="enough"):
            feature_pass(strategy, consume)
    else:
        feature_pass(strategy, consume)
    assert [m.training for m in model.modules()] == modes
    assert generators() == before


def test_any_model_of_any_strategy():
    experience = toy_benchmark().train_stream[0]
    model = SimpleMLP(num_classes=6, input_size=3 * 16 * 16, hidden_size=8)
    seen = []
    feature_pass(trained(model, experience, Naive), seen.append)
    assert [tuple(batch.features.shape) for batch in seen] == [(5, 6), (5, 6), (2, 6)]
    with pytest.raises(ConfigError, match="only the heads of a DynamicModel have rows"):
        _ = seen[0].rows


def test_a_model_that_wants_task_labels_gets_them():
    experience = toy_benchmark("task").train_stream[1]
    model = MTSimpleMLP(input_size=3 * 16 * 16, hidden_size=8)
    seen = []
    feature_pass(trained(model, experience, Naive), seen.append)
    assert sum(len(batch.features) for batch in seen) == 12


@pytest.mark.filterwarnings("ignore::avalanche_peftcl.errors.PrecisionWarning")
@pytest.mark.parametrize(("full", "dtype"), [(False, torch.bfloat16), (True, torch.float32)])
def test_the_network_runs_in_the_strategys_precision_and_what_reads_it_in_full(
    backbone, full, dtype
):
    model, experience = network(backbone), toy_benchmark().train_stream[0]
    strategy = trained(model, experience, mixed_precision="bf16")
    hidden, read = [], []
    model.backbone.blocks[0].mlp.fc1.register_forward_hook(
        lambda module, args, out: hidden.append(out.dtype)
    )
    feature_pass(
        strategy,
        lambda batch: read.append((torch.eye(2) @ torch.eye(2)).dtype),
        full_precision=full,
    )
    assert set(hidden) == {dtype}
    assert set(read) == {torch.float32}


def test_a_head_sees_the_features_where_it_is_asked_to(backbone):
    model, experience = network(backbone), toy_benchmark().train_stream[0]
    strategy, seen = trained(model, experience), []
    model.head.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    feature_pass(strategy)
    assert seen == []
    feature_pass(strategy, classify=True, dataset=draw(experience, 7, seed=0))
    assert seen == [5, 2]


def test_a_draw_is_without_repetition_and_of_its_seed():
    experience = toy_benchmark().train_stream[0]

    def drawn(n, seed=0):
        data = draw(experience, n, seed=seed).eval()
        return [data[i][0].sum().item() for i in range(len(data))]

    everything = drawn(None)
    assert drawn(99) == everything
    assert drawn(5) == drawn(5) != drawn(5, seed=1)
    assert len(set(drawn(5))) == 5
    assert set(drawn(5)) <= set(everything)
