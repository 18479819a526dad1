"""One page with everything: tables, plots, tests, protocol. It needs no network and asks for none.

The plotting library stands in the page, packed; a content security policy forbids every request.
Without JavaScript, or in a browser that cannot unpack the library, tables and captions remain.
"""

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from avalanche_peftcl import __version__
from avalanche_peftcl.compare.alike import protocol_of
from avalanche_peftcl.compare.comparison import Comparison
from avalanche_peftcl.compare.figures import (
    SERIES,
    SIGNS,
    Plot,
    curve_plot,
    forgetting_plot,
    matrix_plot,
    sign_of,
    trade_off_plot,
)
from avalanche_peftcl.compare.methods import Method
from avalanche_peftcl.compare.records import Run
from avalanche_peftcl.compare.sheets import Sheet, left_out_lines, pairs_sheet, results_sheet
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.console import visible

_FEW = 20  # quoted rows that are shown unfolded
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; form-action 'none'; base-uri 'none'"
)


def html_report(comparison: Comparison) -> str:
    """Return the page.

    Args:
        comparison: What to show.

    Returns:
        A whole HTML document.
    """
    results, tests = results_sheet(comparison), pairs_sheet(comparison)
    plots = [plot for plot in (curve_plot(comparison), forgetting_plot(comparison)) if plot]
    plots += [trade_off_plot(comparison, k) for k in ("trainable_parameters", "training_seconds")]
    matrices = [matrix_plot(comparison, method) for method in comparison.methods]
    title = _title(comparison)
    body = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="note">{_text(_subtitle(comparison))}</p>',
        *_warnings(comparison),
        '<noscript><p class="warn">The plots need JavaScript; their numbers stand in the captions '
        "and tables.</p></noscript>",
        '<p class="warn" id="undrawn" hidden>This browser cannot draw the plots; their numbers '
        "stand in the captions and tables.</p>",
        "<h2>Methods</h2>",
        _table(results),
        *_quoted(results),
        *_paragraphs(results.notes),
        "<h2>Plots</h2>",
        _legend(comparison.methods),
        f'<div class="plots">{"".join(_figure(plot, i) for i, plot in enumerate(plots))}</div>',
        "<h2>Accuracy matrices</h2>",
        '<div class="plots">'
        + "".join(_figure(plot, i) for i, plot in enumerate(matrices, start=len(plots)))
        + "</div>",
        "<h2>Paired tests</h2>",
        _table(tests),
        *_paragraphs(tests.notes),
        "<h2>Protocol</h2>",
        *_protocol(comparison),
        "<h2>Runs</h2>",
        _table(_runs_sheet(comparison), words=True),
        *(_settings(method) for method in comparison.methods),
        *_left_out(comparison),
        f'<p class="note">Made by avalanche-peftcl {_text(__version__)}.</p>',
    ]
    figures = [json.loads(plot.figure.to_json()) for plot in (*plots, *matrices)]
    return _PAGE.format(
        policy=_POLICY,
        title=_text(title),
        style=_asset("report.css"),
        body="\n".join(body),
        figures=_inert(figures),
        library=base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode(),
        script=_asset("report.js"),
    )


_PAGE = """<!DOCTYPE html>
<html lang="en" class="undrawn">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script type="application/json" id="figures">{figures}</script>
<script type="text/plain" id="library">{library}</script>
<script>
{script}</script>
</body>
</html>
"""


def _title(comparison: Comparison) -> str:
    found = {str(protocol_of(run)["data set"]) for run in comparison.runs}
    return f"Comparison on {', '.join(sorted(found))}"


def _subtitle(comparison: Comparison) -> str:
    methods, runs = len(comparison.methods), comparison.runs
    protocols = [protocol_of(run) for run in runs]
    scenario = ", ".join(sorted({str(one["scenario"]) for one in protocols}))
    experiences = ", ".join(map(str, sorted({one["experiences"] for one in protocols})))
    last = max(run.metrics.written_at for run in runs)
    return (
        f"{_count(methods, 'method')}, {_count(len(runs), 'run')}; scenario {scenario}, "
        f"{experiences} experiences; the last run ended {last}."
    )


def _warnings(comparison: Comparison) -> Iterable[str]:
    if comparison.differences:
        yield '<div class="warn"><p>These runs do not share one protocol. They differ in</p><ul>'
        for difference in comparison.differences:
            yield f"<li>{_text(str(difference))}</li>"
        yield "</ul></div>"
    left = len(comparison.incomplete) + len(comparison.unreadable)
    if left:
        see = '<a href="#left-out">below</a>'
        yield f'<p class="warn">{_count(left, "run")} left out, see {see}.</p>'


def _table(sheet: Sheet, *, words: bool = False) -> str:
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in sheet.columns)
    rows = [_row(row) for row in sheet.rows]
    kind = ' class="words"' if words else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(sheet.title)}">'
        f"<table{kind}><caption>{_text(sheet.title)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(cells: Sequence[str]) -> str:
    first, *others = map(_text, cells)
    data = "".join(f"<td>{other}</td>" for other in others)
    return f'<tr><th scope="row">{first}</th>{data}</tr>'


def _quoted(sheet: Sheet) -> Iterable[str]:
    """Yield the quoted rows as a table of their own, folded if it is long."""
    if sheet.quoted:
        state = " open" if len(sheet.quoted) <= _FEW else ""
        summary = f"{_count(len(sheet.quoted), 'published result')} of this protocol, quoted"
        quoted = Sheet(f"{sheet.title}, quoted", sheet.columns, sheet.quoted)
        yield f'<details class="quoted"{state}><summary>{summary}</summary>{_table(quoted)}'
        yield from _paragraphs(sheet.sources)
        yield "</details>"


def _paragraphs(notes: Iterable[str]) -> Iterable[str]:
    return (f'<p class="note">{_text(note)}</p>' for note in notes)


def _legend(methods: Sequence[Method]) -> str:
    """Return a button a method, which shows and hides it in every plot."""
    buttons = (
        f'<li><button type="button" data-series="{i}" aria-pressed="true">'
        f'<span style="color: var(--series-{i % SERIES})" aria-hidden="true">{SIGNS[sign_of(i)]}'
        f"</span> {_text(method.label)}</button></li>"
        for i, method in enumerate(methods)
    )
    return f'<ul class="legend" aria-label="Show or hide methods">{"".join(buttons)}</ul>'


def _figure(plot: Plot, index: int) -> str:
    return (
        f'<figure><h3 id="title-{index}">{_text(plot.title)}</h3>'
        f'<div class="plot" role="img" aria-labelledby="title-{index} caption-{index}"></div>'
        f'<figcaption id="caption-{index}">{_text(plot.caption)}</figcaption>'
        f"<details><summary>The numbers</summary>{_table(plot.sheet)}</details></figure>"
    )


def _protocol(comparison: Comparison) -> Iterable[str]:
    """Yield what the runs share, and the streams of every seed: one, unless that was forced."""
    protocols = [protocol_of(run) for run in comparison.runs]
    yield "<dl>"
    for key in protocols[0]:
        values = dict.fromkeys(_value(one[key]) for one in protocols if one[key] is not None)
        if values:
            yield f"<dt>{_text(key)}</dt><dd>{_text(' / '.join(values))}</dd>"
    yield "</dl>"
    streams: dict[tuple[int, str], Run] = {}
    for run in comparison.runs:
        streams.setdefault((run.metrics.seed, str(run.metrics.protocol.experiences)), run)
    seeds = [seed for seed, _ in streams]
    for (seed, _), run in sorted(streams.items(), key=lambda item: item[0][0]):
        whose = f"seed {seed}" if seeds.count(seed) == 1 else f"seed {seed}, {run.folder}"
        rows = tuple(
            (str(i), str(e.train_images), str(e.test_images), ", ".join(e.class_names))
            for i, e in enumerate(run.metrics.protocol.experiences, start=1)
        )
        columns = ("experience", "training images", "test images", "classes")
        sheet = Sheet(f"Experiences of {whose}", columns, rows)
        summary = f"<summary>Experiences of {_text(whose)}</summary>"
        yield f"<details>{summary}{_table(sheet, words=True)}</details>"


def _runs_sheet(comparison: Comparison) -> Sheet:
    rows = [
        (
            str(run.folder),
            method.label,
            str(run.metrics.seed),
            run.metrics.versions.get("avalanche-peftcl", "-"),
            run.metrics.written_at,
        )
        for method in comparison.methods
        for run in method.runs
    ]
    columns = ("folder", "method", "seed", "avalanche-peftcl", "ended")
    return Sheet("Runs that are compared", columns, tuple(rows))


def _left_out(comparison: Comparison) -> Iterable[str]:
    lines = left_out_lines(comparison)
    if lines:
        items = "".join(f"<li>{_text(line)}</li>" for line in lines)
        yield f'<h2 id="left-out">Left out</h2><ul>{items}</ul>'


def _settings(method: Method) -> str:
    """Return the recorded configuration of a method's first run."""
    config = method.runs[0].metrics.config.model_dump(mode="json")
    return (
        f"<details><summary>Settings of {_text(method.label)}, seed {method.seeds[0]}</summary>"
        f"<pre>{escape(visible(dump_settings(config), lines=True))}</pre></details>"
    )


def _text(text: str) -> str:
    """Return text as HTML shows it, no line break before a percent sign."""
    return escape(visible(text)).replace(" %", "\u00a0%")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _inert(value: Any) -> str:
    """Return ``value`` as JSON that no HTML parser sees anything in."""
    text = json.dumps(value, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _asset(name: str) -> str:
    return files("avalanche_peftcl").joinpath(f"assets/{name}").read_text(encoding="utf-8")
