import json
import re

import pytest

from avalanche_peftcl.compare import compare_runs
from avalanche_peftcl.compare.any_time_figures import any_time_sections
from avalanche_peftcl.compare.html_report import html_report


@pytest.fixture
def section(watched):
    (section,) = any_time_sections(compare_runs([watched]))
    return section


def test_curves_are_the_mean_over_the_seeds(section):
    (plot,) = section.plots
    lines = [trace for trace in plot.figure.data if trace.fill is None]
    assert [trace.meta for trace in lines] == [0, 1]
    assert lines[0].x == (5, 10, 15, 20, 25, 30)
    assert lines[0].y == pytest.approx([70, 90, 30.5, 80, 55, 75])
    assert lines[1].y == pytest.approx([70, 90, 50, 80, 55, 75])
    assert [trace.meta for trace in plot.figure.data if trace.fill] == [0]  # one has one seed
    assert "naive is lowest at iteration 15 with 30.5 % and ends with 75.0 %" in plot.caption
    assert "pegp is lowest at iteration 15 with 50.0 %" in plot.caption
    assert plot.sheet.columns == ("iteration", "naive", "pegp")
    assert plot.sheet.rows[2] == ("15", "30.5 ± 0.7 (± 6.4)", "50.0")


def test_area_and_minimum_stand_in_a_table(section):
    assert section.sheet.columns == (
        "method",
        "seeds",
        "area",
        "average minimum",
        "worst case",
        "minimum on 1 (c0, c1)",
        "minimum on 2 (c2, c3)",
        "minimum on 3 (c4, c5)",
    )
    naive, pegp = section.sheet.rows
    assert naive[:3] == ("naive", "2", "63.0 ± 0.7 (± 6.4)")
    assert naive[5].startswith("30.0 ± 0.0")
    assert pegp == ("pegp", "1", "62.5", "40.0", "50.0", "50.0", "43.8", "-")


def test_lines_stand_where_the_experience_changes(section):
    figure = section.plots[0].figure
    assert [shape.x0 for shape in figure.layout.shapes] == [10, 20]
    assert [(note.text, note.x) for note in figure.layout.annotations] == [
        ("1", 5),
        ("2", 15),
        ("3", 25),
    ]


def test_none_stand_where_methods_change_at_other_times(watched, alter):
    path = "metric_summaries.AnyTimeMetric.experience"
    alter(watched / "pegp_0", changes={path: [0, 0, 0, 1, 1, 2]})
    (section,) = any_time_sections(compare_runs([watched]))
    assert section.plots[0].figure.layout.shapes == ()
    assert "dotted" not in section.plots[0].caption


def test_seeds_meet_at_the_iterations_that_both_have(watched, alter):
    path = "metric_summaries.AnyTimeMetric.iterations"
    alter(watched / "naive_1", changes={path: [5, 10, 15, 21, 25, 31]})
    (section,) = any_time_sections(compare_runs([watched]))
    (plot,) = section.plots
    lines = [trace for trace in plot.figure.data if trace.fill is None]
    assert lines[0].x == (5, 10, 15, 25)
    alter(watched / "naive_1", changes={path: [6, 11, 16, 21, 26, 31]})
    (section,) = any_time_sections(compare_runs([watched]))
    (plot,) = section.plots
    assert {trace.meta for trace in plot.figure.data} == {1}
    assert (
        "The seeds of naive were not evaluated at the same iterations: no curve." in section.notes
    )
    assert [row[0] for row in section.sheet.rows] == ["naive", "pegp"]


def test_of_many_points_fifty_are_listed(watched, alter):
    size = 400
    changes = {
        "iterations": list(range(1, size + 1)),
        "experience": [0] * size,
        "accuracy": [0.5] * size,
    }
    for folder in watched.iterdir():
        alter(
            folder, changes={f"metric_summaries.AnyTimeMetric.{k}": v for k, v in changes.items()}
        )
    (plot,) = any_time_sections(compare_runs([watched]))[0].plots
    assert len(plot.sheet.rows) == 50
    assert plot.sheet.title.endswith("50 of 400 points")
    assert {trace.mode for trace in plot.figure.data} == {"lines"}
    assert len(plot.figure.data[-1].x) == size


def test_a_run_without_points_has_no_curve(watched, alter):
    empty = {"iterations": [], "experience": [], "accuracy": [], "minimum": [], "area": None}
    for folder in watched.iterdir():
        alter(folder, changes={f"metric_summaries.AnyTimeMetric.{k}": v for k, v in empty.items()})
    (section,) = any_time_sections(compare_runs([watched]))
    assert section.plots == ()
    assert section.sheet.rows[1][:3] == ("pegp", "1", "-")


def test_the_page_has_plots_and_tables_in_the_order_of_its_figures(watched):
    page = html_report(compare_runs([watched]))
    headings = re.findall("<h2>(.*?)</h2>", page)
    first = headings.index("Accuracy matrices") + 1
    assert headings[first : first + 5] == [
        "Accuracy while training",
        "Tangent kernels",
        "Forgetting, predicted",
        "Kernel drift",
        "Paired tests",
    ]
    kinds = re.findall(r'<div class="(plot|picture)" role="img" aria-labelledby="title-(\d+)', page)
    assert [int(number) for _, number in kinds] == list(range(13))
    assert "".join(kind[1] for kind, _ in kinds) == "lll" + "l" + "ii" + "l" + "ii" + "ll" + "ll"
    (text,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', page)
    titles = [figure["layout"]["xaxis"]["title"]["text"] for figure in json.loads(text)]
    assert titles[4:] == [
        "training iterations",
        "predicted forgetting",
        "predicted forgetting",
        "experience",
        "experience",
    ]
    assert page.count("<details><summary>The numbers</summary>") == 13


def test_records_without_summaries_have_the_page_that_they_had(study, write, alter):
    page = html_report(compare_runs([study]))
    assert "Tangent kernels" not in page
    for folder in sorted(path.parent for path in study.rglob("metrics.json")):
        alter(folder, changes={"metric_summaries": {"Other": {"a": [1, 2]}}})
    assert html_report(compare_runs([study])) == page
