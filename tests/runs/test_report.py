import copy
import io
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from avalanche_peftcl.runs.matrix_file import MatrixFile
from avalanche_peftcl.runs.report import (
    curve_figure,
    headlines,
    markdown_report,
    matrix_figure,
    percent,
    protocol_rules,
    terminal_report,
)


def metrics_of(size: int, finished: int) -> dict:
    matrix = [
        [1 - 0.01 * (t - i) if i <= t < finished else None for i in range(size)]
        for t in range(size)
    ]
    protocol = {
        "scenario": "class",
        "class_order": [1, 0],
        "task_label_at_test": False,
        "normalisation": {"img_size": 16, "mean": [0.5, 0.5, 0.5]},
        "experiences": [{"class_names": ["a|b", "c"], "train_images": 8, "test_images": 4}] * size,
    }
    return {
        "config": {"strategy": {"name": "ntk_cl"}, "benchmark": {"name": "digits"}},
        "protocol": protocol,
        "experiences": {"total": size, "finished": finished},
        "complete": finished == size,
        "seed": 7,
        "weights_sha256": "abc",
        "components": [dict.fromkeys(("kind", "name", "provider", "version", "source"), "x")],
        "cost": {"training_seconds": [1.0] * finished, "peak_memory_bytes": None},
        "platform": {"device": "cpu", "device_name": None},
        "versions": {"python": "3.11"},
        "accuracy": {
            "average_incremental_accuracy": 0.9312,
            "last_accuracy": 0.5,
            "forgetting": None,
            "accuracy_curve": [1 - 0.005 * t for t in range(finished)],
        },
        "accuracy_matrix": matrix,
    }


def test_accuracies_become_percent_when_shown():
    assert percent(0.9312) == "93.1 %"
    assert percent(0.5, sign="") == "50.0"
    assert percent(None) == "-"
    assert headlines(metrics_of(2, 2)) == [
        ("average accuracy", "93.1 %"),
        ("last accuracy", "50.0 %"),
        ("forgetting", "-"),
    ]


def test_markdown_shows_numbers_matrix_and_protocol():
    text = markdown_report(metrics_of(3, 2))
    assert text.startswith("# ntk_cl on digits (2 of 3 experiences)\n")
    assert "| average accuracy | 93.1 % |" in text
    assert "|  | 1 | 2 | 3 |\n| --- | --- | --- | --- |\n| 1 | 100.0 | - | - |" in text
    assert "| 2 | 99.0 | 100.0 | - |\n| 3 | - | - | - |" in text
    assert "| 1 | a\\|b, c | 8 | 4 |" in text
    assert "mean (0.5, 0.5, 0.5)" in text
    assert "task label at test: not used" in text
    assert "- images: sha256 unknown of names, sizes and split\n- manifest: none given\n" in text
    assert "- tested on: unknown images\n" in text
    assert "- prediction of an image: unknown whether it depends on its minibatch\n" in text
    assert "device name" not in text


def test_the_rules_of_the_evaluation_in_words():
    protocol = {
        "split_sha256": "12ab",
        "manifest_sha256": "34cd",
        "tested_on": "held-out training images",
        "test_images": 20,
        "precision": "float32",
        "task_label_at_test": True,
        "batch_independence": "dependent",
    }
    assert protocol_rules(protocol) == [
        ("images", "sha256 12ab of names, sizes and split"),
        ("manifest", "sha256 34cd, every image compared"),
        ("tested on", "20 held-out training images"),
        ("precision", "float32"),
        ("task label at test", "used"),
        ("prediction of an image", "depends on its minibatch (the strategy says so)"),
    ]


def test_every_line_of_a_markdown_table_has_as_many_cells_as_its_head():
    cells = 0
    for line in markdown_report(metrics_of(4, 4)).splitlines():
        if not line.startswith("|"):
            cells = 0
            continue
        count = line.replace("\\|", "").count("|")
        assert count == (cells or count)
        cells = count


def test_the_terminal_shows_the_matrix_unless_it_is_large():
    for size in (3, 40):
        console = Console(file=io.StringIO(), width=100)
        console.print(terminal_report(metrics_of(size, size), "runs/a"))
        shown = console.file.getvalue()
        assert "average accuracy  93.1 %" in shown
        assert shown.endswith("run record: runs/a\n")
        assert ("99.0" in shown) is (size == 3)


@pytest.mark.parametrize(("size", "finished"), [(1, 1), (5, 2), (10, 10), (50, 50)])
def test_figures_are_drawn_and_show_every_value_of_a_small_matrix(size, finished):
    metrics = metrics_of(size, finished)
    before = copy.deepcopy(metrics)
    heat, curve = matrix_figure(metrics), curve_figure(metrics)
    assert metrics == before
    assert isinstance(heat, Figure)
    axes = heat.axes[0]
    drawn = axes.images[0].get_array().filled(np.nan)
    assert drawn.shape == (size, size)
    assert np.isfinite(drawn).sum() == finished * (finished + 1) // 2
    assert len(axes.texts) == (np.isfinite(drawn).sum() if size <= 20 else 0)
    x, y = curve.axes[0].lines[0].get_data()
    assert list(x) == list(range(1, finished + 1))
    assert y[0] == 100
    for figure in (heat, curve):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        assert buffer.getvalue().startswith(b"\x89PNG")


def test_of_a_thousand_experiences_few_are_printed_and_200_drawn():
    size = 1000
    rows = [[t / size if i <= t else None for i in range(size)] for t in range(size)]
    metrics = metrics_of(3, 3) | {"accuracy_matrix": rows}
    text = markdown_report(metrics)
    assert "Here are 10 of 1000 experiences; accuracy_matrix.csv has all." in text
    table = text.split("## Accuracy matrix")[1].split("![")[0]
    assert len(re.findall(r"^\|", table, re.MULTILINE)) == 12
    assert "| 1000 | 99.9 | 99.9 |" in table
    axes = matrix_figure(metrics).axes[0]
    drawn = axes.images[0].get_array().filled(np.nan)
    assert drawn.shape == (200, 200)
    assert np.isfinite(drawn).sum() == 200 * 201 // 2
    assert axes.images[0].get_extent() == [0.5, 1000.5, 1000.5, 0.5]
    assert drawn[-1, 0] == pytest.approx(99.9)


def test_the_csv_leaves_empty_what_was_not_evaluated(tmp_path):
    path = tmp_path / "accuracy_matrix.csv"
    MatrixFile(tmp_path, 0).write([], 0)
    assert path.read_text() == "trained_up_to\n"
    MatrixFile(tmp_path, 2).write([[0.1, None], [None, None]], 2)
    assert path.read_text().splitlines()[1:] == ["1,0.1,", "2,,"]
