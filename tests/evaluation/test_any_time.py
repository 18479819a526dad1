"""Accuracy at any time: what it measures, and that training notices nothing of it."""

import copy
import io

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
from avalanche.training.supervised import JointTraining, Naive
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_peftcl.errors import ConfigError, NotFiniteError
from avalanche_peftcl.evaluation import (
    AccuracyMatrix,
    AnyTimeMetric,
    CostMetric,
    any_time_metrics,
)
from avalanche_peftcl.functional import any_time as functional
from avalanche_peftcl.models import LDAHead, PrototypeHead, RidgeHead, meter
from avalanche_peftcl.models.rng import random_state
from avalanche_peftcl.registry import discover
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training.closed_form import build_closed_form
from avalanche_peftcl.training.feature_cache import VARIABLE
from avalanche_peftcl.training.joint import build_joint, visits
from avalanche_peftcl.training.naive import build_naive
from avalanche_peftcl.training.nearest_class_mean import build_nearest_class_mean
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.pegp import build_pegp

CPU = torch.device("cpu")
SMALL = {"train_mb_size": 4, "train_epochs": 2, "eval_mb_size": 4}
BUILD = {
    "corrected": lambda **o: build_ntk_cl(recipe="corrected", **SMALL, **o),
    "released": lambda **o: build_ntk_cl(recipe="released", **SMALL, **o),
    "kernel": lambda **o: build_ntk_cl(recipe="kernel", **SMALL, **o),
    "pegp": lambda **o: build_pegp(head_epochs=1, n_samples=8, threshold=0.9, **SMALL, **o),
    "naive": lambda **o: build_naive(**SMALL, **o),
    "naive_ridge": lambda **o: build_naive(head=RidgeHead, **SMALL, **o),
    "closed_form": lambda **o: build_closed_form(eval_mb_size=4, **o),
    "nearest_class_mean": lambda **o: build_nearest_class_mean(eval_mb_size=4, **o),
    "joint": lambda **o: build_joint(**SMALL, **o),
}


def two(scenario="class", *, per_class=4, **options):
    sizes = (2, 2)
    return toy_benchmark(scenario, classes_per_experience=sizes, per_class=per_class, **options)


def train(method, *metrics, scenario="class", plugins=(), benchmark=None, **options):
    """Train and evaluate; return the strategy, the matrix, the weights and the generators."""
    torch.manual_seed(0)
    matrix = AccuracyMatrix()
    evaluator = EvaluationPlugin(matrix, *metrics, loggers=[BaseLogger()])
    backbone = toy_backbone(depth=1)
    strategy = BUILD[method](backbone=backbone, evaluator=evaluator, plugins=[*plugins], **options)
    benchmark = benchmark or two(scenario)
    for experience in visits(strategy, benchmark.train_stream):
        strategy.train(experience, eval_streams=[])
        generators = random_state(CPU)["torch"]
        strategy.eval(benchmark.test_stream)
        torch.set_rng_state(generators)
    return strategy, matrix.matrix, copy.deepcopy(strategy.model.state_dict()), generators


QUICK = [("naive", s) for s in ("class", "task", "domain", "online")]
QUICK += [("closed_form", s) for s in ("class", "online")]
QUICK += [("corrected", "class"), ("pegp", "task"), ("naive_ridge", "online"), ("joint", "class")]
ALL = [(m, s) for m in BUILD for s in ("class", "task", "domain", "online")]


@pytest.mark.parametrize(
    ("method", "scenario"),
    [pytest.param(*each, marks=[] if each in QUICK else pytest.mark.slow) for each in ALL],
)
def test_training_does_not_notice_it(method, scenario):
    """Matrix, weights and generators are the same bit for bit; the last points are its rows."""
    metric = AnyTimeMetric(every=1, images_per_experience=None)
    _, plain, one, before = train(method, scenario=scenario)
    _, beside, other, after = train(method, metric, scenario=scenario)
    assert torch.equal(plain.nan_to_num(-1), beside.nan_to_num(-1))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(before, after)

    found = metric.summary()
    assert found["iterations"] == list(range(1, len(found["iterations"]) + 1))
    assert found["experience"] == sorted(found["experience"])
    ends = [found["iterations"].index(end) for end in metric.learned]
    for row, at in enumerate(ends):
        table = found["per_experience"][at]
        seen = len(table) if method == "joint" else row + 1
        assert table[:seen] == beside[-1 if method == "joint" else row, :seen].tolist()
        assert table[seen:] == [None] * (len(table) - seen)


def test_points_are_at_every_n_iterations_and_at_the_ends():
    metric = AnyTimeMetric(every=3)
    train("naive", metric)  # 8 images, 2 epochs of 2 minibatches each
    found = metric.summary()
    assert found["every"] == 3
    assert found["iterations"] == [3, 4, 6, 8]
    assert found["experience"] == [0, 0, 1, 1]
    assert [len(row) for row in metric.rows] == [1, 1, 2, 2]
    assert metric.learned == [4, 8]


def test_numbers_follow_from_the_points():
    metric = any_time_metrics(every=1)
    evaluator = train("naive", metric)[0].evaluator
    found = metric.summary()
    table = torch.tensor([[float("nan") if v is None else v for v in r] for r in
                          found["per_experience"]], dtype=torch.float64)  # fmt: skip
    parts = torch.tensor(found["iterations"]), table, torch.tensor(metric.learned)
    assert found["accuracy"] == pytest.approx(table.nanmean(1).tolist())
    assert found["area"] == pytest.approx(sum(found["accuracy"]) / len(found["accuracy"]))
    assert found["average_minimum"] == functional.average_minimum_accuracy(*parts)
    assert found["worst_case"] == functional.worst_case_accuracy(*parts)
    assert found["minimum"] == [min(row[0] for row in metric.rows[4:]), None]
    assert metric.result() == found
    told = {k.split("/", 1)[0]: v for k, v in evaluator.get_last_metrics().items() if "_A" in k}
    for name, key in [
        ("Any_Time_Accuracy", "area"),
        ("Average_Minimum_Accuracy", "average_minimum"),
        ("Worst_Case_Accuracy", "worst_case"),
    ]:
        assert told[name] == found[key]


class Evaluates(SupervisedPlugin):
    """Evaluates at every iteration as a user would."""

    def __init__(self, benchmark):
        super().__init__()
        self.benchmark, self.rows, self._right, self._inside = benchmark, [], [], False

    def before_training_exp(self, strategy, **kwargs):
        self.number = strategy.experience.current_experience

    def after_training_iteration(self, strategy, **kwargs):
        self.rows.append([])
        self._inside = True
        strategy.eval(self.benchmark.test_stream[: self.number + 1])
        self._inside = False

    def before_eval_exp(self, strategy, **kwargs):
        self._right = []

    def after_eval_iteration(self, strategy, **kwargs):
        self._right += (strategy.mb_output.argmax(1) == strategy.mb_y).tolist()

    def after_eval_exp(self, strategy, **kwargs):
        if self._inside:
            self.rows[-1].append(sum(self._right) / len(self._right))


@pytest.mark.parametrize("method", ["naive", "naive_ridge", "corrected"])
def test_it_predicts_as_an_evaluation_there_does(method):
    benchmark = two("task")
    theirs, metric = Evaluates(benchmark), AnyTimeMetric(every=1, images_per_experience=None)
    train(method, metric, plugins=[theirs], benchmark=benchmark, scenario="task")
    ends = {end - 1 for end in metric.learned}  # those are evaluated once the experience has ended
    for at, row in enumerate(theirs.rows):
        if at not in ends:
            assert metric.rows[at] == row


def test_joint_training_comes_to_all_experiences_at_once():
    metric = AnyTimeMetric(every=2)
    train("joint", metric)
    found = metric.summary()
    assert found["experience"] == [1] * len(found["iterations"])
    assert [len(row) for row in metric.rows] == [2] * len(metric.rows)
    assert found["minimum"] == [None, None]
    assert found["average_minimum"] is None
    assert found["worst_case"] == found["accuracy"][-1]


def test_where_nothing_trains_an_experience_counts_as_one_iteration():
    metric = AnyTimeMetric(every=10)
    train("closed_form", metric)
    assert metric.iterations == metric.learned == [1, 2]


def test_of_an_online_stream_chunks_are_parts_of_an_experience():
    metric = AnyTimeMetric(every=3)
    train("closed_form", metric, benchmark=two("online", experience_size=2))  # 4 chunks each
    assert metric.iterations == [3, 4, 6, 8]
    assert metric.learned == [4, 8]


@pytest.mark.parametrize("head", [RidgeHead, LDAHead, PrototypeHead])
def test_frozen_features_are_computed_once(head, monkeypatch):
    """The network sees each test image once for the metric, whatever the number of points."""
    monkeypatch.delenv(VARIABLE, raising=False)
    benchmark, rows = two("online", experience_size=2), []
    for known in (True, False):
        metric = AnyTimeMetric(every=1, images_per_experience=None)
        torch.manual_seed(0)
        evaluator = EvaluationPlugin(metric, loggers=[BaseLogger()])
        strategy = BUILD["closed_form"](
            backbone=toy_backbone(depth=1), head=head, evaluator=evaluator
        )
        strategy.reads_features = known
        seen, embed = [], strategy.network.embed
        strategy.network.embed = lambda x, seen=seen, embed=embed: seen.append(len(x)) or embed(x)
        for chunk in benchmark.train_stream:
            strategy.train(chunk, eval_streams=[])
        trained, tested = 16, sum(len(e.dataset) for e in benchmark.test_stream)
        assert sum(seen) == trained + tested if known else sum(seen) > trained + 2 * tested
        rows.append(metric.rows)
    assert rows[0] == rows[1]
    assert len(rows[0]) == 8


def test_a_choice_of_images_is_seeded_and_stays():
    benchmark = two(per_class=20)
    read = []

    class Reads(SupervisedPlugin):
        def after_eval_iteration(self, strategy, **kwargs):
            read[-1].append(strategy.mb_x.flatten(1).sum(1))

    choices = []
    for seed in (0, 0, 1):
        read.append([])
        metric = AnyTimeMetric(every=100, images_per_experience=5, seed=seed)
        evaluator = EvaluationPlugin(metric, loggers=[BaseLogger()])
        strategy = build_naive(
            backbone=toy_backbone(depth=1), **SMALL, plugins=[Reads()], evaluator=evaluator
        )
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[])
        choices.append(torch.cat(read[-1]))
        assert len(choices[-1]) == 5 + 10
        assert torch.equal(choices[-1][:5], choices[-1][5:10])
    assert torch.equal(choices[0], choices[1])
    assert not torch.equal(choices[0], choices[2])


# --- strategies and benchmarks of the host -------------------------------------------------------


def points(seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(4).repeat(6)
    x = 2 * torch.eye(4, 8)[y] + torch.randn(len(y), 8, generator=generator) + shift
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    return data


def host(*metrics, strategy=Naive, loggers=(), **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    make = options.pop("make_plugins", lambda optimizer: [])
    built = strategy(
        model=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=4,
        eval_mb_size=4,
        plugins=make(optimizer),
        evaluator=EvaluationPlugin(*metrics, loggers=[*loggers] or [BaseLogger()]),
        **options,
    )
    return built


def in_turn():
    return nc_benchmark(points(0), points(1), n_experiences=2, task_labels=False, seed=3)


def plateau(optimizer):
    """A rate that falls whenever an evaluation in training shows no better loss."""
    falls = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return [LRSchedulerPlugin(falls, metric="val_loss", reset_lr=False)]


@pytest.mark.parametrize("strategy", [Naive, JointTraining])
def test_a_strategy_of_the_host_does_not_notice_it_either(strategy):
    ends, told = [], []
    for metrics in ([], [AnyTimeMetric(every=1)]):
        text = io.StringIO()
        built = host(
            *accuracy_metrics(minibatch=True, epoch=True),
            *metrics,
            strategy=strategy,
            loggers=[TextLogger(text)],
            train_epochs=2,
            eval_every=1,
            make_plugins=plateau,
        )
        stream = in_turn().train_stream
        for visit in [stream] if strategy is JointTraining else stream:
            built.train(visit, eval_streams=[in_turn().test_stream])
        state = [random_state(CPU)["torch"], built.optimizer.param_groups[0]["lr"]]
        ends.append((built.model.state_dict(), state, vars(built.clock)))
        told.append([line for line in text.getvalue().splitlines() if "_Time_" not in line
                     and "Minimum" not in line and "Worst" not in line])  # fmt: skip
    (one, kept, counted), (other, again, counted_again) = ends
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(kept[0], again[0])
    assert kept[1] == again[1]
    assert counted == counted_again
    assert told[0] == told[1]


def test_a_benchmark_without_the_stream_is_refused():
    metric = AnyTimeMetric(stream_name="valid")
    with pytest.raises(
        ConfigError, match=r"on stream 'valid', and .* has the streams train, test;"
    ):
        host(metric).train(in_turn().train_stream[0], eval_streams=[])


def test_seconds_are_those_of_an_evaluation(monkeypatch):
    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)

    class Sleeper(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            clock.now += 2

        def after_eval_iteration(self, strategy, **kwargs):
            clock.now += 5

    seconds = CostMetric()
    built = host(AnyTimeMetric(every=100), seconds, make_plugins=lambda _: [Sleeper()])
    built.train(in_turn().train_stream[0], eval_streams=[])
    assert seconds.summary()["training_seconds"] == [2 * 3]  # 12 images
    assert seconds.summary()["evaluation_seconds"] == [5 * 3]


def test_an_image_without_a_prediction_is_an_error():
    def spoil(optimizer):
        class Spoils(SupervisedPlugin):
            def after_training_iteration(self, strategy, **kwargs):
                with torch.no_grad():
                    strategy.model[-1].bias.fill_(float("nan"))

        return [Spoils()]

    with pytest.raises(NotFiniteError, match="experience 1"):
        host(AnyTimeMetric(every=1), make_plugins=spoil).train(in_turn().train_stream[0])


@pytest.mark.parametrize("option", ["every", "images_per_experience"])
def test_numbers_must_be_positive(option):
    with pytest.raises(ConfigError, match=f"{option}=0 is not a positive number"):
        AnyTimeMetric(**{option: 0})


def test_it_can_be_named():
    built = discover(only=["avalanche-peftcl"]).build("metric", "any_time", {"every": 7})
    assert (built.every, str(built)) == (7, "Any_Time")


@pytest.fixture
def without_task_labels():
    """A benchmark of the host whose experiences do not know of it."""
    colours = two()
    streams = {"train": colours.train_stream, "test": colours.test_stream}
    parts = {name: [_plain(experience) for experience in part] for name, part in streams.items()}
    return benchmark_from_datasets(**parts)


def test_streams_may_be_handed_to_train(without_task_labels):
    metric, matrix = AnyTimeMetric(), AccuracyMatrix()
    evaluator = EvaluationPlugin(metric, matrix, loggers=[BaseLogger()])
    strategy = BUILD["closed_form"](backbone=toy_backbone(depth=1), evaluator=evaluator)
    test = without_task_labels.test_stream
    for experience in without_task_labels.train_stream:
        strategy.train(experience, eval_streams=[test])
        strategy.eval(test)
    assert metric.rows == [matrix.matrix[0, :1].tolist(), matrix.matrix[1].tolist()]


@pytest.mark.parametrize("handed", [[], [1]])
def test_a_benchmark_that_is_not_known_is_refused(handed, without_task_labels):
    evaluator = EvaluationPlugin(AnyTimeMetric(), loggers=[BaseLogger()])
    strategy = BUILD["closed_form"](backbone=toy_backbone(depth=1), evaluator=evaluator)
    streams = [without_task_labels.test_stream[number] for number in handed]
    with pytest.raises(ConfigError, match="is not known; hand the stream to train"):
        strategy.train(without_task_labels.train_stream[0], eval_streams=streams)


def _plain(experience):
    samples = [experience.dataset.eval()[i] for i in range(len(experience.dataset))]
    data = TensorDataset(
        torch.stack([s[0] for s in samples]), torch.tensor([int(s[1]) for s in samples])
    )
    data.targets = data.tensors[1].tolist()
    return as_classification_dataset(data)
