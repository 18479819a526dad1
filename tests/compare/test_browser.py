"""The page in a real browser: headless Chromium, on a phone and a desk, light and dark."""

import json
import os
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avalanche_peftcl.compare import compare_runs
from avalanche_peftcl.compare.html_report import html_report

PHONE, TABLET, DESK, HEIGHT = 390, 800, 1280, 7000
SCHEMES = {"dark": 0, "light": 1}
# what the browser made of the page, handed to the frame around it, which --dump-dom shows
PROBE = """
<script>
const waiting = setInterval(() => {
  const root = document.documentElement;
  if (!root.dataset.drawn) return;
  clearInterval(waiting);
  const wide = [...document.querySelectorAll("body *")].filter((element) =>
    !element.closest(".scroll, pre, .plot svg") &&
    element.getBoundingClientRect().right > innerWidth + 1);
  const plots = [...document.querySelectorAll(".plot")];
  const shown = () => plots.slice(0, 4).map((plot) =>
    plot.data.filter((trace) => trace.visible !== false).length);
  const before = shown();
  const button = document.querySelector(".legend button");
  button.click();
  const after = shown(), pressed = button.getAttribute("aria-pressed");
  button.click();
  button.dispatchEvent(new Event("dblclick"));
  const alone = shown();
  button.dispatchEvent(new Event("dblclick"));
  const table = document.querySelector(".sortable"), sorted = [];
  for (const column of [0, 0, 3, 3]) {
    table.tHead.rows[0].cells[column].querySelector("button").click();
    sorted.push([...table.tBodies[0].rows].map((row) => row.cells[column].textContent));
  }
  const result = {
    width: innerWidth,
    wide: wide.map((element) => element.tagName + "." + element.className).slice(0, 5),
    scrolls: document.documentElement.scrollWidth,
    plots: plots.map((plot) => [plot.querySelectorAll("svg.main-svg").length > 0,
      plot.getBoundingClientRect().width, plot.querySelectorAll(".trace").length]),
    text: getComputedStyle(plots[0].querySelector(".xtitle")).fill,
    line: getComputedStyle(plots[0].querySelector(".js-line")).stroke,
    body: getComputedStyle(document.body).backgroundColor,
    links: [...document.querySelectorAll("a[href]")].map((link) => link.getAttribute("href")),
    asked: performance.getEntriesByType("resource").map((entry) => entry.name),
    hidden: document.getElementById("undrawn").hidden,
    pressed, before, after, again: shown(), alone, sorted,
  };
  parent.postMessage(JSON.stringify(result), "*");
}, 50);
</script>
</body>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"there is no browser: none of {', '.join(names)}; apt-get install chromium")
    return found


@pytest.fixture
def page(study, tmp_path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(html_report(compare_runs([study])))
    return path


def framed(page: Path, width: int) -> Path:
    """Write a page with ``page`` in a frame, and below it what that tells."""
    frame = page.with_name(f"frame_{width}.html")
    frame.write_text(
        f'<!DOCTYPE html><body style="margin:0"><iframe src="{page.name}" id="frame" '
        f'style="border:0;width:{width}px;height:{HEIGHT}px"></iframe><pre id="seen"></pre><script>'
        'onmessage = (event) => { document.getElementById("seen").textContent = event.data; };'
        "</script></body>"
    )
    return frame


def browse(chromium: str, page: Path, width: int | None, scheme: str, *words: str) -> str:
    """Open ``page``; in a frame ``width`` pixels wide, since a window cannot be that narrow."""
    frame = page if width is None else framed(page, width)
    result = subprocess.run(
        [
            chromium,
            "--headless",
            "--disable-gpu",
            "--hide-scrollbars",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # it refuses to run as root with one
            "--proxy-server=127.0.0.1:1",  # whatever it asks for, it does not get
            f"--user-data-dir={page.parent / 'profile'}",
            f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}",
            f"--window-size={max(width or DESK, 600)},{HEIGHT}",
            "--virtual-time-budget=15000",
            *words,
            frame.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return result.stdout


def look(chromium: str, page: Path, width: int, scheme: str) -> dict:
    """Return what the probe saw."""
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", PROBE))
    dom = browse(chromium, probed, width, scheme, "--dump-dom")
    (text,) = re.findall(r'<pre id="seen">(.+?)</pre>', dom, re.DOTALL)
    return json.loads(unescape(text))


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (PHONE, "dark"),
        pytest.param(PHONE, "light", marks=pytest.mark.slow),
        pytest.param(DESK, "dark", marks=pytest.mark.slow),
        pytest.param(DESK, "light", marks=pytest.mark.slow),
    ],
)
def test_the_page_is_drawn(chromium, page, width, scheme):
    seen = look(chromium, page, width, scheme)
    assert seen["width"] == width
    assert seen["hidden"]
    # nothing hangs out of the page, and it does not scroll sideways
    assert (seen["wide"], seen["scrolls"]) == ([], width)
    assert len(seen["plots"]) == 4
    for drawn, across, traces in seen["plots"]:
        assert drawn
        assert 0.4 * min(width, 1216) < across <= width
        assert traces
    # the plots wear the colours of the page
    dark = scheme == "dark"
    assert seen["body"] == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")
    assert seen["text"] == ("rgb(230, 232, 235)" if dark else "rgb(28, 30, 33)")
    assert seen["line"] == ("rgb(86, 180, 233)" if dark else "rgb(0, 114, 178)")
    # no way out: nothing was asked for, no link but to a place in the page
    assert seen["asked"] == []
    assert all(link.startswith("#") for link in seen["links"])


@pytest.mark.slow
def test_a_button_hides_a_method_in_every_plot(chromium, page):
    seen = look(chromium, page, DESK, "light")
    assert seen["before"] == [5, 5, 3, 3]  # bands and lines, points
    assert seen["after"] == [3, 3, 2, 2]
    assert seen["pressed"] == "false"
    assert seen["alone"] == [2, 2, 1, 1]
    assert seen["again"] == seen["before"]


@pytest.mark.slow
def test_the_head_of_a_column_sorts_by_it(chromium, page):
    words, back, numbers, up = look(chromium, page, DESK, "light")["sorted"]
    assert words == ["naive", "ntk_cl recipe=corrected", "ntk_cl recipe=released"] == back[::-1]
    assert [float(cell.partition(" ")[0]) for cell in numbers] == [90.0, 85.7, 61.7]
    assert up == numbers[::-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"), [(PHONE, "dark"), (TABLET, "light"), (DESK, "dark"), (DESK, "light")]
)
def test_what_metrics_told_is_drawn(chromium, watched, tmp_path, width, scheme):
    page = tmp_path / "report.html"
    page.write_text(html_report(compare_runs([watched])))
    seen = look(chromium, page, width, scheme)
    assert seen["hidden"]
    assert (seen["wide"], seen["scrolls"]) == ([], width)
    assert len(seen["plots"]) == 9
    for drawn, across, traces in seen["plots"]:
        assert drawn
        assert 0.3 * min(width, 1216) < across <= width
        assert traces
    assert seen["asked"] == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_screenshot_shows_the_page(chromium, page, width, scheme):
    shot = page.with_name("shot.png")
    browse(chromium, page, width, scheme, f"--screenshot={shot}")
    image = np.asarray(Image.open(shot).convert("RGB")).astype(int)[:, :width]
    background = (21, 24, 28) if scheme == "dark" else (255, 255, 255)
    share = (np.abs(image - background).max(2) < 8).mean()
    assert 0.5 < share < 0.97
    naive = (86, 180, 233) if scheme == "dark" else (0, 114, 178)
    assert (np.abs(image - naive).max(2) < 12).sum() > 50  # its line
    yellow = (image[..., 0] > 200) & (image[..., 1] > 170) & (image[..., 2] < 120)
    assert yellow.sum() > 1000  # cells of the matrices


@pytest.mark.slow
def test_without_a_way_to_unpack_the_words_remain(chromium, page):
    gone = "<script>delete window.DecompressionStream</script><main>"
    page.write_text(page.read_text().replace("<main>", gone))
    dom = browse(chromium, page, None, "light", "--dump-dom")
    assert 'class="undrawn"' in dom
    assert re.search(r'<p class="warn" id="undrawn">This browser cannot draw the plots', dom)
    assert "main-svg" not in dom
