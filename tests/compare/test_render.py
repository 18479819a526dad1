import csv
import io
import json
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from avalanche_peftcl.compare import compare_runs
from avalanche_peftcl.compare.html_report import html_report
from avalanche_peftcl.compare.pairs_sheet import pairs_sheet
from avalanche_peftcl.compare.render import (
    csv_table,
    json_tables,
    latex_tables,
    markdown_tables,
    terminal_tables,
)
from avalanche_peftcl.compare.sheets import Scale, further_sheet, results_sheet
from avalanche_peftcl.compare.statistics import estimate
from avalanche_peftcl.errors import ProtocolError
from avalanche_peftcl.runs.tables import Sheet
from avalanche_peftcl.runs.tables import terminal_tables as drawn

FORMATS = (markdown_tables, latex_tables, csv_table)


@pytest.fixture
def comparison(study):
    return compare_runs([study])


@pytest.fixture
def quoting(write, tmp_path):
    """One run on a stream that published numbers are quoted for."""
    stream = {"config.benchmark.name": "image_folder", "config.benchmark.root": "data/kvasir"}
    experience = {"classes": [0, 1], "class_names": ["a", "b"], "train_images": 9, "test_images": 9}
    stream |= {"protocol.experiences": [experience] * 4, "experiences.total": 4}
    stream |= {"accuracy.accuracy_curve": [0.5] * 4, "accuracy_matrix": [[0.5] * 4] * 4}
    backbone = {"name": "timm_vit", "model_name": "vit_base_patch16_224.augreg_in21k"}
    stream |= {"config.backbone": backbone | {"pretrained": True}}
    stream |= {"protocol.class_order": [1, 0]}
    write("a", {"name": "x", "note": "50 % | a_b & <c>"}, changes=stream)
    write("b", {"name": "x", "note": "no"}, changes=stream)
    return compare_runs([tmp_path], published=True)


def markdown_rows(text):
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_cells_of_the_result_table(comparison):
    sheet = results_sheet(comparison)
    assert sheet.columns == (
        "method",
        "seeds",
        "average accuracy (%)",
        "last accuracy (%)",
        "forgetting (%)",
        "training time (s)",
        "trainable parameters",
    )
    naive, corrected, _ = sheet.rows
    # last accuracy 0.60, 0.61, 0.64; t(0.975, 2) = 4.303
    assert naive[:2] == ("naive", "3")
    assert naive[3] == "61.7 ± 2.1 (± 5.2)"
    assert naive[5:] == ("9.0 ± 3.0 (± 7.5)", "1,000")
    assert corrected[0] == "ntk_cl recipe=corrected"
    assert corrected[1:4] == ("1", "92.5", "90.0")


def test_passes_stand_where_they_were_counted_and_a_budget_below(write, tmp_path):
    budget = {"config.budget": {"passes": 2.0}}
    for name, passes in (("naive", [2.0, 2.0, 3.5]), ("pegp", [4.0] * 3)):
        write(f"r/{name}", name, changes=budget | {"cost.training_passes": passes})
    comparison = compare_runs([tmp_path / "r"])
    sheet = results_sheet(comparison)
    assert sheet.columns[5] == "passes a training image"
    assert [row[5] for row in sheet.rows] == ["2.50", "4.00"]
    assert "Budget: 2 passes a training image." in sheet.notes
    assert "own,pegp,training_passes,passes,0,1,4.0" in csv_table(comparison)
    write("r/other", "naive", changes={"config.budget": {"passes": 3.0}})
    with pytest.raises(ProtocolError, match=r"budget of passes: 2\.0 in .*; 3\.0 in .*other"):
        compare_runs([tmp_path / "r"])
    labels = [method.label for method in compare_runs([tmp_path / "r"], force=True).methods]
    assert sorted(labels) == ["naive passes=2", "naive passes=3", "pegp"]


def test_the_unit_of_time_fits(write, tmp_path):
    for name, seconds in (("s", 50.0), ("min", 500.0), ("h", 5000.0)):
        write(name, changes={"cost.training_seconds": [seconds] * 3})
        columns = results_sheet(compare_runs([tmp_path / name])).columns
        assert columns[5] == f"training time ({name})"


def test_numbers_are_rounded_without_a_negative_zero():
    percent = Scale(100.0, "%", 1)
    assert [percent.number(v) for v in (-0.0001, -0.012, 12.0, None)] == [
        "0.0",
        "-1.2",
        "1,200.0",
        "-",
    ]


def test_cells_of_the_tests(comparison):
    rows = pairs_sheet(comparison).rows
    assert len(rows) == 6
    assert rows[1] == (
        "naive / ntk_cl recipe=released",
        "average",
        "3",
        "-17.0 ± 0.5 (± 1.2)",
        "-58.89",
        "0.00029",
        "0.00029",
    )
    assert rows[0][3:] == ("-22.5", "-", "- (one common seed)", "-")


def test_further_metrics_of_some_seeds_are_named_and_of_many_methods_have_a_row_each(
    write, tmp_path
):
    for i in range(9):
        for seed in (0, 1):
            told = {"x": [0.5, 0.5, 2.0 + i]} | ({"y": [1.0] * 3} if seed else {})
            told |= {"z": [1.0] * 3} if i == 8 else {}
            write(f"m{i}_{seed}", f"m{i}", seed, changes={"further_metrics": told})
    few = further_sheet(
        compare_runs([tmp_path / f"m{i}_{seed}" for i in (0, 1) for seed in (0, 1)])
    )
    assert few.columns == ("metric", "m0", "m1")
    assert [row[0] for row in few.rows] == ["x"]
    assert few.notes[-1] == "Of no method do all seeds have y."
    many = further_sheet(comparison := compare_runs([tmp_path]))
    assert many.columns == ("method", "x", "z")
    assert [row[0] for row in many.rows] == [f"m{i}" for i in range(9)]
    assert many.rows[7][2] == "-"
    narrow = [shown.columns[0]._cells for shown in drawn(many, width=20)]
    assert [len(names) for names in narrow] == [9, 1]  # rows with nothing in a part are left out
    assert "| m8 |" in markdown_tables(comparison)


def test_one_method_has_nothing_to_test(write, tmp_path):
    write("a")
    sheet = pairs_sheet(compare_runs([tmp_path]))
    assert (sheet.rows, sheet.notes) == ((), ("There is one method: nothing to test.",))


@pytest.mark.parametrize("which", ["comparison", "quoting"])
def test_markdown_tables_have_as_many_cells_as_heads(request, which):
    text = markdown_tables(request.getfixturevalue(which))
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        rows = markdown_rows(table)
        assert {len(row) for row in rows} == {len(rows[0])}
        assert set(rows[1]) == {":---", "---:"}


def test_markdown_has_the_numbers(comparison):
    rows = markdown_rows(markdown_tables(comparison))
    assert rows[2][:4] == ["naive", "3", "71.7 ± 2.1 (± 5.2)", "61.7 ± 2.1 (± 5.2)"]


def test_markdown_escapes_what_it_would_read(quoting):
    rows = markdown_rows(markdown_tables(quoting))
    assert rows[2][0] == r"x note=50 % \| a_b & \<c\>"


def test_latex_is_a_booktabs_table_with_all_cells(comparison):
    text = latex_tables(comparison)
    assert text.startswith("% needs \\usepackage{booktabs}\n")
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 2
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count("\\" + rule) == 2
    for tabular in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", text, re.DOTALL):
        columns = re.match(r"\\begin\{tabular\}\{(l?r+)\}", tabular).group(1)
        lines = [line for line in tabular.splitlines() if line.endswith(r" \\")]
        assert {len(re.split(r"(?<!\\)&", line)) for line in lines} == {len(columns)}
    assert r"naive & 3 & 71.7 \ensuremath{\pm} 2.1 (\ensuremath{\pm} 5.2)" in text
    assert r"ntk\_cl recipe=corrected" in text
    assert r"average accuracy (\%)" in text
    assert r"& \ensuremath{-}58.89 &" in text


def test_latex_escapes_everything_special(quoting):
    text = latex_tables(quoting)
    assert r"x note=50 \% \ensuremath{|} a\_b \& \ensuremath{<}c\ensuremath{>}" in text
    assert not re.search(r"(?<!\\)[#_$~^]", text.replace("% needs", ""))


def test_a_name_stays_in_its_line(write, tmp_path):
    write("a", {"name": "[1cm]\n\x1b[31mx\u202ey"})
    comparison = compare_runs([tmp_path])
    assert comparison.methods[0].label == "[1cm] [31mx y"
    assert "\n{}[1cm] [31mx y & 1 &" in latex_tables(comparison)
    assert {len(row) for row in markdown_rows(markdown_tables(comparison))} == {7}


def test_csv_is_read_back_as_it_was(comparison):
    rows = list(csv.DictReader(io.StringIO(csv_table(comparison))))
    assert len(rows) == 3 * 5 + 3 * 2
    (row,) = [r for r in rows if (r["method"], r["quantity"]) == ("naive", "last_accuracy")]
    expected = estimate([0.6, 0.61, 0.64])
    assert float(row["mean"]) == pytest.approx(expected.mean)
    assert float(row["standard_deviation"]) == pytest.approx(expected.standard_deviation)
    assert float(row["confidence_half_width"]) == pytest.approx(expected.half_width)
    assert (row["source"], row["unit"], row["seeds"], row["count"], row["note"]) == (
        "own",
        "fraction",
        "0 1 2",
        "3",
        "",
    )
    (row,) = [
        r for r in rows if r["method"].endswith("corrected") and r["quantity"] == "forgetting"
    ]
    assert (row["count"], row["standard_deviation"], row["confidence_half_width"]) == ("1", "", "")
    tests = [r for r in rows if r["source"] == "paired test"]
    for row, test in zip(tests, comparison.tests, strict=True):
        assert row["method"] == f"{test.first.label} / {test.second.label}"
        assert (row["quantity"], row["unit"]) == (test.quantity.key, "fraction")
        result, single = test.result, test.result.difference.count == 1
        assert (row["seeds"], row["count"]) == (("0", "1") if single else ("0 1 2", "3"))
        assert float(row["mean"]) == pytest.approx(result.difference.mean)
        for key, value in (
            ("t", result.statistic),
            ("p", result.p_value),
            ("p_holm", test.corrected),
        ):
            assert row[key] == ("" if single else str(value))
        assert row["note"] == (result.reason or "")


def test_quoted_numbers_are_marked_and_not_mixed(quoting):
    sheet = results_sheet(quoting)
    assert [row[0] for row in sheet.rows] == ["x note=50 % | a_b & <c>", "x note=no"]
    assert len(sheet.quoted) == 4  # four methods of one table
    assert sheet.quoted[3] == (
        "NTK-CL [1]",
        "quoted",
        "90.03 ± 0.73",
        "82.70 ± 0.55",
        "-",
        "-",
        "-",
    )
    notes = sheet.sources
    assert len(notes) == 1
    assert notes[0].startswith("[1] Quoted, not measured here: Liu, Ji, Yu")
    for word in ("Table 4", "arXiv 2407.17120", "ImageNet-21k", "± is the standard deviation"):
        assert word in notes[0]
    assert len(quoting.methods) == 2
    assert {test.first.label for test in quoting.tests} == {"x note=50 % | a_b & <c>"}

    assert markdown_tables(quoting).count("*NTK-CL ") == 1
    assert latex_tables(quoting).count("quoted, not measured here") == 1
    rows = [
        r
        for r in csv.DictReader(io.StringIO(csv_table(quoting)))
        if r["p"] == "" and r["source"].startswith("arXiv")
    ]
    assert len(rows) == 8
    assert rows[6]["source"] == "arXiv 2407.17120, Table 4"
    assert (rows[6]["method"], rows[6]["mean"], rows[6]["standard_deviation"]) == (
        "NTK-CL",
        "0.9003",
        "0.0073",
    )
    assert rows[6]["note"].startswith("quoted; Kvasir, 4 experiences; mean over the tasks")


def test_quoted_numbers_of_several_streams_name_theirs(write, tmp_path):
    backbone = {"name": "timm_vit", "model_name": "vit_base_patch16_224.augreg_in21k"}
    stream = {"config.backbone": backbone | {"pretrained": True}, "protocol.class_order": [1, 0]}
    for name, total, size in (("kvasir", 4, 2), ("eurosat", 5, 2)):
        part = {"classes": [0, 1], "class_names": ["a"] * size, "train_images": 9, "test_images": 9}
        stream |= {"config.benchmark": {"name": name}, "experiences.total": total}
        stream |= {
            "protocol.experiences": [part] * total,
            "accuracy_matrix": [[0.5] * total] * total,
        }
        write(name, changes=stream | {"accuracy.accuracy_curve": [0.5] * total})
    comparison = compare_runs([tmp_path], force=True, published=True)
    labels = [row[0] for row in results_sheet(comparison).quoted]
    assert "NTK-CL on Kvasir, 4 experiences [1]" in labels
    assert "NTK-CL on EuroSAT, 5 experiences [1]" in labels
    page = html_report(comparison)
    for name in ("kvasir", "eurosat"):
        assert f"<summary>Experiences of seed 0, {tmp_path / name}</summary>" in page


def test_no_published_number_is_said(study):
    notes = results_sheet(compare_runs([study], published=True)).notes
    assert "No published number that ships with the package has this protocol." in notes


def test_every_format_carries_what_was_forced_and_what_was_left_out(study, write):
    write("study/other", "x", changes={"weights_sha256": "0" * 64})
    (write("study/torn") / "metrics.json").write_text("{}")
    write("study/half", "y", changes={"complete": False, "experiences.finished": 2})
    comparison = compare_runs([study], force=True)
    text = "weights of the backbone: abababababab... in "
    for render in FORMATS:
        assert text in render(comparison)
    for render in (markdown_tables, latex_tables):
        assert "it has no key" in render(comparison)
        assert "2 of 3 experiences are finished" in render(comparison)
    told = json.loads(json_tables(comparison))
    assert any(text in difference for difference in told["differences"])
    assert [each["method"] for each in told["methods"]] == [m.label for m in comparison.methods]
    assert told["methods"][1]["settings"]["strategy"] == "ntk_cl"
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(terminal_tables(comparison))
    shown = console.export_text()
    assert text in shown
    assert f"incomplete: {study}/half: 2 of 3 experiences are finished" in shown
    assert f"unreadable: {study}/torn: metrics.json is not that of a run" in shown


def test_at_80_columns_tables_are_stacked_and_nothing_is_lost(write, tmp_path):
    adapter = {"config.module": {"name": "attention_adapter", "r": 4}}
    plugin = {"config.plugins": [{"name": "gradient_projection", "threshold": 0.9}]}
    for seed in (0, 1):
        write(f"s/a{seed}", "naive", seed, changes=adapter)
        write(f"s/b{seed}", "naive", seed, start=0.85, changes=adapter | plugin)
        write(f"s/c{seed}", "nearest_class_mean", seed, drop=0.05)
    write("s/d0", "x", 0)
    comparison = compare_runs([tmp_path / "s"])
    console = Console(width=80, file=io.StringIO())
    console.print(terminal_tables(comparison, width=80))
    lines = console.file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    tables = "\n".join(lines).split("Paired tests")
    for sheet, text in zip(
        (results_sheet(comparison), pairs_sheet(comparison)), tables, strict=True
    ):
        known = Counter(text.split())
        wanted = Counter(word for row in sheet.rows for cell in row for word in cell.split())
        assert not wanted - known


@given(
    st.integers(1, 2),
    st.integers(0, 5),
    st.integers(30, 120),  # a sign of two letters needs as many
    st.lists(st.sampled_from(["a", "pegp adapter / x", "y" * 40, "5.0 ± 1.0 (± 2.5)", "漢字", ""])),
)
def test_no_column_is_lost_whatever_the_width(heads, more, width, cells):
    columns = tuple(f"column {i}" for i in range(heads + more))
    row = tuple((cells * len(columns) or [""] * len(columns))[: len(columns)])
    sheet = Sheet("title", columns, (row,), heads=heads)
    tables = drawn(sheet, width=width)
    found = [str(column.header) for table in tables for column in table.columns]
    assert set(found) == set(columns)
    assert len(found) == len(columns) + heads * (len(tables) - 1)
    shown = io.StringIO()
    for table in tables:
        Console(width=width, file=shown).print(table)
    letters = Counter("".join(row)) - Counter(shown.getvalue())
    assert set(letters) <= {" "}


def test_how_options_were_searched_for_is_told_of_each_method(write, tmp_path):
    tuned = {
        "phase": "other",
        "benchmark": {"name": "image_folder", "root": "data/pacs"},
        "tested_on": "held-out training images",
        "trials": 8,
        "seed": 0,
        "searched": {"strategy.lr": "0.01 to 1, log"},
        "values": {"strategy.lr": 0.1},
        "score": 0.5,
    }
    for seed in (0, 1):
        write(f"a{seed}", "naive", seed, changes={"config.tuned": tuned})
        write(f"b{seed}", "pegp", seed)
    notes = "\n".join(results_sheet(compare_runs([tmp_path])).notes)
    said = "8 trials of strategy.lr on held-out training images of image_folder data/pacs."
    assert f"Tuned, naive: {said}" in notes
    assert "No search of options is recorded of pegp." in notes
    write("c0", "ntk_cl", 0, changes={"config.tuned": tuned})
    notes = results_sheet(compare_runs([tmp_path])).notes
    assert f"Tuned, all but pegp: {said}" in notes


def test_where_nothing_was_searched_nothing_is_told(comparison):
    assert not any("search" in note for note in results_sheet(comparison).notes)
