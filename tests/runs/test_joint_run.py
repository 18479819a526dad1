"""A run of joint training: one visit, the last row of the matrix, and the same end when resumed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from rich.console import Console
from safetensors.torch import load_file

from avalanche_peftcl import Component
from avalanche_peftcl.compare import compare_runs
from avalanche_peftcl.compare.html_report import html_report
from avalanche_peftcl.compare.render import csv_table, latex_tables, markdown_tables
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.export.load import load
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.picture import record_picture
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.run import run

SIZES = [4, 3, 3]


class Stopped(BaseException):
    """What stops a run here; nobody catches it."""


class Stops(SupervisedPlugin, supports_distributed=False):
    """Stops a run at a minibatch, or before the evaluation."""

    at: int | str | None = None

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_iterations == self.at:
            raise Stopped

    def before_eval(self, strategy, **kwargs):
        if self.at == "eval":
            raise Stopped


@pytest.fixture
def registry() -> Iterator[Registry]:
    provider = Provider("test-package", "1.2")
    offered = [
        ("strategy_plugin", Component("stops", Stops, source="test")),
        ("metric", Component("top1", lambda: accuracy_metrics(stream=True), source="test")),
    ]
    more = [Entry(kind, component, provider) for kind, component in offered]
    yield Registry([*discover().entries(), *more])
    Stops.at = None


def settings(output: Path, **changed) -> RunConfig:
    benchmark = {"name": "digits", "classes_per_experience": SIZES, "train_per_class": 4}
    strategy = {"name": "joint", "train_epochs": 2, "train_mb_size": 4}
    given = {
        "output": output,
        "num_threads": 1,
        "backbone": {"name": "vit_glyph", "img_size": 16},
        "benchmark": benchmark | {"validation_per_class": 2} | changed.pop("benchmark", {}),
        "strategy": strategy | changed.pop("strategy", {}),
        "plugins": ["stops"],
        "metrics": ["top1"],
    }
    return RunConfig.model_validate(given | changed)


@pytest.mark.parametrize("scenario", ["class", "task", "online"])
def test_the_record_has_the_last_row_alone(scenario, registry, tmp_path):
    shown = tmp_path / "shown"
    with shown.open("w") as file:
        console = Console(file=file, width=160)
        benchmark = {"scenario": scenario}
        run(
            settings(tmp_path / "a", benchmark=benchmark),
            registry=registry,
            reporter=RunProgress(console),
        )
    record = read_record(tmp_path / "a")
    assert record.joint
    assert record.complete
    assert (record.experiences.total, record.experiences.finished) == (3, 3)
    assert [all(v is None for v in row) for row in record.accuracy_matrix] == [True, True, False]
    last = record.accuracy_matrix[-1]
    assert record.accuracy.last_accuracy == pytest.approx(
        sum(v * n for v, n in zip(last, record.test_images, strict=True)) / sum(record.test_images)
    )
    assert list(record.accuracy.headlines().values()) == [None, record.accuracy.last_accuracy, None]
    assert record.notes == [[], [], []]
    assert {len(values) for values in record.further_metrics.values()} == {3}
    assert all(values[:2] == [None, None] for values in record.further_metrics.values())
    assert sum(record.cost.training_seconds) > 0
    assert [e.classes for e in record.protocol.experiences] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    summary = (tmp_path / "a" / "summary.md").read_text()
    assert "average accuracy and forgetting are not defined" in summary
    assert "\n| 3 | " in summary
    assert "\n| 1 | - " not in summary
    picture = record_picture(record)
    assert "trained up to 3, tested on experience 1" in picture
    assert "trained up to 1" not in picture
    assert "all experiences  classes" in shown.read_text()


def test_evaluated_on_all_it_has_a_baseline_too(registry, tmp_path):
    record = run(settings(tmp_path / "a", evaluate="all"), registry=registry).record
    assert None not in record.baseline
    assert record.accuracy.forward_transfer is None


@pytest.mark.parametrize("scenario", ["class", "online"])
def test_stopped_it_goes_on_to_the_same_end(scenario, registry, tmp_path):
    changed = {"benchmark": {"scenario": scenario}, "checkpoint_every": 3}
    run(settings(tmp_path / "whole", **changed), registry=registry)
    for i, at in enumerate((7, "eval")):
        Stops.at = at
        with pytest.raises(Stopped):
            run(settings(tmp_path / "a", **changed), registry=registry, resume=i > 0)
    Stops.at = None
    done = run(settings(tmp_path / "a", **changed), registry=registry, resume=True)
    assert len(done.record.resumed_at) == 2
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "a"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    matrices = [(tmp_path / name / "accuracy_matrix.csv").read_text() for name in ("whole", "a")]
    assert matrices[0] == matrices[1]
    assert run(settings(tmp_path / "a", **changed), registry=registry, resume=True).record.complete


def test_a_network_trained_jointly_is_exported_with_all_classes(registry, tmp_path):
    run(settings(tmp_path / "a"), registry=registry)
    logits = load(tmp_path / "a")(torch.zeros(2, 3, 16, 16))
    assert logits.shape == (2, 10)
    assert (logits > -1000).all()


def test_it_stands_beside_streams_of_the_same_images(registry, tmp_path):
    for seed in (0, 1):
        for name in ("joint", "naive"):
            run(
                settings(tmp_path / f"{name}{seed}", seed=seed, strategy={"name": name}),
                registry=registry,
            )
    comparison = compare_runs([tmp_path])
    assert comparison.differences == ()
    joint, naive = comparison.methods
    assert (joint.joint, naive.joint) == (True, False)
    assert joint.curve()[:2] == [None, None]
    tests = {test.quantity.key: test.result for test in comparison.tests}
    assert tests["average_incremental_accuracy"].reason == "undefined for the first"
    assert tests["last_accuracy"].difference.count == 2
    text = markdown_tables(comparison)
    (row,) = (line for line in text.splitlines() if line.startswith("| joint | 2 |"))
    assert [cell.strip() for cell in row.split("|")][3::2][:2] == ["-", "-"]
    assert "joint trained on all experiences at once" in text
    assert "all at once, after experience 3" in html_report(comparison)
    assert latex_tables(comparison)
    assert "joint,average_incremental_accuracy,fraction,0 1,2,,," in csv_table(comparison)


def test_records_of_earlier_versions_are_not_joint(registry, tmp_path):
    run(settings(tmp_path / "a", strategy={"name": "naive"}), registry=registry)
    file = tmp_path / "a" / "metrics.json"
    metrics = json.loads(file.read_text())
    assert metrics.pop("joint") is False
    file.write_text(json.dumps(metrics))
    assert RunRecord(tmp_path / "a", read_record(tmp_path / "a")).record.joint is False
