"""What is written after an experience grows with the experiences, not with their square."""

import json

import pytest
import torch

from avalanche_peftcl import files
from avalanche_peftcl.checkpoints import folder as checkpoint
from avalanche_peftcl.checkpoints.folder import write_checkpoint
from avalanche_peftcl.evaluation import AccuracyMatrix
from avalanche_peftcl.evaluation.running_matrix import MatrixRows
from avalanche_peftcl.runs import matrix_file, record
from avalanche_peftcl.runs.facts import plain
from avalanche_peftcl.runs.matrix_file import MatrixFile, read_matrix
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.schema import Record


@pytest.fixture
def record_with(record_of):
    """Make the record of a run of one class an experience, with these accuracies."""

    def make(size: int, finished: int, accuracy: AccuracyMatrix) -> Record:
        parts = [
            {"classes": [t], "class_names": [f"{t:04d}"], "train_images": 30, "test_images": 30}
            for t in range(size)
        ]
        protocol = {"scenario": "class", "class_order": list(range(1000, 1000 + size))}
        protocol |= {"normalisation": {"img_size": 8}, "task_label_at_test": False}
        return record_of(
            size,
            finished,
            protocol=protocol | {"experiences": parts},
            accuracy=accuracy.summary(),
            notes=[["projection: 3 of 5 directions"]] * finished,
            test_images=accuracy.counts.tolist(),
            baseline=plain(accuracy.baseline.tolist()),
            accuracy_matrix=MatrixRows(accuracy.matrix),
        )

    return make


def begun(size: int) -> AccuracyMatrix:
    """Return the matrix of a run whose last experience is still to come."""
    accuracies = (torch.rand(size, size, generator=torch.manual_seed(0)) * 30).round() / 30
    rows = torch.where(torch.ones(size, size).tril() > 0, accuracies.double(), torch.nan)
    metric = AccuracyMatrix()
    for column in range(size):
        metric.record(None, column, correct=1, total=30)
    metric.keep_elsewhere(rows[: size - 1])
    metric.summary()
    return metric


def last_experience(size, folder, record_with, monkeypatch):
    """Write what a run of ``size`` experiences writes after its last but one, return the bytes."""
    written = {}

    def noted(name):
        def write(path, content, **options):
            written[path.suffix] = written.get(path.suffix, 0) + len(content)
            real(path, content, **options)

        real = getattr(files, name)
        return write

    metric, matrix = begun(size), MatrixFile(folder, size)
    folder.mkdir()
    matrix.write(MatrixRows(metric.matrix), size - 2)
    metric.keep_elsewhere(size - 2)
    for module in (checkpoint, matrix_file, record):
        monkeypatch.setattr(module, "replace_file", noted("replace_file"))
    monkeypatch.setattr(matrix_file, "append_to_file", noted("append_to_file"))
    given = record_with(size, size - 1, metric)
    write_checkpoint(folder / "c", {"metric": metric.state_dict(), "notes": given.notes}, number=1)
    RunRecord(folder, given).write(matrix)
    monkeypatch.undo()
    assert read_matrix(folder, size - 1, sha256=matrix.sha256) == MatrixRows(metric.matrix)[:-1]
    return written


def test_the_bytes_after_an_experience_grow_linearly(tmp_path, record_with, monkeypatch):
    small = last_experience(150, tmp_path / "small", record_with, monkeypatch)
    large = last_experience(300, tmp_path / "large", record_with, monkeypatch)
    assert small.keys() == large.keys() >= {".json", ".checkpoint", ".csv", ".md", ".yaml"}
    for kind, count in small.items():
        assert large[kind] <= 2.2 * count, kind
    assert sum(large.values()) <= 2.2 * sum(small.values())


def test_metrics_are_one_line_a_key(tmp_path, record_with):
    metric = begun(3)
    given = RunRecord(tmp_path, record_with(3, 2, metric))
    given.claim()
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text).keys() == given.metrics.keys() - {"accuracy_matrix"}
    assert len(text.splitlines()) == len(json.loads(text)) + 2
