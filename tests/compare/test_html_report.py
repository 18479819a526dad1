import base64
import gzip
import json
import re
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

from avalanche_peftcl.compare import compare_runs
from avalanche_peftcl.compare.figures import (
    curve_plot,
    forgetting_plot,
    matrix_plot,
    trade_off_plot,
)
from avalanche_peftcl.compare.html_report import html_report

VOID = {"meta", "link", "br", "img", "hr", "input"}
EVIL = "</script><script>alert('x')</script><img src=http://evil.example/a onerror=alert(1)>"


class Page(HTMLParser):
    """Parses a page, and notes tags, texts and whether every tag is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.wrong: list[str] = []
        self.feed(text)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag, **wanted):
        return [a for t, a in self.tags if t == tag and wanted.items() <= a.items()]


@pytest.fixture(scope="module")
def library() -> str:
    return get_plotlyjs()


@pytest.fixture
def comparison(study):
    return compare_runs([study])


@pytest.fixture
def page(comparison):
    return Page(html_report(comparison))


def test_the_page_is_well_formed(page):
    assert page.wrong == []
    assert page.all("html", lang="en")
    assert page.texts["title"][0] == "Comparison on digits"
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_page_asks_for_nothing_from_anywhere(comparison):
    text = html_report(comparison)
    page = Page(text)
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith("#")
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none';")
    assert "http" not in policy["content"]
    assert "connect-src" not in policy["content"]
    shell = re.sub(r'(<script type="text/plain" id="library">).*?(</script>)', r"\1\2", text)
    assert not re.search(r"https?://|@import|url\(", shell)
    assert len(text) < 3_000_000


def test_the_plotting_library_is_in_it_once_and_whole(comparison, library):
    (packed,) = re.findall(
        r'<script type="text/plain" id="library">(.*?)</script>', html_report(comparison), re.DOTALL
    )
    assert gzip.decompress(base64.b64decode(packed)).decode() == library


def test_the_same_comparison_gives_the_same_page(comparison):
    assert html_report(comparison) == html_report(comparison)


def test_it_is_made_for_phones_and_for_the_dark(comparison, page):
    assert page.all("meta", name="viewport", content="width=device-width, initial-scale=1")
    assert page.all("meta", name="color-scheme", content="light dark")
    text = html_report(comparison)
    assert "@media (prefers-color-scheme: dark)" in text
    assert "overflow-x: auto" in text
    regions = page.all("div", role="region")
    assert len(regions) == len(page.all("table"))
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    # every colour that a plot names is there, in light and dark
    for name in set(re.findall(r'"var\((--[\w-]+)\)"', text)):
        assert text.count(f"{name}: ") == 2, name


def test_every_plot_has_its_numbers_in_words_and_as_a_table(page):
    plots = page.all("div", role="img")
    assert [plot["class"] for plot in plots] == ["plot"] * 4 + ["picture"] * 3  # one a method
    ids = {a.get("id") for _, a in page.tags}
    for index, plot in enumerate(plots):
        assert plot["aria-labelledby"] == f"title-{index} caption-{index}"
        assert set(plot["aria-labelledby"].split()) <= ids
    assert len(page.texts["figcaption"]) == len(page.all("details")) - 3 - 3 == len(plots)
    said = page.texts["figcaption"]
    assert "naive goes from 81.7\u00a0% after experience 1 to 61.7\u00a0% after" in said[0]
    assert "naive between 20.0 (experience 2) and 40.0 (experience 1)" in said[1]
    assert "naive: 1,000 trainable parameters, 61.7\u00a0%" in said[2]
    assert "naive: 9.0 s, 61.7\u00a0%" in said[3]
    assert (
        "ntk_cl recipe=corrected has between 85.0\u00a0% (experience 1) and 95.0\u00a0%" in said[5]
    )


def test_tables_tests_protocol_and_runs_are_there(page, study):
    cells = page.texts["td"]
    assert "61.7 ± 2.1 (± 5.2)" in cells
    assert "- (one common seed)" in cells
    terms = page.texts["dt"]
    assert {"scenario", "weights of the backbone", "normalisation", "training epochs"} <= set(terms)
    assert "ab" * 32 in page.texts["dd"]
    assert "img_size 32, mean [0.5, 0.5, 0.5], crop_pct 1.0" in page.texts["dd"]
    assert f"{study}/naive_0" in page.texts["th"]
    assert "Settings of naive, seed 0" in page.texts["summary"]
    assert any("train_epochs: 3" in text for text in page.texts["pre"])
    assert "Left out" not in page.texts["h2"]


def test_what_was_left_out_forced_and_quoted_is_told(study, write):
    write("study/other", "x", changes={"weights_sha256": "0" * 64})
    (write("study/torn") / "metrics.json").write_text("{}")
    page = Page(html_report(compare_runs([study], force=True, published=True)))
    assert page.wrong == []
    assert page.texts["h2"][-1] == "Left out"
    assert any("These runs do not share one protocol" in text for text in page.texts["p"])
    items = " ".join(page.texts["li"])
    assert "weights of the backbone: abababababab... in" in items
    assert "torn: metrics.json is not that of a run" in items
    notes = " ".join(page.texts["p"])
    assert "No published number that ships with the package has this protocol." in notes
    assert "1 run left out, see " in notes


def test_quoted_results_stand_in_a_table_of_their_own(write, tmp_path):
    stream = {"config.benchmark": {"name": "kvasir"}, "experiences.total": 4}
    experience = {"classes": [0, 1], "class_names": ["a", "b"], "train_images": 9, "test_images": 9}
    stream |= {"protocol.experiences": [experience] * 4}
    stream |= {"accuracy.accuracy_curve": [0.5] * 4, "accuracy_matrix": [[0.5] * 4] * 4}
    backbone = {"name": "timm_vit", "model_name": "vit_base_patch16_224.augreg_in21k"}
    stream |= {"config.backbone": backbone | {"pretrained": True}}
    write("a", seed=1, changes=stream)
    page = Page(html_report(compare_runs([tmp_path], published=True)))
    assert page.wrong == []
    assert page.texts["summary"][0] == "4 published results of this protocol, quoted"
    (details,) = page.all("details", **{"class": "quoted"})
    assert "open" in details  # few
    assert page.texts["th"].count("NTK-CL [1]") == 1
    assert page.texts["td"].count("quoted") == 4
    assert any("Read from figures/table3.png" in text for text in page.texts["p"])
    assert "NTK-CL" not in "".join(page.texts["script"][:1])  # no plot, no test


def test_nothing_of_a_record_becomes_part_of_the_page(write, tmp_path):
    evil = {"name": "x", "note": EVIL[:39]}
    names = {f"protocol.experiences.{t}.class_names": [EVIL, "&amp;"] for t in range(3)}
    write("a&<b>", evil, changes=names)
    write("b", {"name": "x", "note": "%{x}"}, changes=names)
    text = html_report(compare_runs([tmp_path]))
    page = Page(text)
    assert page.wrong == []
    assert len(page.all("script")) == 3
    assert page.all("img") == []
    assert not any("<" in text for text in page.texts["script"][:1])
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert any("a&<b>" in text for text in page.texts["th"])
    assert any(EVIL in text for text in page.texts["td"])


def figures_of(comparison):
    (text,) = re.findall(
        r'<script type="application/json" id="figures">(.*?)</script>', html_report(comparison)
    )
    return json.loads(text)


def test_the_figures_of_the_page_are_the_plots(comparison):
    figures = figures_of(comparison)
    assert len(figures) == 4
    assert {trace["type"] for figure in figures for trace in figure["data"]} == {"scatter"}
    assert all(figure["layout"]["showlegend"] is False for figure in figures)


def test_curves_have_a_band_where_there_are_seeds(comparison):
    data = curve_plot(comparison).figure.data
    assert [(trace.meta, trace.fill) for trace in data] == [
        (0, "toself"),
        (0, None),
        (1, None),  # one seed
        (2, "toself"),
        (2, None),
    ]
    assert data[1].x == (1, 2, 3)
    assert data[1].y == pytest.approx([81.667, 71.667, 61.667])
    band = data[0]
    assert band.x == (1, 2, 3, 3, 2, 1)
    assert band.y[0] + band.y[-1] == pytest.approx(2 * 81.667, abs=0.01)
    assert (band.y[0] - band.y[-1]) / 2 == pytest.approx(5.17, abs=0.01)


def test_matrices_are_the_mean_over_the_seeds(comparison):
    plot = matrix_plot(comparison.methods[0])
    told = re.findall(r"<title>(.*?)</title>", plot.picture)
    assert "trained up to 1, tested on experience 1: 81.7\u00a0%" in told
    assert "trained up to 3, tested on experience 1: 41.7\u00a0%" in told
    assert "trained up to 3, tested on all seen: 61.7\u00a0%" in told
    assert len(told) == 6 + 3
    assert plot.sheet.rows[2][1].startswith("41.7 ± ")


def test_costs_are_on_a_log_axis_where_they_are_far_apart(write, tmp_path):
    for name, count in (("a", 10), ("b", 400)):
        write(name, name, changes={"cost.trainable_parameters": count})
    plot = trade_off_plot(compare_runs([tmp_path]), "trainable_parameters")
    assert plot.figure.layout.xaxis.type == "log"
    assert plot.figure.layout.xaxis.tickvals == (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    write("c", "c", changes={"cost.trainable_parameters": 0})
    plot = trade_off_plot(compare_runs([tmp_path]), "trainable_parameters")
    axis = plot.figure.layout.xaxis
    assert dict(zip(axis.tickvals, axis.ticktext, strict=True))[1] == "0"  # a place of its own
    assert [trace.x for trace in plot.figure.data] == [(10,), (400,), (1,)]
    assert plot.figure.data[2].hovertemplate.startswith("c<br>0, ")


def test_costs_that_are_near_begin_at_zero(write, tmp_path):
    for name, count in (("a", 0), ("b", 400)):
        write(name, name, changes={"cost.trainable_parameters": count})
    plot = trade_off_plot(compare_runs([tmp_path]), "trainable_parameters")
    assert (plot.figure.layout.xaxis.type, plot.figure.layout.xaxis.rangemode) == (None, "tozero")
    assert [trace.x for trace in plot.figure.data] == [(0,), (400,)]


def test_many_methods_are_told_in_tables(write, tmp_path):
    for i in range(11):
        for seed in (0, 1):
            write(f"r{i}_{seed}", f"m{i}", seed, 0.9 - 0.01 * i)
    comparison = compare_runs([tmp_path])
    plots = [curve_plot(comparison), forgetting_plot(comparison)]
    for plot in (*plots, trade_off_plot(comparison, "training_seconds")):
        assert plot.caption.endswith(" 11 methods, whose numbers stand in the table below.")
        assert len(plot.figure.data) == 11  # no bands over each other
        assert len(plot.sheet.rows) == 11
    page = Page(text := html_report(comparison))
    assert page.wrong == []
    assert "Those of all 11 methods" in text
    assert "55 pairs of methods are not shown: with --against METHOD" in text
    assert "m3 / m4" not in text
    against = html_report(compare_runs([tmp_path], against="m4"))
    assert "m3 / m4" in against
    assert "m3 / m5" not in against


def test_one_experience_forgets_nothing(write, tmp_path):
    one = {"experiences.total": 1, "accuracy_matrix": [[0.5]], "accuracy.forgetting": None}
    one |= {"accuracy.accuracy_curve": [0.5], "accuracy.forgetting_by_experience": []}
    experience = {"classes": [0], "class_names": ["a"], "train_images": 9, "test_images": 9}
    write("a", changes=one | {"protocol.experiences": [experience]})
    comparison = compare_runs([tmp_path])
    assert forgetting_plot(comparison) is None
    page = Page(html_report(comparison))
    assert page.wrong == []
    assert len(page.all("div", role="img")) == 4


def test_many_methods_have_signs_and_strokes_of_their_own(write, tmp_path):
    for i in range(10):
        write(f"r{i}", {"name": "x", "r": i})
    data = curve_plot(compare_runs([tmp_path])).figure.data
    styles = {(t.marker.symbol, t.line.dash, t.line.color) for t in data}
    assert len(styles) == 10
    comparison = compare_runs([tmp_path])
    points = trade_off_plot(comparison, "trainable_parameters").figure.data
    assert len({(t.marker.symbol, t.marker.color) for t in points}) == 10  # points have no strokes
    text = html_report(comparison)
    buttons = re.findall(r'<span style="(color: [^"]+)" aria-hidden="true">(.)', text)
    assert len(set(buttons)) == 10
    assert Page(text).wrong == []
