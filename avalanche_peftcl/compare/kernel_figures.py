"""The plots of tangent kernels that runs were asked to measure: maps, forgetting, drift."""

from collections.abc import Iterator, Mapping, Sequence

from avalanche_peftcl.compare.comparison import Comparison
from avalanche_peftcl.compare.kernel_picture import kernel_picture
from avalanche_peftcl.compare.methods import Method, estimate_of
from avalanche_peftcl.compare.plots import (
    Plot,
    Section,
    empty_figure,
    label_of,
    listed,
    mean_of,
    over_experiences,
    plot_text,
    seeds,
    style_of,
)
from avalanche_peftcl.compare.sheets import Scale, cell
from avalanche_peftcl.compare.statistics import Estimate, correlation
from avalanche_peftcl.compare.summaries import Kernels, experience_names, told
from avalanche_peftcl.runs.report import number, spread
from avalanche_peftcl.runs.tables import Sheet

METRIC = "NTKMetric"
_OVERLAP = Scale(1.0, "", 3)
_DRIFT = Scale(1.0, "", 3)
_POINTS = 1000  # pairs of a method that are drawn and listed
_DRIFTS = (
    ("drift_from_first", "Kernel drift since the first experience"),
    ("drift_across_switch", "Kernel drift across each switch"),
)
_SAID = {
    "drift_from_first": "How far the kernel of the first experience's images has moved since "
    "that experience began, relative to its norm then",
    "drift_across_switch": "How far each experience moved the kernel of the images of the one "
    "before it, relative to its norm when that one ended",
}

Summaries = Mapping[int, Kernels]  # by seed


def kernel_sections(comparison: Comparison) -> list[Section]:
    """Draw what the runs tell of their tangent kernels; nothing if none does."""
    found = told(comparison, METRIC, Kernels)
    names = experience_names(comparison.runs)
    told_of = found.by_method
    sections = [
        Section(
            "Tangent kernels", tuple(_maps(told_of, names)), (*_notes(told_of), *found.left_out)
        ),
        Section("Forgetting, predicted", tuple(_forgetting(comparison, told_of, names))),
        Section("Kernel drift", tuple(_drifts(comparison, told_of, names))),
    ]
    return [section for section in sections if section.plots or section.notes]


def _maps(methods: Mapping[Method, Summaries], names: Sequence[str]) -> Iterator[Plot]:
    """Yield a map a method, all in the same colours."""
    maps = {method: _mean_map(summaries) for method, summaries in methods.items()}
    known = [e.mean for rows in maps.values() for row in rows for e in row if e is not None]
    if not known:
        return
    ends = min(known), max(known)
    for method, rows in maps.items():
        if not any(e is not None for row in rows for e in row):
            continue
        own = names[: len(rows)]
        cells = [[cell(e, _OVERLAP) for e in row] for row in rows]
        yield Plot(
            f"Kernel map: {method.label}",
            "Overlap of the kernels of two experiences at the end, 1 of one with itself; mean "
            f"over {seeds(len(methods[method]), of=len(method.runs))}. {_between(rows, names)} "
            f"Colours go from {ends[0]:.2f} to {ends[1]:.2f}, the same for all methods.",
            Sheet(
                "overlap of the kernels of two experiences",
                ("experience", *own),
                tuple((name, *row) for name, row in zip(own, cells, strict=True)),
            ),
            picture=kernel_picture([list(map(mean_of, row)) for row in rows], own, ends),
        )


def _mean_map(summaries: Summaries) -> list[list[Estimate | None]]:
    """Return the mean over the seeds, entry by entry, as far as all maps go."""
    maps = [summary.kernel_map for summary in summaries.values()]
    size = min(map(len, maps))
    return [[estimate_of([m[i][j] for m in maps]) for j in range(size)] for i in range(size)]


def _between(rows: Sequence[Sequence[Estimate | None]], names: Sequence[str]) -> str:
    """Say the smallest and largest overlap of two experiences and whose they are."""
    pairs = [
        (e.mean, names[i], names[j])
        for i, row in enumerate(rows)
        for j, e in enumerate(row[:i])
        if e is not None
    ]
    if not pairs:
        return ""
    said = [f"{value:.2f} (experiences {b} and {a})" for value, a, b in (min(pairs), max(pairs))]
    if len(pairs) == 1:
        return f"Two experiences overlap by {said[0]}."
    return f"Different experiences overlap between {said[0]} and {said[1]}."


def _forgetting(
    comparison: Comparison, methods: Mapping[Method, Summaries], names: Sequence[str]
) -> Iterator[Plot]:
    """Yield predicted against measured forgetting, a plot a method, the pairs of all seeds."""
    for method, summaries in methods.items():
        pairs = [
            (pair.predicted, pair.measured, seed, names[pair.experience], names[pair.after])
            for seed, summary in summaries.items()
            for pair in summary.forgetting
            if pair.predicted is not None and pair.measured is not None
        ]
        if not pairs:
            continue
        few = [pairs[i] for i in spread(len(pairs), _POINTS)]
        figure = empty_figure("predicted forgetting", "measured forgetting")
        figure.add_scatter(
            x=[predicted for predicted, *_ in few],
            y=[measured for _, measured, *_ in few],
            mode="markers",
            cliponaxis=False,
            opacity=0.8,
            customdata=[
                plot_text(f"experience {old} after {new}, seed {seed}")
                for _, _, seed, old, new in few
            ],
            hovertemplate=f"{label_of(method)}<br>%{{customdata}}<br>predicted %{{x:.4g}}, "
            "measured %{y:.4g}<extra></extra>",
            **style_of(comparison.methods.index(method), size=8),
        )
        low, high = _ends(
            [value for predicted, measured, *_ in few for value in (predicted, measured)]
        )
        figure.update_xaxes(range=[low, high])
        figure.update_yaxes(range=[low, high])
        line = {"color": "var(--muted)", "width": 1, "dash": "dash"}
        figure.add_shape(type="line", x0=low, y0=low, x1=high, y1=high, line=line, layer="below")
        title = f"Predicted and measured forgetting: {method.label}"
        shown = f", {len(few)} of {len(pairs)} pairs" if len(few) < len(pairs) else ""
        yield Plot(
            title,
            f"What training on an experience does to each earlier one, as the kernel predicts it "
            f"before and as it is measured after; on the dashed line both are equal. "
            f"{_correlation(pairs)}",
            Sheet(
                f"{title}{shown}",
                ("experience", "after", "seed", "predicted", "measured"),
                tuple(
                    (old, new, str(seed), number(predicted), number(measured))
                    for predicted, measured, seed, old, new in few
                ),
            ),
            figure,
        )


def _correlation(pairs: Sequence[tuple[float, float, int, str, str]]) -> str:
    """Say how predictions and measurements go together."""
    found = correlation([p for p, *_ in pairs], [m for _, m, *_ in pairs])
    count = len({seed for _, _, seed, *_ in pairs})
    of = f"{len(pairs)} pair{'' if len(pairs) == 1 else 's'} of {seeds(count)}"
    if found is None:
        return f"{of}: too few, or too much alike, for a correlation."
    return (
        f"Correlation {found.value:.2f} (95 % interval {found.low:.2f} to {found.high:.2f}, {of} "
        "taken for independent)."
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return where values lie, with a margin."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - margin, high + margin


def _drifts(
    comparison: Comparison, methods: Mapping[Method, Summaries], names: Sequence[str]
) -> Iterator[Plot]:
    """Yield how the kernel moves, a line a method."""
    for key, title in _DRIFTS:
        lines = {
            method: _over_seeds(
                [getattr(summary, key) for summary in summaries.values()], method, len(names)
            )
            for method, summaries in methods.items()
        }
        lines = {m: values for m, values in lines.items() if any(e is not None for e in values)}
        if not lines:
            continue
        words = [f"{method.label} {_largest(values, names)}" for method, values in lines.items()]
        yield over_experiences(
            comparison,
            title,
            f"{_SAID[key]}. The largest: {listed(words)}.",
            lines,
            ("experience", "relative change"),
            scale=_DRIFT,
            names=names,
        )


def _over_seeds(
    given: Sequence[Sequence[float | None]], method: Method, total: int
) -> list[Estimate | None]:
    """Return the mean over the seeds; joint training has its only value at the end."""
    size = min(map(len, given))
    values = [estimate_of([each[t] for each in given]) for t in range(size)]
    return [*[None] * (total - size), *values] if method.joint else values


def _largest(values: Sequence[Estimate | None], names: Sequence[str]) -> str:
    most, t = max((e.mean, t) for t, e in enumerate(values) if e is not None)
    return f"{_DRIFT.number(most)} (experience {names[t]})"


def _notes(methods: Mapping[Method, Summaries]) -> Iterator[str]:
    """Yield what the kernels are of, and whether they are alike."""
    every = [summary for summaries in methods.values() for summary in summaries.values()]
    forms = sorted({summary.form for summary in every if summary.form is not None})
    images = sorted({s.probe_images for s in every if s.probe_images is not None})
    if forms:
        of = f" of {' or '.join(map(str, images))} images of each experience" if images else ""
        yield f"Empirical tangent kernels, form {' or '.join(forms)},{of or ' of some images'}."
    if len(forms) > 1 or len(images) > 1:
        yield "They are not of one kind for all runs, and do not quite belong side by side."
