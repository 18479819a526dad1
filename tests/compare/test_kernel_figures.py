import re

import numpy as np
import pytest
from scipy import stats

from avalanche_peftcl.compare import compare_runs
from avalanche_peftcl.compare.html_report import html_report
from avalanche_peftcl.compare.kernel_figures import kernel_sections
from avalanche_peftcl.compare.kernel_picture import kernel_picture
from avalanche_peftcl.runs.picture import colour

EVIL = "</svg><script>alert('x')</script>%{x}"


@pytest.fixture
def sections(watched):
    return kernel_sections(compare_runs([watched]))


def told_in(picture):
    return re.findall(r'fill="(#\w+)"><title>(.*?)</title>', picture)


def test_there_are_maps_forgetting_and_drift(sections):
    assert [section.title for section in sections] == [
        "Tangent kernels",
        "Forgetting, predicted",
        "Kernel drift",
    ]
    assert sections[0].notes == (
        "Empirical tangent kernels, form pseudo, of 8 images of each experience.",
    )
    assert [len(section.plots) for section in sections] == [2, 2, 2]


def test_maps_are_the_mean_over_the_seeds_in_the_same_colours(sections):
    naive, pegp = sections[0].plots
    assert naive.title == "Kernel map: naive"
    cells = told_in(naive.picture)
    assert len(cells) == 9
    # by hand: (0.5 + 0.7) / 2 next to each other, half of that two apart; 0.1 is the lowest
    place = (0.6 - 0.1) / 0.9
    assert (colour(place), "experiences 1 (c0, c1) and 2 (c2, c3): 0.600") in cells
    assert (colour(1.0), "experiences 3 (c4, c5) and 3 (c4, c5): 1.000") in cells
    assert (colour(0.0), "experiences 1 (c0, c1) and 3 (c4, c5): 0.100") in told_in(pegp.picture)
    assert (colour(1 / 9), "experiences 1 (c0, c1) and 2 (c2, c3): 0.200") in told_in(pegp.picture)
    for plot in (naive, pegp):
        assert "Colours go from 0.10 to 1.00, the same for all methods." in plot.caption
        bar = re.findall(r'fill="(#\w+)"/>\n<text[^>]*>([\d.]+)</text>', plot.picture)
        assert bar[0] == (colour(1.0), "1.00")
        assert bar[-1] == (colour(0.0), "0.10")
    assert "mean over 2 seeds" in naive.caption
    assert "mean over one seed" in pegp.caption
    assert "between 0.30 (experiences 1 (c0, c1) and 3 (c4, c5)) and 0.60 (" in naive.caption
    assert naive.sheet.columns == ("experience", "1 (c0, c1)", "2 (c2, c3)", "3 (c4, c5)")
    assert naive.sheet.rows[0][:2] == ("1 (c0, c1)", "1.000")
    assert naive.sheet.rows[0][2].startswith("0.600 ± 0.141 (± ")
    assert pegp.sheet.rows[2] == ("3 (c4, c5)", "0.100", "0.200", "1.000")


def test_the_scatter_has_the_pairs_of_all_seeds(sections):
    naive, pegp = sections[1].plots
    predicted = [0.1, 0.2, 0.2, 0.11, 0.21, 0.21]
    measured = [0.2, 0.4, 0.4] * 2
    (points,) = naive.figure.data
    assert points.x == pytest.approx(predicted)
    assert points.y == pytest.approx(measured)
    assert points.mode == "markers"
    assert points.meta == 0
    assert pegp.figure.data[0].meta == 1
    assert points.customdata[1] == "experience 1 (c0, c1) after 3 (c4, c5), seed 0"
    assert naive.sheet.rows[3] == ("1 (c0, c1)", "2 (c2, c3)", "1", "0.11", "0.2")
    found = stats.pearsonr(predicted, measured)
    low, high = found.confidence_interval()
    assert (
        f"Correlation {found.statistic:.2f} (95 % interval {low:.2f} to {high:.2f}, 6 pairs of "
        "2 seeds taken for independent)."
    ) in naive.caption
    assert "3 pairs of one seed: too few, or too much alike, for a correlation." in pegp.caption


def test_both_axes_go_as_far_and_the_line_is_where_both_are_equal(sections):
    figure = sections[1].plots[0].figure
    x, y = figure.layout.xaxis.range, figure.layout.yaxis.range
    assert x == y
    assert x[0] < 0.1
    assert x[1] > 0.4
    (line,) = figure.layout.shapes
    assert (line.x0, line.y0, line.x1, line.y1) == (x[0], x[0], x[1], x[1])


def test_pairs_that_lack_a_side_are_left_out(watched, alter):
    path = "metric_summaries.NTKMetric.forgetting"
    alter(watched / "pegp_0", changes={f"{path}.{i}.measured": None for i in range(3)})
    alter(watched / "naive_0", changes={f"{path}.0.predicted": None})
    (plot,) = kernel_sections(compare_runs([watched]))[1].plots
    assert plot.title.endswith("naive")
    assert len(plot.figure.data[0].x) == 5


def test_of_very_many_pairs_some_are_drawn_and_all_count(watched, alter):
    values = np.random.default_rng(0).normal(size=(2000, 2)).tolist()
    pairs = [{"experience": 0, "after": 1, "predicted": a, "measured": a + b} for a, b in values]
    alter(watched / "pegp_0", changes={"metric_summaries.NTKMetric.forgetting": pairs})
    plot = kernel_sections(compare_runs([watched]))[1].plots[1]
    assert len(plot.figure.data[0].x) == len(plot.sheet.rows) == 1000
    assert "2000 pairs of one seed" in plot.caption
    assert plot.sheet.title.endswith("1000 of 2000 pairs")


def test_drifts_are_lines_over_the_experiences(sections):
    first, across = sections[2].plots
    lines = [trace for trace in first.figure.data if trace.fill is None]
    assert lines[0].y == pytest.approx([0.0, 0.255, 0.5])
    assert lines[1].y == pytest.approx([0.0, 0.25, 0.5])
    assert [trace.meta for trace in lines] == [0, 1]
    bands = [trace for trace in first.figure.data if trace.fill]
    assert [band.meta for band in bands] == [0]
    assert first.figure.layout.xaxis.ticktext == ("1 (c0, c1)", "2 (c2, c3)", "3 (c4, c5)")
    assert "naive 0.500 (experience 3 (c4, c5)); pegp 0.500" in first.caption
    assert "Bands are 95 %" in first.caption
    lines = [trace for trace in across.figure.data if trace.fill is None]
    assert lines[0].y == (None, pytest.approx(0.125), pytest.approx(0.38))
    assert across.sheet.rows[1] == ("pegp", "-", "0.125", "0.375")


def test_joint_training_has_its_drift_at_the_end(watched, alter):
    changes = {"joint": True, "metric_summaries.NTKMetric.drift_from_first": [0.5]}
    alter(watched / "pegp_0", changes=changes)
    first, _ = kernel_sections(compare_runs([watched]))[2].plots
    assert first.sheet.rows[1] == ("pegp", "-", "-", "0.500")


def test_kernels_of_several_kinds_are_told_apart(watched, alter):
    alter(watched / "pegp_0", changes={"metric_summaries.NTKMetric.form": "logit"})
    notes = kernel_sections(compare_runs([watched]))[0].notes
    assert "form logit or pseudo" in notes[0]
    assert "not of one kind" in notes[1]


def test_what_could_not_be_used_is_told_on_the_page(watched, alter):
    alter(watched / "naive_1", changes={"metric_summaries.NTKMetric.kernel_map": EVIL})
    comparison = compare_runs([watched])
    sections = kernel_sections(comparison)
    assert "told in" in sections[0].notes[-1]
    assert "mean over 1 of 2 seeds" in sections[0].plots[0].caption
    page = html_report(comparison)
    assert "Left out: what NTKMetric told in" in page
    for name in ("naive_0", "pegp_0"):
        alter(watched / name, changes={"metric_summaries.NTKMetric": EVIL})
    (section,) = kernel_sections(compare_runs([watched]))
    assert section.plots == ()
    assert len(section.notes) == 3
    assert "<h2>Tangent kernels</h2>" in html_report(compare_runs([watched]))


def test_missing_values_leave_holes(watched, alter):
    nothing = {f"kernel_map.{i}": [None] * 3 for i in range(3)}
    nothing |= {"drift_from_first": [], "drift_across_switch": [None], "forgetting": []}
    changes = {f"metric_summaries.NTKMetric.{key}": value for key, value in nothing.items()}
    alter(watched / "pegp_0", changes=changes)
    alter(watched / "naive_0", changes={"metric_summaries.NTKMetric.kernel_map.0.1": None})
    sections = kernel_sections(compare_runs([watched]))
    (plot,) = sections[0].plots
    assert len(told_in(plot.picture)) == 8
    assert plot.sheet.rows[0][2] == "-"
    assert len(sections[1].plots) == 1
    for drift in sections[2].plots:
        assert [row[0] for row in drift.sheet.rows] == ["naive"]


def test_a_name_makes_no_tag(watched, alter):
    for folder in watched.iterdir():
        alter(folder, changes={"protocol.domains": [EVIL, "&", "\x1b"]})
    comparison = compare_runs([watched])
    drift = kernel_sections(comparison)[2].plots[0].figure
    assert drift.layout.xaxis.ticktext == ("1 (&lt;/svg&gt;&lt;script…)", "2 (&amp;)", r"3 (\x1b)")
    page = html_report(comparison)
    assert page.count("<script") == 3  # its own
    assert "1 (&lt;/svg&gt;&lt;script…)" in page
    picture = kernel_picture([[1.0]], [EVIL], (0.0, 1.0))
    assert "<script" not in picture
    assert picture.count("</svg>") == 1


def test_many_experiences_have_cells_without_numbers_and_fifty_at_most():
    values = [[1.0] * 120] * 120
    picture = kernel_picture(values, [str(i + 1) for i in range(120)], (0.0, 1.0))
    assert len(told_in(picture)) == 50 * 50
    assert not re.search(r">1\.00</text>\n<rect", picture)
    assert len(picture) < 400_000


def test_one_value_for_all_is_drawn():
    picture = kernel_picture([[0.5]], ["1"], (0.5, 0.5))
    assert told_in(picture) == [(colour(1.0), "experiences 1 and 1: 0.500")]
