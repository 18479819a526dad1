"""One page with everything: tables, plots, tests, protocol. It needs no network and asks for none.

The plotting library stands in the page, packed; a content security policy forbids every request.
Without JavaScript, or in a browser that cannot unpack the library, tables, captions and the
pictures of the matrices remain.
"""

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from plotly.offline import get_plotlyjs

from avalanche_peftcl import __version__
from avalanche_peftcl.compare.alike import NO_LIMIT, protocol_of
from avalanche_peftcl.compare.any_time_figures import any_time_sections
from avalanche_peftcl.compare.comparison import Comparison
from avalanche_peftcl.compare.figures import (
    curve_plot,
    forgetting_plot,
    matrix_plot,
    trade_off_plot,
)
from avalanche_peftcl.compare.image_text_figures import image_text_sections
from avalanche_peftcl.compare.kernel_figures import kernel_sections
from avalanche_peftcl.compare.pairs_sheet import pairs_sheet
from avalanche_peftcl.compare.plots import SERIES, SIGNS, Section, sign_of
from avalanche_peftcl.compare.sheets import (
    MANY,
    further_sheet,
    left_out_lines,
    results_sheet,
)
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.tables import Sheet
from avalanche_peftcl.runs.templates import asset, render


def html_report(comparison: Comparison) -> str:
    """Return the page.

    Args:
        comparison: What to show.

    Returns:
        A whole HTML document.
    """
    results = results_sheet(comparison)
    plots = [plot for plot in (curve_plot(comparison), forgetting_plot(comparison)) if plot]
    plots += [trade_off_plot(comparison, k) for k in ("trainable_parameters", "training_seconds")]
    matrices = [matrix_plot(method) for method in comparison.methods]
    sections = [
        *any_time_sections(comparison),
        *image_text_sections(comparison),
        *kernel_sections(comparison),
    ]
    every = [*plots, *matrices, *(plot for section in sections for plot in section.plots)]
    library = gzip.compress(get_plotlyjs().encode(), 9, mtime=0)
    values = {
        "title": _title(comparison),
        "subtitle": _subtitle(comparison),
        "differences": list(map(str, comparison.differences)),
        "left_out": left_out_lines(comparison),
        "results": results,
        "quoted": Sheet(f"{results.title}, quoted", results.columns, results.quoted),
        "further": further_sheet(comparison),
        "legend": [
            {"colour": i % SERIES, "sign": SIGNS[sign_of(i)], "label": method.label}
            for i, method in enumerate(comparison.methods)
        ],
        "plots": plots,
        "matrices": matrices,
        "many": len(matrices) > MANY,
        "sections": list(_numbered(sections, len(plots) + len(matrices))),
        "tests": pairs_sheet(comparison),
        "protocol": list(_protocol(comparison)),
        "streams": list(_streams(comparison)),
        "runs": _runs_sheet(comparison),
        "settings": list(_settings(comparison)),
        "figures": [json.loads(plot.figure.to_json()) for plot in every if plot.figure],
        "library": base64.b64encode(library).decode(),
        "style": asset("report.css"),
        "script": asset("report.js"),
        "version": __version__,
    }
    return render("report.html", values)


def _numbered(sections: Sequence[Section], first: int) -> Iterator[dict[str, Any]]:
    """Yield sections with the number that their first plot has on the page."""
    for section in sections:
        yield {"first": first, "shown": section}
        first += len(section.plots)


def _title(comparison: Comparison) -> str:
    found = {str(protocol_of(run)["data set"]) for run in comparison.runs}
    return f"Comparison on {', '.join(sorted(found))}"


def _subtitle(comparison: Comparison) -> str:
    methods, runs = len(comparison.methods), comparison.runs
    protocols = [protocol_of(run) for run in runs]
    scenario = ", ".join(sorted({str(one["scenario"]) for one in protocols}))
    experiences = ", ".join(map(str, sorted({one["experiences"] for one in protocols})))
    last = max(run.record.written_at for run in runs)
    return (
        f"{_count(methods, 'method')}, {_count(len(runs), 'run')}; scenario {scenario}, "
        f"{experiences} experiences; the last run ended {last}."
    )


def _protocol(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield what the runs share; several values only if that was forced."""
    protocols = [protocol_of(run) for run in comparison.runs]
    for key in protocols[0]:
        values = dict.fromkeys(_value(one[key]) for one in protocols if one[key] is not None)
        if values and list(values) != [NO_LIMIT]:
            yield key, " / ".join(values)


def _streams(comparison: Comparison) -> Iterator[Sheet]:
    """Yield the streams of every seed: one, unless that was forced."""
    streams: dict[tuple[int, str], RunRecord] = {}
    for run in comparison.runs:
        streams.setdefault((run.record.seed, str(run.record.protocol.experiences)), run)
    seeds = [seed for seed, _ in streams]
    for (seed, _), run in sorted(streams.items(), key=lambda item: item[0][0]):
        whose = f"seed {seed}" if seeds.count(seed) == 1 else f"seed {seed}, {run.folder}"
        rows = tuple(
            (str(i), str(e.train_images), str(e.test_images), ", ".join(e.class_names))
            for i, e in enumerate(run.record.protocol.experiences, start=1)
        )
        columns = ("experience", "training images", "test images", "classes")
        yield Sheet(f"Experiences of {whose}", columns, rows, words=True)


def _runs_sheet(comparison: Comparison) -> Sheet:
    rows = [
        (
            str(run.folder),
            method.label,
            str(run.record.seed),
            run.record.versions.get("avalanche-peftcl", "-"),
            run.record.written_at,
        )
        for method in comparison.methods
        for run in method.runs
    ]
    columns = ("folder", "method", "seed", "avalanche-peftcl", "ended")
    return Sheet("Runs that are compared", columns, tuple(rows), words=True)


def _settings(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """Yield the recorded configuration of each method's first run."""
    for method in comparison.methods:
        config = method.runs[0].record.config.model_dump(mode="json")
        title = f"{method.label}, seed {method.seeds[0]}"
        yield {"title": title, "lines": dump_settings(config).splitlines()}


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
