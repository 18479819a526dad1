"""Passes through the backbone in training: as many as a hand counts."""

import copy
import pickle

import pytest
import torch
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_peftcl.evaluation import CostMetric, NTKMetric
from avalanche_peftcl.models import Backbone, InputConfig
from avalanche_peftcl.models.counting import passes_so_far, uncounted_passes
from avalanche_peftcl.models.meter import Meter
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training.closed_form import build_closed_form
from avalanche_peftcl.training.feature_cache import VARIABLE
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp
from avalanche_peftcl.training.plugins.host import lwf, replay


class Seen(SupervisedPlugin):
    """Images of all minibatches, those of a memory too."""

    def __init__(self):
        super().__init__()
        self.images = []

    def before_training_exp(self, strategy, **kwargs):
        self.images.append(0)

    def after_training_iteration(self, strategy, **kwargs):
        self.images[-1] += len(strategy.mb_x)


def trained(build, *, experiences=2, plugins=(), **options):
    cost = CostMetric()
    evaluator = EvaluationPlugin(cost, loggers=[])
    strategy = build(backbone=toy_backbone(), evaluator=evaluator, plugins=list(plugins), **options)
    stream = toy_benchmark("class")
    for number, experience in enumerate(stream.train_stream[:experiences]):
        strategy.train(experience)
        strategy.eval(stream.test_stream[: number + 1])
    return cost.summary()


@pytest.mark.parametrize(
    ("build", "options", "passes"),
    [
        (build_naive, {"train_epochs": 2}, [2, 2]),
        # statistics: one; a second stage passes each image with both modules
        (build_pegp, {"train_epochs": 2, "head_epochs": 1, "n_samples": 6}, [2.5, 2 + 2 + 0.5]),
        # two kinds of modules, each with a copy; class means read the images once more
        (build_ntk_cl, {"train_epochs": 2}, [4 * 3, 4 * 3]),
        (build_naive, {"train_epochs": 1, "plugins": [lwf()]}, [1, 2]),  # the copy's pass is one
        (build_closed_form, {}, [1, 1]),
    ],
    ids=["naive", "pegp", "ntk_cl", "lwf", "closed_form"],
)
def test_passes_are_those_that_a_hand_counts(build, options, passes):
    assert trained(build, **options)["training_passes"] == passes


def test_a_memory_passes_too():
    seen = Seen()
    cost = trained(build_naive, train_epochs=2, train_mb_size=4, plugins=[replay(mem_size=6), seen])
    assert cost["training_passes"] == [images / 12 for images in seen.images]
    assert cost["training_passes"][1] > 2
    assert cost["training_steps"] == [6, 6]


def test_a_metric_of_the_package_counts_as_none():
    stream, cost = toy_benchmark("class"), CostMetric()
    evaluator = EvaluationPlugin(cost, NTKMetric(probe_images=4), loggers=[])
    strategy = build_naive(backbone=toy_backbone(), train_epochs=1, evaluator=evaluator)
    strategy.train(stream.train_stream[0])
    assert cost.summary()["training_passes"] == [1]


def test_evaluations_inside_training_count_as_none():
    stream, cost = toy_benchmark("class"), CostMetric()
    strategy = build_naive(
        backbone=toy_backbone(),
        train_epochs=2,
        evaluator=EvaluationPlugin(cost, loggers=[]),
    )
    strategy.eval_every = 1
    strategy.train(stream.train_stream[0], eval_streams=[stream.test_stream])
    strategy.eval(stream.test_stream)
    assert cost.summary()["training_passes"] == [2]


def test_chunks_of_an_experience_are_summed():
    stream, cost = toy_benchmark("class"), CostMetric()
    strategy = build_naive(
        backbone=toy_backbone(), train_epochs=1, evaluator=EvaluationPlugin(cost, loggers=[])
    )
    for chunk in split_online_stream(stream.train_stream[:1], experience_size=5):
        strategy.train(chunk)
    assert cost.summary()["training_passes"] == [1]


def test_features_that_lay_in_a_cache_are_no_pass(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert trained(build_closed_form)["training_passes"] == [1, 1]
    assert trained(build_closed_form)["training_passes"] == [0, 0]


def test_a_metric_goes_on_from_its_state():
    cost = CostMetric()
    strategy = build_naive(
        backbone=toy_backbone(), train_epochs=2, evaluator=EvaluationPlugin(cost, loggers=[])
    )
    states = []

    class Save(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            states.append(copy.deepcopy(cost.state_dict()))

    strategy.plugins.append(Save())
    strategy.train(toy_benchmark("class").train_stream[0])
    restored = CostMetric()
    restored.load_state_dict(states[0])
    assert restored.summary()["training_passes"] == [1]
    assert restored.summary()["training_steps"] == [1]
    assert cost.summary()["training_passes"] == [2]


class Tiny(Backbone):
    """One block that is no attention."""

    def __init__(self):
        super().__init__()
        self.input_config, self.embed_dim, self.depth, self.num_tokens = InputConfig(4), 3, 1, 16
        self.requires_grad_(False)

    def embed(self, images):
        return images.flatten(2).mT

    def attend(self, index, tokens, *, queries=None, extend=None):
        return tokens

    def feed(self, index, tokens):
        return tokens

    def pool(self, tokens):
        return tokens.mean(dim=1)


class Below(Tiny):
    """Overrides what counts, and calls it."""

    def attend(self, index, tokens, *, queries=None, extend=None):
        return super().attend(index, tokens)


def counted(model, act):
    meter = Meter()
    meter.begin(model, row=0, images=1)
    act()
    meter.end()
    return meter.passes["training"][0]


@pytest.mark.parametrize("kind", [Tiny, Below])
def test_an_image_counts_once_and_copies_count_too(kind):
    backbone, images = kind(), torch.zeros(5, 3, 4, 4)
    assert counted(backbone, lambda: backbone(images)) == 5
    assert counted(backbone, lambda: backbone.attend(0, backbone.embed(images))) == 5
    assert counted(backbone, lambda: copy.deepcopy(backbone)(images)) == 5
    before = passes_so_far()
    backbone(images)  # nobody listens
    assert passes_so_far() == before


def test_what_is_no_part_of_a_method_counts_as_none():
    backbone = Tiny()
    with uncounted_passes():
        assert counted(backbone, lambda: backbone(torch.zeros(5, 3, 4, 4))) == 0


def test_a_network_of_another_kind_counts_its_calls_and_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(2, 2))
    inner, outer = Meter(), Meter()
    for meter in (outer, inner):
        meter.begin(model, row=0, images=3)
    model(torch.zeros(3, 2))
    for meter in (outer, inner):
        meter.end()
    assert [meter.passes_per_image(0) for meter in (outer, inner)] == [1.0, 1.0]
    assert not model._forward_pre_hooks
    pickle.loads(pickle.dumps(model))


def test_a_backbone_of_nobodys_class_counts():
    class Stranger(nn.Module):
        depth = 2

        def attend(self, index, tokens):
            return tokens

        def forward(self, images):
            return self.attend(1, self.attend(0, images))

    model = nn.Module()
    model.backbone = Stranger()
    assert counted(model, lambda: model.backbone(torch.zeros(4, 2))) == 4
