"""The tangent kernel inside Avalanche: what is read and predicted, and that nothing is moved."""

import functools
import json

import numpy as np
import pytest
import torch
from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.logging import BaseLogger
from avalanche.models import MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from sklearn.kernel_ridge import KernelRidge
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation import NTKMetric, ntk_kernels, ntk_metrics
from avalanche_peftcl.models import FrozenBranch, RidgeHead
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.testing.probes import differing, weights
from avalanche_peftcl.testing.resuming import carried_over
from avalanche_peftcl.training.closed_form import build_closed_form
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.nearest_class_mean import build_nearest_class_mean
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp

TRAINED = {"train_epochs": 1, "train_mb_size": 6, "mixed_precision": "no", "lr": 0.01}
LISTS = (
    *("inter_task", "trace", "smallest_eigenvalue", "condition", "alignment", "complexity"),
    *("drift_from_first", "drift_across_switch", "drift_within", "train_test_gap"),
)


def metric(**options):
    return ntk_metrics(**({"probe_images": 6, "old_images": 4, "chunk_size": 5} | options))


def evaluator(*metrics):
    return EvaluationPlugin(*metrics, loggers=[BaseLogger()])


def trained(build, found, *, scenario="class", experiences=2, **options):
    torch.manual_seed(0)
    metrics = [] if found is None else [found]
    strategy = build(backbone=toy_backbone(), evaluator=evaluator(*metrics), **options)
    for experience in list(toy_benchmark(scenario).train_stream)[:experiences]:
        strategy.train(experience, eval_streams=[])
    return strategy


METHODS = {
    "naive": (build_naive, TRAINED),
    "naive with ridge": (build_naive, TRAINED | {"head": RidgeHead}),
    "pegp": (build_pegp, TRAINED | {"head_epochs": 0}),
    "corrected": (build_ntk_cl, TRAINED | {"r": 2, "prompt_length": 2}),
    "released": (build_ntk_cl, TRAINED | {"r": 2, "prompt_length": 2, "recipe": "released"}),
    "kernel": (build_ntk_cl, TRAINED | {"r": 2, "recipe": "kernel"}),
    "closed_form": (build_closed_form, {}),
}


@pytest.mark.parametrize("method", METHODS)
def test_it_measures_every_method(method):
    build, options = METHODS[method]
    found = metric()
    trained(build, found, **options)
    told = found.summary()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["probe_images"] == 6
    assert told["form"] == "pseudo"
    assert all(len(told[name]) == 2 for name in LISTS)
    table = told["kernel_map"]
    assert table[0][0] == pytest.approx(1)
    between = pytest.approx(told["inter_task"][1], rel=1e-12)
    assert table[0][1] == between
    assert table[1][0] == between
    assert table[2] == [None] * 3
    (pair,) = told["forgetting"]
    assert (pair["experience"], pair["after"]) == (0, 1)
    assert pair["predicted"] > 0
    assert pair["measured"] > 0
    assert all(isinstance(value, float) for value in told["train_test_gap"])


@pytest.mark.parametrize("scenario", ["task", "domain", "online"])
def test_it_measures_every_scenario(scenario):
    found = metric()
    torch.manual_seed(0)
    strategy = build_naive(backbone=toy_backbone(), evaluator=evaluator(found), **TRAINED)
    for experience in toy_benchmark(scenario).train_stream:
        strategy.train(experience, eval_streams=[])
    told = found.summary()
    n = len(told["trace"])
    assert len(told["kernel_map"]) == n > 1
    assert len(told["forgetting"]) == n * (n - 1) // 2
    assert all(value is not None for row in told["kernel_map"] for value in row)


@pytest.mark.parametrize("method", ["corrected", "closed_form"])
def test_a_run_is_the_same_to_the_bit_with_it_and_without(method):
    build, options = METHODS[method]
    ends = []
    for found in (None, metric()):
        strategy = trained(build, found, **options)
        state = weights(strategy.model) | {"random": torch.get_rng_state()}
        ends.append(state)
        if found is not None:
            assert all(not branch.terms for branch in strategy.network.branches)
    assert not differing(*ends)


@pytest.mark.filterwarnings("ignore::avalanche_peftcl.errors.PrecisionWarning")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_forgetting_of_a_ridge_head_is_predicted_to_rounding(precision):
    found = metric()
    head = functools.partial(RidgeHead, penalty=0.5)
    options = {"head": head, "mixed_precision": precision}
    trained(build_closed_form, found, experiences=3, **options)
    pairs = found.summary()["forgetting"]
    assert len(pairs) == 3
    # the head keeps its weights in float32
    for pair in pairs:
        assert pair["measured"] > 1e-3
        assert pair["predicted"] == pytest.approx(pair["measured"], rel=1e-4)
        assert pair["predicted_loss"] == pytest.approx(pair["measured_loss"], rel=1e-3, abs=1e-6)
    assert found.summary()["drift_from_first"] == pytest.approx([0, 0, 0], abs=1e-14)


def linear_stream(*, n=40):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat(n // 4)
    x = torch.randn(n, 5, generator=generator) + y[:, None]
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    data = as_classification_dataset(data)
    return class_incremental_benchmark({"train": data, "test": data}, num_experiences=2, seed=0)


def host(model, found, *, lr=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Naive(model=model, optimizer=optimizer, train_mb_size=10, evaluator=evaluator(found))


@pytest.mark.parametrize("form", ["pseudo", "logit", "sketch"])
def test_of_a_linear_model_of_the_host_all_is_what_scikit_learn_says(form):
    """All images are probes: nothing is drawn, and an independent regression knows the answer."""
    torch.manual_seed(0)
    model, found = nn.Linear(5, 4), metric(probe_images=20, old_images=20, form=form, ridge=0.1)
    strategy, benchmark = host(model, found), linear_stream()
    first, second = benchmark.train_stream
    strategy.train(first)
    (x_old, _), (x, y) = (rows(experience) for experience in (first, second))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    strategy.train(second)

    def h(x):
        return np.concatenate([x, np.ones((len(x), 1))], axis=1)

    gram = h(x) @ h(x).T
    ridge = 0.1 * np.trace(gram) / 20
    weight = np.concatenate([start["weight"].numpy().T, start["bias"].numpy()[None]])
    residual = np.eye(4)[y] - h(x) @ weight
    judge = KernelRidge(alpha=ridge, kernel="precomputed").fit(gram, residual)
    change = judge.predict(h(x_old) @ h(x).T)
    end = np.concatenate([model.weight.detach().numpy().T, model.bias.detach().numpy()[None]])
    moved = h(x_old) @ (end - weight)
    told = found.summary()
    (pair,) = told["forgetting"]
    assert pair["predicted"] == pytest.approx(np.sqrt((change**2).sum(1).mean()), rel=1e-4)
    assert pair["measured"] == pytest.approx(np.sqrt((moved**2).sum(1).mean()), rel=1e-4)
    copies = 4 if form == "logit" else 1
    assert told["trace"][1] == pytest.approx(copies * np.trace(gram), rel=1e-5)
    norms = [np.linalg.norm(h(a) @ h(b).T) for a, b in ((x_old, x), (x_old, x_old), (x, x))]
    expected = norms[0] / np.sqrt(norms[1] * norms[2])
    assert told["kernel_map"][0][1] == pytest.approx(expected, rel=1e-4)
    assert told["drift_within"] == pytest.approx([0, 0], abs=1e-6)
    assert told["train_test_gap"] == [None, None]  # these streams know no test stream


def rows(experience):
    pairs = [experience.dataset[i] for i in range(len(experience.dataset))]
    return np.stack([p[0].numpy() for p in pairs]).astype(float), np.array([p[1] for p in pairs])


def test_jacobians_that_do_not_fit_into_memory_are_computed_again(monkeypatch):
    told = []
    for limit in (2**30, 1):
        monkeypatch.setattr(ntk_kernels, "_HELD_BYTES", limit)
        found = metric(chunk_size=2)
        trained(build_naive, found, **TRAINED)
        told.append(found.summary())
    for name in ("trace", "inter_task", "alignment"):
        for a, b in zip(*(each[name] for each in told), strict=True):
            assert a == (None if b is None else pytest.approx(b, rel=1e-5))


def test_heads_can_be_left_out():
    found = metric(parameters="module")
    trained(build_naive, found, **TRAINED)
    # a linear head starts at 0: by the modules below it nothing can be told of the first experience
    assert found.summary()["trace"][0] == 0
    assert found.summary()["trace"][1] > 0
    assert found.summary()["alignment"][0] is None
    with pytest.raises(ConfigError, match="the head alone trains"):
        trained(build_naive, metric(parameters="module"), module=FrozenBranch(), **TRAINED)


class ByTask(MultiTaskModule):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 4)

    def adaptation(self, experience):
        pass


def test_it_refuses_what_has_no_kernel_here():
    with pytest.raises(ConfigError, match="nothing trains here, and a PrototypeHead"):
        trained(build_nearest_class_mean, metric())
    with pytest.raises(ConfigError, match="leave form and parameters"):
        trained(build_closed_form, metric(form="sketch"))
    with pytest.raises(ConfigError, match="which logits of a ByTask train"):
        host(ByTask(), metric()).train(linear_stream().train_stream[0])
    with pytest.raises(ConfigError, match="cannot tell module from head"):
        host(nn.Linear(5, 4), metric(parameters="module")).train(linear_stream().train_stream[0])


class Branching(nn.Module):
    """Asks for a number, which no derivative of many images at a time can give."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(x) if x.sum().item() > 0 else -self.head(x)


def test_it_refuses_what_cannot_be_differentiated_image_by_image():
    with pytest.raises(ConfigError, match="cannot differentiate a Branching"):
        host(Branching(), metric()).train(linear_stream().train_stream[0])


@pytest.mark.parametrize("method", ["naive", "closed_form"])
def test_a_run_that_goes_on_tells_the_same(method):
    build, options = METHODS[method]
    told = []
    for stops in (False, True):
        torch.manual_seed(0)
        found = [metric(), metric()]

        def new(which, kept=found):
            return build(backbone=toy_backbone(), evaluator=evaluator(kept[which]), **options)

        strategy, benchmark = new(0), toy_benchmark("class")
        first, second, third = benchmark.train_stream
        strategy.train(first, eval_streams=[])
        strategy.eval(benchmark.test_stream)
        if stops:
            strategy = carried_over(strategy, lambda: new(1), benchmark)  # called here
        strategy.train(second, eval_streams=[])
        strategy.train(third, eval_streams=[])
        told.append(found[int(stops)].summary())
    assert told[0] == told[1]
    assert len(told[0]["forgetting"]) == 3


def test_an_experience_that_is_broken_off_is_not_predicted_twice():
    """Where a run goes on inside an experience, what was read as it began holds."""
    found = metric()
    strategy = trained(build_naive, found, experiences=1, **TRAINED)
    second = toy_benchmark().train_stream[1]
    strategy.train(second, eval_streams=[])
    whole = found.summary()["forgetting"]
    found._begun, before = {"experience": 2, "change": "kept"}, dict(found._images)
    strategy.experience = toy_benchmark().train_stream[2]
    found.before_training_exp(strategy)
    assert found._begun == {"experience": 2, "change": "kept"}
    assert found._images == before
    assert found.summary()["forgetting"] == whole


def test_reset_forgets():
    found = metric()
    trained(build_naive, found, experiences=1, **TRAINED)
    found.reset()
    assert found.summary() == metric().summary()
    assert isinstance(found, NTKMetric)
