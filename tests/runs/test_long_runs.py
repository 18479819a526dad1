"""What is written after an experience grows with the experiences, not with their square."""

import json

import torch

from avalanche_peftcl import files
from avalanche_peftcl.checkpoints import folder as checkpoint
from avalanche_peftcl.checkpoints.folder import write_checkpoint
from avalanche_peftcl.evaluation import AccuracyMatrix
from avalanche_peftcl.evaluation.running_matrix import MatrixRows
from avalanche_peftcl.runs import matrix_file, record
from avalanche_peftcl.runs.matrix_file import MatrixFile, read_matrix
from avalanche_peftcl.runs.record import RunRecord, fractions


def metrics_of(size: int, finished: int, accuracy: AccuracyMatrix) -> dict:
    """Return what a run of one class an experience records."""
    parts = [
        {"classes": [t], "class_names": [f"{t:04d}"], "train_images": 30, "test_images": 30}
        for t in range(size)
    ]
    protocol = {"scenario": "class", "class_order": list(range(1000, 1000 + size))}
    protocol |= {"normalisation": {"img_size": 8}, "experiences": parts}
    return {
        "format": record.FORMAT,
        "seed": 0,
        "config": {"strategy": {"name": "s"}, "benchmark": {"name": "b"}},
        "components": [],
        "weights_sha256": "0" * 64,
        "platform": {},
        "versions": {},
        "complete": finished == size,
        "experiences": {"total": size, "finished": finished},
        "protocol": protocol,
        "accuracy": accuracy.summary(),
        "cost": {"training_seconds": [1.234567] * finished},
        "notes": [["projection: 3 of 5 directions"]] * finished,
        "test_images": accuracy.counts.tolist(),
        "baseline": fractions(accuracy.baseline),
        "accuracy_matrix": MatrixRows(accuracy.matrix),
    }


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


def last_experience(size, folder, monkeypatch):
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
    notes = metrics_of(size, size - 1, metric)["notes"]
    write_checkpoint(folder / "c", {"metric": metric.state_dict(), "notes": notes}, number=1)
    RunRecord(folder, metrics_of(size, size - 1, metric)).write(matrix)
    monkeypatch.undo()
    assert read_matrix(folder, size - 1, sha256=matrix.sha256) == MatrixRows(metric.matrix)[:-1]
    return written


def test_the_bytes_after_an_experience_grow_linearly(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "_png", lambda figure: b"")
    small = last_experience(150, tmp_path / "small", monkeypatch)
    large = last_experience(300, tmp_path / "large", monkeypatch)
    assert small.keys() == large.keys() >= {".json", ".checkpoint", ".csv", ".md", ".yaml"}
    for kind, count in small.items():
        assert large[kind] <= 2.2 * count, kind
    assert sum(large.values()) <= 2.2 * sum(small.values())


def test_a_long_run_draws_its_figures_fifty_times(tmp_path, monkeypatch):
    drawn, metric = [], begun(2)
    monkeypatch.setattr(record, "_png", lambda figure: drawn.append(figure) or b"")
    monkeypatch.setattr(record, "curve_figure", lambda metrics: None)
    monkeypatch.setattr(record, "markdown_report", lambda metrics: "")
    monkeypatch.setattr(record, "matrix_figure", lambda metrics: metrics["experiences"]["finished"])
    base = metrics_of(2, 1, metric) | {"accuracy_matrix": [[None]] * 1000}
    for total in (5, 50, 51, 120):
        drawn.clear()
        matrix = MatrixFile(tmp_path, total)
        for finished in range(total + 1):
            counts = {"total": total, "finished": finished}
            RunRecord(tmp_path, base | {"experiences": counts}).write(matrix)
        at = [number for number in drawn if number is not None]
        assert at[-1] == total
        assert len(at) <= 51
        assert len(at) == total or total > 50


def test_metrics_are_one_line_a_key(tmp_path):
    metric = begun(3)
    RunRecord(tmp_path, metrics_of(3, 2, metric)).claim()
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text).keys() == metrics_of(3, 2, metric).keys() - {"accuracy_matrix"}
    assert len(text.splitlines()) == len(json.loads(text)) + 2
