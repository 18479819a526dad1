"""A metric of an installed package: in the record, the summary and a comparison."""

import csv
import io
import json
import re
import statistics

import pytest

from avalanche_peftcl.compare import compare_runs
from avalanche_peftcl.compare.html_report import html_report
from avalanche_peftcl.compare.render import csv_table, latex_tables, markdown_tables
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.run import run

NAME = "Buffer_Norm/eval_phase/test_stream"
MODULE = """
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche_peftcl import Component, hookimpl

class BufferNorm(PluginMetric):
    def reset(self): pass
    def result(self): return None
    def after_eval(self, strategy):
        norm = sum(buffer.double().norm() for buffer in strategy.model.head.buffers())
        step = strategy.clock.train_exp_counter
        yield_ = [MetricValue(self, "Buffer_Norm/eval_phase/test_stream", norm, step)]
        if step == 2:
            yield_.append(MetricValue(self, "At_The_End/<b>", 2.0, step))
        return yield_ + [MetricValue(self, "Words", "not a number", step)]

@hookimpl
def peftcl_metrics():
    return [Component("buffer_norm", BufferNorm, source="test")]
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two methods under two seeds, watched by a metric of an installed package."""
    site = tmp_path / "site"
    info = site / "strange_metrics-1.2.dist-info"
    info.mkdir(parents=True)
    (site / "strange_metrics.py").write_text(MODULE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-metrics\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[avalanche_peftcl]\nstrange = strange_metrics\n")
    monkeypatch.syspath_prepend(site)
    for size in (16, 24):
        for seed in (0, 1):
            settings = {
                "output": tmp_path / "runs" / f"{size}_{seed}",
                "seed": seed,
                "backbone": {"name": "vit_glyph", "img_size": size},
                "benchmark": {"name": "digits", "n_experiences": 2, "train_per_class": 2},
                "strategy": {"name": "nearest_class_mean", "mixed_precision": "no"},
                "metrics": ["strange-metrics/buffer_norm"],
            }
            run(RunConfig.model_validate(settings))
    return tmp_path / "runs"


def test_its_values_are_kept_for_every_experience_and_compared_over_the_seeds(runs):
    records = {f.name: read_record(f) for f in runs.iterdir()}
    for name, record in records.items():
        values = record.further_metrics
        assert values.keys() == {NAME, "At_The_End/<b>"}
        first, last = values[NAME]
        assert 0 < first < last  # more class means
        assert values["At_The_End/<b>"] == [None, 2.0]
        assert json.loads((runs / name / "metrics.json").read_text())["further_metrics"] == values
        assert f"{first:.4g} | {last:.4g}" in (runs / name / "summary.md").read_text()
        (metric,) = (part for part in record.components if part.kind == "metric")
        assert (metric.provider, metric.version) == ("strange-metrics", "1.2")

    comparison = compare_runs([runs], force=True)  # the sizes of images differ
    table = markdown_tables(comparison).split("## Further metrics")[1].split("##")[0]
    (row,) = (line for line in table.splitlines() if "Buffer" in line)
    for size, cell in zip((16, 24), row.split("|")[2:4], strict=True):
        values = [records[f"{size}_{seed}"].further_metrics[NAME][-1] for seed in (0, 1)]
        mean, spread, _ = re.findall(r"\d+\.?\d*", cell)
        assert float(mean) == pytest.approx(statistics.mean(values), rel=1e-3)
        assert float(spread) == pytest.approx(statistics.stdev(values), rel=1e-3)
    rows = list(csv.DictReader(io.StringIO(csv_table(comparison))))
    (first, _) = (row for row in rows if row["quantity"] == NAME)
    assert (first["unit"], first["seeds"], first["count"]) == ("", "0 1", "2")
    assert r"Buffer\_Norm" in latex_tables(comparison)
    page = html_report(comparison)
    assert "<h2>Further metrics</h2>" in page
    assert "At_The_End/&lt;b&gt;" in page
    assert "At_The_End/<b>" not in page
