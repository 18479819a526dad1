"""The pieces of NTK-CL with Avalanche's own strategies."""

import copy

import pytest
import torch
from avalanche.models import SimpleMLP
from avalanche.training import EWC, Naive
from avalanche.training.plugins import EvaluationPlugin
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.losses import pooled_nce, span_energy
from avalanche_peftcl.models import AdapterBranch, PEFTModel
from avalanche_peftcl.models.heads.prototypes import PrototypeHead
from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.plugins import (
    PrototypeContrastPlugin,
    RetentionPlugin,
    RunningMeanPlugin,
    TaskOrthogonalityPlugin,
)


def mlp():
    torch.manual_seed(0)
    model = SimpleMLP(num_classes=6, input_size=3 * 16 * 16, hidden_size=8, drop_rate=0)
    model.mean = copy.deepcopy(model.features).requires_grad_(False)
    return model


def naive(model, plugins, strategy=Naive, **options):
    return strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=torch.nn.CrossEntropyLoss(),
        train_mb_size=6,
        evaluator=EvaluationPlugin(),
        plugins=plugins,
        **options,
    )


def test_retention_keeps_parameters_near_their_start():
    moved = {}
    for weight in (0.0, 5.0):
        model = mlp()
        before = model.features[0].weight.detach().clone()
        strategy = naive(model, [RetentionPlugin(weight)], train_epochs=4)
        strategy.train(toy_benchmark().train_stream[0])
        moved[weight] = (model.features[0].weight - before).norm().item()
    assert 0 < moved[5.0] < 0.5 * moved[0.0]


def test_retention_refers_to_the_start_of_the_experience_and_to_chosen_names():
    model = mlp()
    plugin = RetentionPlugin(1.0, select=lambda name: name.startswith("classifier"))
    strategy = naive(model, [plugin], EWC, ewc_lambda=1.0)
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream[0])
    end = model.classifier.weight.detach().clone()
    strategy.train(benchmark.train_stream[1])
    assert set(plugin.reference) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(plugin.reference["classifier.weight"], end)


def test_running_mean_of_any_module_of_any_strategy():
    model, ends = mlp(), []
    strategy = naive(model, [RunningMeanPlugin("features", ["mean"])])
    for experience in toy_benchmark().train_stream:
        strategy.train(experience)
        ends.append(model.features[0].weight.detach().clone())
    torch.testing.assert_close(model.mean[0].weight, torch.stack(ends).mean(0))


def test_running_mean_counts_whole_experiences_of_an_online_stream():
    model = mlp()
    plugin = RunningMeanPlugin("features", ["mean"])
    strategy = naive(model, [plugin])
    for chunk in toy_benchmark("online", experience_size=5).train_stream:
        strategy.train(chunk)
    assert plugin.n_experiences_done == 3


class PrototypeTuning(PEFTModel):
    """Sequential tuning that keeps prototypes beside its linear head."""

    def __init__(self, backbone):
        super().__init__(backbone, AdapterBranch(backbone.embed_dim, backbone.depth, dropout=0.0))
        self.prototypes = PrototypeHead(backbone.embed_dim)

    def start_experience(self, pairs, *, fresh=True):
        super().start_experience(pairs, fresh=fresh)
        self.prototypes.grow(len(self.classes))

    @property
    def heads(self):
        return (self.head, self.prototypes)


def tuning(backbone, plugins):
    torch.manual_seed(0)
    model = PrototypeTuning(backbone)
    return PEFTTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        train_mb_size=6,
        train_epochs=2,
        plugins=plugins,
        evaluator=EvaluationPlugin(),
    )


def test_prototypes_beside_another_head(backbone):
    strategy = tuning(backbone, [])
    strategy.train(toy_benchmark().train_stream)
    assert strategy.model.prototypes.counts.tolist() == [6] * 6
    assert strategy.model.prototypes.prototypes.norm(dim=1).min() > 0


@pytest.mark.parametrize(
    ("plugin", "term"),
    [
        (
            TaskOrthogonalityPlugin(2.0),
            lambda s, p: 2.0 * span_energy(s.mb_features[0], p.basis),
        ),
        (
            PrototypeContrastPlugin(0.5, temperature=0.2),
            lambda s, p: (
                0.5
                * pooled_nce(
                    torch.cat([s.mb_features[0], s.model.prototypes.prototypes[:2]]),
                    torch.cat([s.mb_rows, torch.arange(2)]),
                    temperature=0.2,
                )
            ),
        ),
    ],
)
def test_terms_add_to_the_loss_what_their_formula_says(backbone, plugin, term):
    strategy = tuning(backbone, [plugin])
    differences = []
    criterion = strategy.criterion
    seen = {}
    strategy.criterion = lambda: seen.update(loss=criterion()) or seen["loss"]
    backward = strategy.backward

    def check():
        if strategy.clock.train_exp_counter == 1:
            expected = seen["loss"] + term(strategy, plugin)
            differences.append(abs(strategy.loss.item() - expected.item()))
        backward()

    strategy.backward = check
    strategy.train(toy_benchmark().train_stream[:2])
    assert len(differences) == 4
    assert max(differences) < 1e-4


@pytest.mark.parametrize(("n_prototypes", "drawn"), [(None, 4), (0, 0), (3, 3), (99, 4)])
def test_the_number_of_prototypes_is_that_asked_for_in_the_last_minibatch_too(
    backbone, n_prototypes, drawn, monkeypatch
):
    rows = []
    monkeypatch.setattr(
        "avalanche_peftcl.training.plugins.prototype_contrast.pooled_nce",
        lambda features, labels, **options: rows.append(len(labels)) or features.sum() * 0,
    )
    plugin = PrototypeContrastPlugin(0.5, n_prototypes=n_prototypes)
    strategy = tuning(backbone, [plugin])
    strategy.train_epochs = 1
    benchmark = toy_benchmark(per_class=5)
    strategy.train(benchmark.train_stream)
    assert rows[-2:] == [6 + drawn, 4 + drawn]  # ten images in minibatches of six; four old classes


def test_a_negative_number_of_prototypes_is_refused():
    with pytest.raises(ConfigError, match="n_prototypes must be 0 or more, or None, not -1"):
        PrototypeContrastPlugin(0.5, n_prototypes=-1)


def test_orthogonality_rests_while_there_is_nothing_old(backbone):
    plugin = TaskOrthogonalityPlugin(1.0)
    strategy = tuning(backbone, [plugin])
    benchmark = toy_benchmark("domain")
    strategy.train(benchmark.train_stream[0])
    assert plugin.basis is None
    strategy.train(benchmark.train_stream[1])  # all classes come again: none is old
    assert plugin.basis is None


def test_old_prototypes_span_the_basis(backbone):
    plugin = TaskOrthogonalityPlugin(1.0)
    strategy = tuning(backbone, [plugin])
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream)
    old = F.normalize(strategy.model.prototypes.prototypes[:4], dim=1)
    torch.testing.assert_close(old @ plugin.basis @ plugin.basis.T, old, atol=1e-5, rtol=1e-5)
