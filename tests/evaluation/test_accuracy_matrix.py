"""The accuracy matrix inside Avalanche, counted again by hand."""

import csv
import io
import math

import pytest
import torch
from avalanche.benchmarks import CLScenario, nc_benchmark, task_incremental_benchmark
from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.benchmarks.scenarios.supervised import (
    class_incremental_benchmark,
    new_instances_benchmark,
)
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics
from avalanche.logging import CSVLogger, InteractiveLogger, TensorboardLogger, TextLogger
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import JointTraining, Naive
from torch import nn
from torch.utils.data import TensorDataset

from avalanche_peftcl.errors import NotFiniteError
from avalanche_peftcl.evaluation import AccuracyMatrix, accuracy_matrix_metrics
from avalanche_peftcl.functional import accuracy_matrix as functional

CLASSES = 6


def images(seed, sizes=(12, 9, 6, 15, 3, 10)):
    """Points around one centre a class, as many as ``sizes`` says."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    centres = 2 * torch.eye(CLASSES, 8)
    return centres[y] + torch.randn(len(y), 8, generator=generator), y


def tensors(seed):
    x, y = images(seed)
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    return data


def dataset(seed):
    return as_classification_dataset(tensors(seed))


def new_style(seed=0):
    """Samples are pairs: no task labels."""
    return class_incremental_benchmark(
        {"train": dataset(seed), "test": dataset(seed + 1)}, num_experiences=3, seed=3
    )


def old_style(seed=0):
    """Samples are triples; the task label is 0."""
    return nc_benchmark(
        tensors(seed), tensors(seed + 1), n_experiences=3, task_labels=False, seed=3
    )


def domains():
    """The same classes three times, from other draws."""
    return benchmark_from_datasets(
        train=[dataset(s) for s in (0, 1, 2)], test=[dataset(s) for s in (3, 4, 5)]
    )


def make(*metrics, loggers=(), strategy=Naive, **options):
    torch.manual_seed(0)
    model = nn.Linear(8, CLASSES)
    return strategy(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        eval_mb_size=4,
        evaluator=EvaluationPlugin(*metrics, loggers=list(loggers) or [TextLogger(io.StringIO())]),
        **options,
    )


def by_hand(model, experience):
    """Images predicted right, and images."""
    right = 0
    for sample in experience.dataset.eval():
        right += int(model(sample[0][None])[0].argmax() == int(sample[1]))
    return right, len(experience.dataset)


def rows_by_hand(strategy, benchmark):
    return [by_hand(strategy.model, experience) for experience in benchmark.test_stream]


@pytest.mark.parametrize("benchmark", [new_style, old_style, domains], ids=lambda f: f.__name__)
def test_matrix_counted_by_hand(benchmark):
    benchmark = benchmark()
    metric = accuracy_matrix_metrics()
    strategy = make(metric)
    strategy.eval(benchmark.test_stream)
    before = rows_by_hand(strategy, benchmark)
    rows = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        rows.append(rows_by_hand(strategy, benchmark))

    assert metric.counts.tolist() == [n for _, n in before]
    assert metric.baseline.tolist() == [right / n for right, n in before]
    assert metric.matrix.tolist() == [[right / n for right, n in row] for row in rows]
    summary = metric.summary()
    seen = [[sum(part) for part in zip(*row[: t + 1], strict=True)] for t, row in enumerate(rows)]
    curve = [right / n for right, n in seen]
    assert summary["accuracy_curve"] == pytest.approx(curve)
    assert summary["average_incremental_accuracy"] == pytest.approx(sum(curve) / 3)
    assert summary["last_accuracy"] == pytest.approx(curve[-1])
    assert summary["per_task"] == [right / n for right, n in rows[-1]]
    assert summary["average_accuracy"] == pytest.approx(sum(summary["per_task"]) / 3)
    assert all(value is not None for value in summary.values())
    assert metric.result() == summary


@pytest.mark.parametrize("benchmark", [new_style, old_style], ids=lambda f: f.__name__)
def test_agrees_with_avalanche(benchmark):
    benchmark = benchmark()
    metric = AccuracyMatrix()
    strategy = make(
        metric, accuracy_metrics(experience=True, stream=True), forgetting_metrics(experience=True)
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        got = strategy.evaluator.get_last_metrics()
        row = experience.current_experience
        theirs = {
            k: v for k, v in got.items() if k.startswith("Top1_Acc_Exp/eval_phase/test_stream")
        }
        assert len(theirs) == 3
        for name, value in theirs.items():
            assert metric.matrix[row, int(name[-3:])].item() == pytest.approx(value)
    (stream,) = [
        v for k, v in got.items() if k.startswith("Top1_Acc_Stream/eval_phase/test_stream")
    ]
    assert metric.summary()["last_accuracy"] == pytest.approx(stream)
    assert got["Last_Accuracy/eval_phase/test_stream"] == pytest.approx(stream)
    first_minus_last = [v for k, v in got.items() if k.startswith("ExperienceForgetting/")]
    assert -metric.summary()["backward_transfer"] == pytest.approx(sum(first_minus_last) / 2)


def test_seen_experiences_only_and_unfinished_runs():
    benchmark = new_style()
    metric = AccuracyMatrix()
    strategy = make(metric)
    for t, experience in enumerate(benchmark.train_stream[:2]):
        strategy.train(experience)
        strategy.eval(benchmark.test_stream[: t + 1])
    assert metric.matrix.shape == (3, 3)
    assert metric.matrix.isnan().tolist() == [[False, True, True], [False, False, True], [True] * 3]
    summary = metric.summary()
    assert len(summary["per_task"]) == len(summary["accuracy_curve"]) == 2
    assert summary["learning_accuracy"] == functional.learning_accuracy(metric.matrix[:2, :2])
    assert summary["forward_transfer"] is None
    assert metric.baseline.isnan().all()


def test_an_experience_that_was_left_out_is_not_averaged_away():
    benchmark = new_style()
    metric = AccuracyMatrix()
    strategy = make(metric)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream[:1])
    assert metric.counts.tolist() == [len(e.dataset) for e in benchmark.test_stream]
    assert metric.summary()["last_accuracy"] is None
    strategy.eval(benchmark.test_stream[1:])
    rows = rows_by_hand(strategy, benchmark)
    expected = sum(right for right, _ in rows) / sum(n for _, n in rows)
    assert metric.summary()["last_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("mode", ["epoch", "iteration"])
def test_periodic_evaluation_does_not_corrupt(mode):
    benchmark = new_style()
    metric = AccuracyMatrix()
    strategy = make(metric, train_epochs=3, eval_every=1, peval_mode=mode)
    # Avalanche evaluates before the first training: that is the baseline, not a row
    expected = [[right / n for right, n in rows_by_hand(strategy, benchmark)]]
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
        expected.append([right / n for right, n in rows_by_hand(strategy, benchmark)])
    assert [metric.baseline.tolist(), *metric.matrix.tolist()] == expected


def test_evaluation_on_the_training_stream_is_left_alone():
    benchmark = new_style()
    metric, on_train = AccuracyMatrix(), AccuracyMatrix(stream_name="train")
    strategy = make(metric, on_train, eval_every=1)
    for experience in benchmark.train_stream:
        strategy.train(experience)  # without eval_streams Avalanche evaluates on this experience
    assert metric.matrix.isnan().all()
    assert not any(on_train.matrix.diagonal().isnan())
    assert not any("test_stream" in name for name in strategy.evaluator.get_last_metrics())
    assert all(value is None or value == [] for value in metric.summary().values())


@pytest.mark.parametrize("boundaries", [True, False])
def test_online_chunks_fill_the_row_of_their_origin(boundaries):
    benchmark = new_style()
    online = split_online_stream(
        benchmark.train_stream, experience_size=8, access_task_boundaries=boundaries, seed=0
    )
    scenario = CLScenario([online, benchmark.test_stream])
    metric = AccuracyMatrix()
    strategy = make(metric)
    last = {}
    chunks = 0
    for chunk in online:
        origin = chunk.logging().origin_experience.current_experience
        strategy.train(chunk, eval_streams=[])
        strategy.eval(scenario.test_stream)
        last[origin] = [right / n for right, n in rows_by_hand(strategy, benchmark)]
        chunks += 1
    assert chunks > 3
    assert metric.matrix.tolist() == [last[0], last[1], last[2]]


def test_one_test_experience_for_all_domains():
    benchmark = new_instances_benchmark(dataset(0), dataset(1), num_experiences=3, seed=3)
    metric = AccuracyMatrix()
    strategy = make(metric)
    right = []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
        right.append(rows_by_hand(strategy, benchmark)[0][0])
    (n,) = (len(experience.dataset) for experience in benchmark.test_stream)
    assert metric.counts.tolist() == [n, 0, 0]
    summary = metric.summary()
    assert summary["accuracy_curve"] == pytest.approx([r / n for r in right])
    assert summary["last_accuracy"] == pytest.approx(right[-1] / n)
    assert summary["average_accuracy"] is None


def test_joint_training_fills_the_last_row():
    benchmark = new_style()
    metric = AccuracyMatrix()
    strategy = make(metric, strategy=JointTraining)
    strategy.train(benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    rows = rows_by_hand(strategy, benchmark)
    assert metric.summary()["per_task"] == [right / n for right, n in rows]
    assert metric.summary()["forgetting"] is None


def test_task_labels():
    benchmark = task_incremental_benchmark(new_style())
    metric = AccuracyMatrix()
    strategy = make(metric)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    names = [n for n in strategy.evaluator.get_last_metrics() if n.startswith("Average_Accuracy")]
    assert names == ["Average_Accuracy/eval_phase/test_stream"]
    rows = rows_by_hand(strategy, benchmark)
    assert metric.summary()["per_task"] == [right / n for right, n in rows]


def test_loggers(tmp_path, capsys):
    benchmark = new_style()
    metric, text = AccuracyMatrix(), io.StringIO()
    loggers = [
        TextLogger(text),
        InteractiveLogger(),
        CSVLogger(str(tmp_path / "csv")),
        TensorboardLogger(str(tmp_path / "tensorboard")),
    ]
    strategy = make(metric, accuracy_metrics(experience=True), loggers=loggers)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    summary = metric.summary()
    scalars = [name for name, value in summary.items() if isinstance(value, float)]
    assert len(scalars) == 7  # without a baseline there is no forward transfer
    printed = capsys.readouterr().out
    for name in scalars:
        line = f"\t{name.title()}/eval_phase/test_stream = {summary[name]:.4f}\n"
        assert line in text.getvalue()
        assert line in printed
    with (tmp_path / "csv" / "eval_results.csv").open() as file:
        table = list(csv.DictReader(file))
    values = [round(value, 4) for value in metric.matrix.flatten().tolist()]
    assert [float(line["eval_accuracy"]) for line in table] == pytest.approx(values, abs=1e-4)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers[3].writer.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in scalars:
        (*_, last) = events.Scalars(f"{name.title()}/eval_phase/test_stream")
        assert last.value == pytest.approx(summary[name])


def test_one_synchronisation_an_experience():
    """The matrix is read from the device once an experience, not once a minibatch."""

    class Spy(AccuracyMatrix):
        def __init__(self):
            super().__init__()
            self.kinds = []

        def after_eval_iteration(self, strategy):
            super().after_eval_iteration(strategy)
            self.kinds.append(type(self._correct))

    metric = Spy()
    make(metric).eval(new_style().test_stream)
    assert set(metric.kinds) == {torch.Tensor}


def test_reset_and_growth():
    metric = AccuracyMatrix()
    metric.record(0, 2, correct=3, total=4)
    assert metric.matrix.shape == (3, 3)
    metric.record(4, 0, correct=0, total=0)
    assert metric.matrix.shape == (5, 5)
    assert metric.matrix[0, 2] == 0.75
    assert math.isnan(metric.matrix[4, 0])
    assert metric.counts.tolist() == [0, 0, 4, 0, 0]
    metric.reset()
    assert metric.matrix.shape == (0, 0)
    assert metric.summary()["last_accuracy"] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_are_no_prediction_of_class_0(bad):
    """argmax of not-a-number is its column: every image of class 0 would count as right."""

    class Broken(nn.Linear):
        def forward(self, x):
            return super().forward(x).index_fill(1, torch.tensor([0]), bad)

    model, benchmark = Broken(8, CLASSES), new_style()
    metric = AccuracyMatrix()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        evaluator=EvaluationPlugin(metric),
    )
    with pytest.raises(NotFiniteError, match="images of experience 1 of stream test are not"):
        strategy.eval(benchmark.test_stream)
    assert metric.baseline.isnan().all()


def test_classes_masked_by_minus_infinity_are_no_fault():
    class Masked(nn.Linear):
        def forward(self, x):
            return super().forward(x).index_fill(1, torch.tensor([0]), -math.inf)

    model, metric = Masked(8, CLASSES), AccuracyMatrix()
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        evaluator=EvaluationPlugin(metric),
    )
    strategy.eval(new_style().test_stream)
    assert metric.baseline.isfinite().all()
