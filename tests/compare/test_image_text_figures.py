import pytest

from avalanche_peftcl.compare import compare_runs
from avalanche_peftcl.compare.html_report import html_report
from avalanche_peftcl.compare.image_text_figures import image_text_sections


def told(lost):
    """Return what the four metrics may tell of a stream of three experiences."""
    found = {"image_to_text_r5": 0.5, "modality_gap": 0.25, "text_to_image_r1": 0.125}
    return {
        "ZeroShotRetentionMetric": {
            "sets": {
                "pets": {"images": 4, "classes": 2, "before": 0.5, "after": [0.5, 0.5, 0.5 - lost]}
            },
            "change": [0.0, 0.0, -lost],
        },
        "RetrievalMetric": {
            "images": 2,
            "captions": 4,
            "before": found | {"image_to_text_r1": 0.25},
            "after": [found | {"image_to_text_r1": 0.25 - x} for x in (0.0, 0.1, lost)],
        },
        "WrongMatchesMetric": {
            "experiences": [0, 1, 2],
            "rate": [[], [0.25], [lost, 0.5]],
            "auc": [[], [0.75], [0.75, None]],
            "frozen_rate": [[], [0.0], [0.0, 0.25]],
            "frozen_auc": [[], [0.5], [0.5, 0.5]],
        },
        "ReleasedAccuracyMetric": {
            "batch_size": 2,
            "with_leaked_task": [1.0, 0.75, 0.5],
            "over_all_seen": [1.0, 0.5, 0.25],
        },
    }


@pytest.fixture
def folder(watched, alter):
    for name, lost in (("naive_0", 0.25), ("naive_1", 0.25), ("pegp_0", 0.125)):
        alter(watched / name, changes={"metric_summaries": told(lost)})
    return watched


def test_each_metric_has_a_table_and_a_line_a_method(folder):
    kept, found, matches, released = image_text_sections(compare_runs([folder]))
    assert kept.sheet.columns == ("method", "seeds", "pets before", "pets last", "mean change")
    assert kept.sheet.rows[1] == ("pegp", "1", "50.0", "37.5", "-12.5")
    assert [line.y for line in kept.plots[0].figure.data if line.fill is None] == [
        (0, 0, -25),
        (0, 0, -12.5),
    ]
    assert "naive ends with -25.0 points; pegp ends with -12.5 points." in kept.plots[0].caption
    assert found.sheet.rows[1] == ("pegp", "1", "25.0", "12.5", "12.5", "12.5", "0.250", "0.250")
    assert found.plots[0].sheet.rows[1] == ("pegp", "25.0", "15.0", "12.5")
    assert matches.sheet.rows[1][2:] == ("31.2", "12.5", "0.750", "0.500")
    assert matches.plots[0].sheet.rows[1] == ("pegp", "-", "25.0", "31.2")
    assert released.sheet.rows[1] == ("pegp", "1", "25.0", "50.0")
    assert "no accuracy" in released.notes[0]


def test_they_stand_on_the_page_and_only_where_they_were_told(folder, watched, alter):
    page = html_report(compare_runs([folder]))
    for title in ("Zero-shot accuracy that is left", "Old images that match later texts"):
        assert f"<h2>{title}</h2>" in page
    for name in ("naive_0", "naive_1", "pegp_0"):
        alter(folder / name, changes={"metric_summaries": {}})
    assert image_text_sections(compare_runs([folder])) == []


def test_what_does_not_fit_is_left_out_with_its_reason(folder, alter):
    path = "metric_summaries.ReleasedAccuracyMetric.with_leaked_task"
    for name in ("naive_0", "naive_1", "pegp_0"):
        alter(folder / name, changes={path: [2.0]})
    *_, section = image_text_sections(compare_runs([folder]))
    assert (section.plots, section.sheet) == ((), None)
    assert len(section.notes) == 3
    assert section.notes[0].startswith("Left out: what ReleasedAccuracyMetric told in ")
