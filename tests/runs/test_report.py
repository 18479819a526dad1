import io
import re

import pytest
from rich.console import Console

from avalanche_peftcl.runs.matrix_file import MatrixFile
from avalanche_peftcl.runs.report import (
    headlines,
    markdown_report,
    percent,
    protocol_rules,
    terminal_report,
)
from avalanche_peftcl.runs.schema import Protocol


def test_accuracies_become_percent_when_shown(record_of):
    assert percent(0.9312) == "93.1 %"
    assert percent(0.5, sign="") == "50.0"
    assert percent(None) == "-"
    assert headlines(record_of(2, 2)) == [
        ("average accuracy", "93.1 %"),
        ("last accuracy", "50.0 %"),
        ("forgetting", "-"),
    ]


def test_markdown_shows_numbers_matrix_and_protocol(record_of):
    text = markdown_report(record_of(3, 2))
    assert text.startswith("# ntk_cl on digits (2 of 3 experiences)\n")
    assert "| average accuracy | 93.1 % |" in text
    assert "|  | 1 | 2 | 3 |\n| :--- | ---: | ---: | ---: |\n| 1 | 100.0 | - | - |" in text
    assert "| 2 | 99.0 | 100.0 | - |\n| 3 | - | - | - |" in text
    assert "| 1 | a\\|b, c | 8 | 4 |" in text
    assert "mean (0.5, 0.5, 0.5)" in text
    assert "task label at test: not used" in text
    assert "- images: sha256 unknown of names, sizes and split\n- manifest: none given\n" in text
    assert "- tested on: unknown images\n" in text
    assert "- prediction of an image: unknown whether it depends on its minibatch\n" in text
    assert "device name" not in text


def test_the_rules_of_the_evaluation_in_words(record_of):
    stated = {
        "split_sha256": "12ab",
        "manifest_sha256": "34cd",
        "tested_on": "held-out training images",
        "test_images": 20,
        "precision": "float32",
        "task_label_at_test": True,
        "batch_independence": "dependent",
    }
    protocol = Protocol.model_validate(record_of().protocol.model_dump() | stated)
    assert protocol_rules(protocol) == [
        ("images", "sha256 12ab of names, sizes and split"),
        ("manifest", "sha256 34cd, every image compared"),
        ("tested on", "20 held-out training images"),
        ("precision", "float32"),
        ("task label at test", "used"),
        ("prediction of an image", "depends on its minibatch (the strategy says so)"),
    ]


def test_every_line_of_a_markdown_table_has_as_many_cells_as_its_head(record_of):
    cells = 0
    for line in markdown_report(record_of(4, 4)).splitlines():
        if not line.startswith("|"):
            cells = 0
            continue
        count = line.replace("\\|", "").count("|")
        assert count == (cells or count)
        cells = count


def test_the_terminal_shows_the_matrix_unless_it_is_large(record_of):
    for size in (3, 40):
        console = Console(file=io.StringIO(), width=100)
        console.print(terminal_report(record_of(size, size), "runs/a"))
        shown = console.file.getvalue()
        assert "average accuracy  93.1 %" in shown
        assert shown.endswith("run record: runs/a\n")
        assert ("99.0" in shown) is (size == 3)


def test_of_a_thousand_experiences_few_are_printed(record_of):
    size = 1000
    rows = [[t / size if i <= t else None for i in range(size)] for t in range(size)]
    text = markdown_report(record_of(3, 2, accuracy_matrix=rows))
    assert "Here are 10 of 1000 experiences; accuracy_matrix.csv has all." in text
    table = text.split("## Accuracy matrix")[1].split("![")[0]
    assert len(re.findall(r"^\|", table, re.MULTILINE)) == 12
    assert "| 1000 | 99.9 | 99.9 |" in table


def test_values_of_further_metrics_stand_in_the_summary_by_experience(record_of):
    text = markdown_report(
        record_of(3, 2, further_metrics={"Drift|x": [0.25, 1234.5], "B": [None]})
    )
    section = text.split("## Further metrics")[1].split("##")[0]
    assert "| after experience | 1 | 2 |" in section
    assert "| Drift\\|x | 0.25 | 1234 |" in section
    assert "| B | - | - |" in section
    assert "Further metrics" not in markdown_report(record_of(3, 2))


def test_the_csv_leaves_empty_what_was_not_evaluated(tmp_path):
    path = tmp_path / "accuracy_matrix.csv"
    MatrixFile(tmp_path, 0).write([], 0)
    assert path.read_text() == "trained_up_to\n"
    MatrixFile(tmp_path, 2).write([[0.1, None], [None, None]], 2)
    assert path.read_text().splitlines()[1:] == ["1,0.1,", "2,,"]


def domain_record(record_of, names, *, count=None):
    count = len(names) if count is None else count
    record = record_of(count, count)
    protocol = record.protocol.model_copy(update={"scenario": "domain", "domains": names})
    return record.model_copy(update={"protocol": protocol, "notes": [["all is well"]] * count})


PACS = ["art_painting", "cartoon", "photo", "sketch"]


def test_domains_are_called_by_name(record_of):
    record = domain_record(record_of, PACS)
    text = markdown_report(record)
    assert "|  | art_painting | cartoon | photo | sketch |" in text
    assert "| 3 (photo) | 98.0 | 99.0 | 100.0 | - |" in text
    assert "| 2 (cartoon) | a\\|b, c | 8 | 4 |" in text
    assert "- experience 4 (sketch): all is well" in text
    begun = record.model_copy(update={"accuracy_matrix": []})  # a matrix without rows
    assert "(photo)" in markdown_report(begun)
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal_report(record, "runs/a", width=80))
    shown = console.file.getvalue()
    assert "art_painting  cartoon  photo  sketch" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("size", [4, 10, 11, 20])
def test_the_matrix_holds_at_eighty_columns(record_of, size):
    record = domain_record(record_of, [f"a domain of a long name, {i}" for i in range(size)])
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal_report(record, "runs/a", width=80))
    lines = console.file.getvalue().splitlines()
    table = [line for line in lines if re.search(r"\d\.\d", line) and "accuracy" not in line]
    assert len(table) == min(size, 10)
    assert all("100.0" in line for line in table)  # no number is broken in two
    assert max(map(len, lines)) <= 80


def test_costs_have_units_that_people_use(record_of):
    cost = {
        "trainable_parameters": 58777,
        "total_parameters": 771601,
        "trainable_share": 0.0762,
        "stored_floats": 48804427,
        "forward_passes": 2,
        "training_seconds": [200.0, 3600.0],
        "evaluation_seconds": [1.5, 2.5],
        "peak_memory_bytes": 5_250_000_000,
    }
    text = markdown_report(record_of(2, 2, cost=cost))
    for line in (
        "- trainable parameters: 58,777 of 771,601 (7.6 %)",
        "- numbers stored beside the network: 48,804,427",
        "- passes of the backbone for a test image: 2",
        "- training: 1 h 3 min (3 min 20 s, 1 h)",
        "- evaluation: 4.0 s (1.5 s, 2.5 s)",
        "- most memory: 5.25 GB",
    ):
        assert f"{line}\n" in text
