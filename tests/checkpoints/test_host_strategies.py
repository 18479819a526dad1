"""Avalanche's own strategies train our networks as they are."""

import copy
import pickle
import random
import sys

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import DynamicModule, IncrementalClassifier, MultiTaskModule
from avalanche.training import supervised
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_peftcl.models import (
    AdapterBranch,
    FrozenBranch,
    NTKCLModel,
    PEFTModel,
    PrototypeHead,
)
from avalanche_peftcl.testing import toy_backbone, toy_benchmark

pytestmark = [
    pytest.mark.filterwarnings("ignore:No loggers specified"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

HOST = {
    "Naive": {},
    "Cumulative": {},
    "JointTraining": {},
    "FromScratchTraining": {},
    "Replay": {"mem_size": 12},
    "GDumb": {"mem_size": 24},
    "ER_ACE": {"mem_size": 12, "batch_size_mem": 4},
    "MIR": {"mem_size": 12, "subsample": 6},
    "AGEM": {"patterns_per_exp": 6, "sample_size": 12},
    "GEM": {"patterns_per_exp": 6},
    "EWC": {"ewc_lambda": 0.1},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
    "SynapticIntelligence": {"si_lambda": 0.01},
    "MAS": {"lambda_reg": 0.01},
}


def peft():
    return PEFTModel(toy_backbone(), AdapterBranch(32, 3, r=4))


def ntk_cl():
    return NTKCLModel(toy_backbone())


def class_means():
    return PEFTModel(toy_backbone(), FrozenBranch(), PrototypeHead(32))


def train(name, model, benchmark, *, epochs=10, optimizer=None, lr=0.003):
    """Train one of the host's strategies; return it and the accuracy on each test experience."""
    random.seed(0)
    np.random.seed(0)
    strategy = getattr(supervised, name)(
        model=model,
        optimizer=optimizer or torch.optim.Adam(model.parameters(), lr=lr, weight_decay=1e-3),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=4,
        train_epochs=epochs,
        eval_mb_size=16,
        evaluator=EvaluationPlugin(accuracy_metrics(experience=True)),
        **HOST.get(name, {}),
    )
    stream = benchmark.train_stream
    for experiences in [stream] if name == "JointTraining" else stream:
        strategy.train(experiences)
        results = strategy.eval(benchmark.test_stream)
    return strategy, [results[key] for key in sorted(results)]


EPOCHS = {"AGEM": 20, "FromScratchTraining": 25}  # those that learn a new experience slowly
SLOW = pytest.mark.slow
QUICK = {
    "class": ("JointTraining", "Replay", "AGEM", "SynapticIntelligence", "MAS"),
    "task": ("Naive", "LwF"),
}
QUICK_NTK_CL = ("Naive", "class")
CASES = [
    pytest.param(name, build, scenario, marks=() if quick else SLOW)
    for name in HOST
    for build in (peft, ntk_cl)
    for scenario in ("class", "task")
    for quick in [(build is peft and name in QUICK[scenario]) or (name, scenario) == QUICK_NTK_CL]
]


@pytest.mark.parametrize(("name", "build", "scenario"), CASES)
def test_the_head_grows_and_what_is_frozen_stays(name, build, scenario):
    torch.manual_seed(0)
    benchmark = toy_benchmark(scenario, classes_per_experience=(2, 2), per_class=10)
    options = {"lr": 0.003 if build is peft else 0.01, "epochs": EPOCHS.get(name, 10)}
    strategy, accuracies = train(name, build(), benchmark, **options)
    model = strategy.model  # some of the host's strategies replace it
    assert len(model.classes) == 4
    head = model.head.weight if build is peft else model.proxies.weight
    assert head.shape[0] == 4
    assert any(head is p for group in strategy.optimizer.param_groups for p in group["params"])
    # chance is 1/2 where the task label is used; without it naive tuning keeps the last classes
    assert len(accuracies) == 2
    assert max(accuracies) > 0.75
    frozen = toy_backbone().state_dict()
    after = model.backbone.state_dict()
    assert all(torch.equal(frozen[key], after[key]) for key in frozen)
    assert not any(m.training for m in model.backbone.modules())


@pytest.mark.parametrize("build", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_weight_decay_leaves_frozen_weights_alone(build):
    """The host puts every parameter into the optimizer, frozen ones too."""
    model = peft()
    optimizer = build(model.parameters(), lr=0.1, weight_decay=0.5)
    benchmark = toy_benchmark(classes_per_experience=(2, 2))
    strategy, _ = train("Naive", model, benchmark, epochs=1, optimizer=optimizer)
    held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
    assert held >= {id(p) for p in model.backbone.parameters()}
    before, after = toy_backbone().state_dict(), model.backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


class Plain(nn.Module):
    """What the host's documentation trains: a linear layer and a classifier that grows."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3 * 16 * 16, 8)
        self.classifier = IncrementalClassifier(8, initial_out_features=2)

    def forward(self, x):
        return self.classifier(torch.relu(self.hidden(x.flatten(1))))


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("DER", {"mem_size": 12, "batch_size_mem": 4}, RuntimeError),  # logits of another width
        ("LFL", {"lambda_e": 0.01}, NotImplementedError),  # wants the host's BaseModel
        ("BiC", {"mem_size": 12}, TypeError),  # an argument that torch took away
    ],
)
def test_what_fails_upstream_fails_with_the_hosts_own_network_too(
    name, options, error, monkeypatch
):
    """A fixed Avalanche is noticed here."""
    monkeypatch.setitem(HOST, name, options)
    benchmark = toy_benchmark(classes_per_experience=(2, 2))
    for model in (Plain(), peft()):
        with pytest.raises(error):
            train(name, model, benchmark, epochs=1)


def test_lwf_distils_each_task_from_its_own_classes():
    """The old network is asked for the classes of the old task, not for masked logits."""
    torch.manual_seed(0)
    benchmark = toy_benchmark("task", classes_per_experience=(2, 2))
    strategy, _ = train("LwF", peft(), benchmark, epochs=1)
    (plugin,) = (p for p in strategy.plugins if type(p).__name__ == "LwFPlugin")
    images = torch.stack([benchmark.test_stream[1].dataset[i][0] for i in range(3)])
    by_task = strategy.model(images, None)
    assert sorted(by_task) == [0, 1]
    assert (by_task[0][:, :2] > -1000).all()
    assert (by_task[0][:, 2:] == -1000).all()
    with torch.no_grad():
        strategy.model.head.weight[:2].mul_(-3).add_(0.1)  # away from the old network
    penalty = plugin.lwf(images, None, strategy.model)
    (gradient,) = torch.autograd.grad(penalty, strategy.model.head.weight)
    assert gradient[:2].abs().max() > 0


# --- what the host takes them for ----------------------------------------------------------------


@pytest.mark.parametrize("build", [peft, ntk_cl, class_means])
def test_they_are_the_hosts_dynamic_modules(build):
    model = build()
    kind = type(model)
    assert isinstance(model, DynamicModule)
    assert isinstance(model, kind)
    assert not isinstance(model, MultiTaskModule)  # BiC and others refuse those
    assert repr(model).startswith(f"{kind.__name__}(")
    model.adaptation(toy_benchmark("task", classes_per_experience=(2, 2)).train_stream[0])
    assert isinstance(model, MultiTaskModule)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(again) is kind
        assert isinstance(again, MultiTaskModule)
        state = again.state_dict()
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_evaluation_adds_no_class_and_training_adds_each_once():
    benchmark = toy_benchmark(classes_per_experience=(2, 2))
    model = peft()
    for experience in (benchmark.train_stream[0], benchmark.train_stream[0]):
        model.train()
        model.adaptation(experience)
        model.eval()
        model.adaptation(benchmark.test_stream[1])
    assert model.classes.keys.tolist() == [[0, 0], [0, 1]]
    logits = model(torch.zeros(1, 3, 16, 16))
    assert logits.shape == (1, 4)
    assert logits[0, 2:].tolist() == [-1000, -1000]


def test_inside_a_larger_network_they_grow_too():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = peft()

        def forward(self, x):
            return self.inner(x)

    model = Wrapped()
    train("Naive", model, toy_benchmark(classes_per_experience=(2, 2)), epochs=1)
    assert len(model.inner.classes) == 4


def test_a_network_needs_no_avalanche_and_may_be_older_than_it(monkeypatch):
    model = peft()
    with monkeypatch.context() as without:
        without.delitem(sys.modules, "avalanche.models.dynamic_modules")
        assert model.__class__ is PEFTModel
    assert isinstance(model, DynamicModule)
