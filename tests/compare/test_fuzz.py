"""Whatever a record holds: a comparison or a message, never a traceback."""

import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avalanche_peftcl.compare import compare_runs, html_report
from avalanche_peftcl.compare.command import WRITERS
from avalanche_peftcl.errors import PEFTCLError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def paths_of(value, above=()):
    """Yield the path of everything in ``value``."""
    yield above
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, dict | list):
            yield from paths_of(inner, (*above, key))
        else:
            yield (*above, key)


@pytest.fixture
def template(write) -> str:
    return (write() / "metrics.json").read_text()


@pytest.fixture
def watched_template(watched) -> str:
    return (watched / "naive_0" / "metrics.json").read_text()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(data=st.data())
def test_there_is_no_traceback(tmp_path_factory, template, monkeypatch, data):
    check(tmp_path_factory, template, monkeypatch, data, ())


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None
)
@given(data=st.data())
def test_there_is_none_whatever_metrics_told(tmp_path_factory, watched_template, monkeypatch, data):
    check(tmp_path_factory, watched_template, monkeypatch, data, ("metric_summaries",))


def check(tmp_path_factory, template, monkeypatch, data, within):
    monkeypatch.setattr(html_report, "get_plotlyjs", str)
    metrics = json.loads(template)
    part = metrics
    for step in within:
        part = part[step]
    paths = [(*within, *path) for path in paths_of(part) if path]
    *above, key = data.draw(st.sampled_from(sorted(paths, key=str)))
    here = metrics
    for step in above:
        here = here[step]
    here[key] = data.draw(values)
    root = tmp_path_factory.mktemp("runs")
    for name, text in (("good", template), ("odd", json.dumps(metrics))):
        (root / name).mkdir()
        (root / name / "metrics.json").write_text(text)
    comparison = None
    with suppress(PEFTCLError):  # both are one method and one seed
        comparison = compare_runs([root], force=True, published=True)
    if comparison is None:
        comparison = compare_runs([root / "odd"], force=True, published=True)
        assert len(comparison.runs) == 1
    else:
        left = comparison.unreadable + comparison.incomplete
        assert len(comparison.runs) + len(left) == 2
    for write in WRITERS.values():
        assert write(comparison).encode()
