from itertools import pairwise

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_peftcl.models import PEFTModel
from avalanche_peftcl.models.modules.attention_adapter import build_attention_adapters
from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.plugins import HeadOnlyPlugin

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


class Record(SupervisedPlugin):
    """Keeps the parameters at the start of each experience and the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.kept, self.training = [], []

    def before_training_exp(self, strategy, **kwargs):
        self.kept.append([])
        self.training.append([])
        self.keep(strategy)

    def after_training_iteration(self, strategy, **kwargs):
        self.training[-1].append(all(p.requires_grad for n, p in tuned(strategy.model)))

    def after_training_epoch(self, strategy, **kwargs):
        self.keep(strategy)

    def keep(self, strategy):
        parameters = strategy.model.named_parameters()
        self.kept[-1].append({name: p.detach().clone() for name, p in parameters})

    def moved(self, prefix):
        """For each experience and epoch, whether parameters of this name moved."""
        return [
            [
                any(
                    not torch.equal(value[: len(before[name])], before[name])
                    for name, value in after.items()
                    if name.startswith(prefix)
                )
                for before, after in pairwise(epochs)
            ]
            for epochs in self.kept
        ]


def tuned(model):
    return [(n, p) for n, p in model.named_parameters() if n.startswith("branch.")]


def make(backbone, plugin, record, optimizer="sgd", **options):
    torch.manual_seed(0)
    model = PEFTModel(backbone, build_attention_adapters(backbone=backbone))
    return PEFTTemplate(
        model=model,
        optimizer=OPTIMIZERS[optimizer](model.parameters()),
        train_mb_size=6,
        plugins=[plugin, record],
        evaluator=EvaluationPlugin(),
        **({"train_epochs": 3} | options),
    )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("epochs", [0, 2, 3])
def test_the_head_alone_moves_first_in_all_experiences_but_the_first(backbone, epochs, optimizer):
    """Bit for bit, whatever momentum and weight decay would do."""
    record = Record()
    strategy = make(backbone, HeadOnlyPlugin(epochs), record, optimizer)
    for experience in toy_benchmark().train_stream:
        strategy.train(experience)
        assert all(p.requires_grad for _, p in tuned(strategy.model))
    late = [epoch >= epochs for epoch in range(3)]
    assert record.moved("branch.") == [[True] * 3, late, late]
    assert record.moved("head.") == [[True] * 3] * 3
    assert not any(p.requires_grad for p in strategy.model.backbone.parameters())


def test_an_online_stream_has_no_such_epochs(backbone):
    record, plugin = Record(), HeadOnlyPlugin(3)
    strategy = make(backbone, plugin, record, train_epochs=1)
    chunks = 0
    for chunk in toy_benchmark("online", experience_size=4).train_stream:
        strategy.train(chunk)
        chunks += 1
    assert chunks == 9
    assert plugin.n_experiences_done == 3
    assert record.moved("branch.") == [[True]] * 9


def test_frozen_parameters_stay_frozen(backbone):
    record = Record()
    strategy = make(backbone, HeadOnlyPlugin(1), record)
    strategy.model.branch.adapters["0"].requires_grad_(False)
    for experience in toy_benchmark().train_stream:
        strategy.train(experience)
    trains = [p.requires_grad for _, p in tuned(strategy.model)]
    assert trains == [False] * 3 + [True] * 6
    assert not any(map(any, record.moved("branch.adapters.0.")))


def test_an_interrupted_head_epoch_is_made_good_at_the_next_training(backbone):
    class Interrupt(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter == 1 and not self.done:
                self.done = True
                raise KeyboardInterrupt

        done = False

    record = Record()
    strategy = make(backbone, HeadOnlyPlugin(1), record)
    strategy.plugins.append(Interrupt())
    first, second, _ = toy_benchmark().train_stream
    strategy.train(first)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(second)
    strategy.train(second)
    assert record.moved("branch.")[-1] == [False, True, True]
    assert all(p.requires_grad for _, p in tuned(strategy.model))


def test_a_stop_before_a_head_epoch_leaves_nothing_frozen(backbone):
    """Early stopping ends an experience between the start of an epoch and its first minibatch."""

    class Stop(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter == 1 and strategy.clock.train_exp_epochs == 1:
                strategy.stop_training()

        def after_training_exp(self, strategy, **kwargs):
            ends.append(all(p.requires_grad for _, p in tuned(strategy.model)))

    ends, record = [], Record()
    strategy = make(backbone, HeadOnlyPlugin(2), record)
    strategy.plugins.append(Stop())
    for experience in toy_benchmark().train_stream:
        strategy.train(experience)
        assert all(p.requires_grad for _, p in tuned(strategy.model))
    assert ends == [True] * 3
    assert [len(epochs) - 1 for epochs in record.kept] == [3, 1, 3]


def test_any_model_of_any_strategy():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3 * 16 * 16, 8), nn.Linear(8, 6)

        def forward(self, x):
            return self.head(self.body(x.flatten(1)).relu())

    torch.manual_seed(0)
    model, record = Net(), Record()
    plugin = HeadOnlyPlugin(1, frozen=lambda name: not name.startswith("head"))
    strategy = Naive(
        model=model,
        optimizer=OPTIMIZERS["sgd"](model.parameters()),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=6,
        train_epochs=2,
        plugins=[plugin, record],
        evaluator=EvaluationPlugin(),
    )
    for experience in toy_benchmark().train_stream:
        strategy.train(experience)
    assert record.moved("body.") == [[True, True], [False, True], [False, True]]
    assert record.moved("head.") == [[True, True]] * 3
