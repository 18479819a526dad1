"""A stranger's metric: the empirical tangent kernel, in a package of its own, public names only."""

import json
import re
import sys
from textwrap import dedent

import pytest
import torch
from typer.testing import CliRunner

import avalanche_peftcl
from avalanche_peftcl.benchmarks import digits
from avalanche_peftcl.cli import app
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.models import vit_glyph
from avalanche_peftcl.registry import discover
from tests.test_public_names import private

METRIC = '''
    """The tangent kernel K = J J^T of a few images; a row of J is the gradient of its own logit."""

    import torch
    from avalanche.evaluation import PluginMetric
    from avalanche.evaluation.metric_results import MetricValue

    from avalanche_peftcl import Component, hookimpl


    class TangentKernel(PluginMetric):
        """Trace, effective rank, alignment to the classes and drift, on the first images seen."""

        remembers = ("probe", "kernel", "values")

        def __init__(self, n_images: int = 6):
            super().__init__()
            self.n_images, self.probe, self.kernel, self.values = n_images, None, None, {}

        def after_training_exp(self, strategy):
            if self.probe is None:
                data = strategy.experience.dataset.eval()
                step = len(data) // self.n_images
                images, *labels = zip(*(data[i * step] for i in range(self.n_images)), strict=True)
                self.probe = [torch.stack(images), *map(torch.tensor, labels)]
            before, self.kernel = self.kernel, self.kernel_of(strategy.network.eval())
            k, y = self.kernel, self.probe[1]
            alike = (y[:, None] == y).double()
            moved = 0.0 if before is None else (k - before).norm() / before.norm()
            self.values = {
                "trace": k.trace(),
                "effective_rank": k.trace() ** 2 / k.square().sum(),
                "alignment": (k * alike).sum() / (k.norm() * alike.norm()),
                "drift": moved,
            }
            step = strategy.clock.train_iterations
            return [MetricValue(self, f"NTK/{n}", float(v), step) for n, v in self.values.items()]

        def kernel_of(self, network):
            trained = [p for p in network.parameters() if p.requires_grad]
            images, targets, tasks = self.probe
            own = network(images, tasks).gather(1, targets[:, None])[:, 0]
            again, rows = {"retain_graph": True, "materialize_grads": True}, []
            for logit in own:
                gradients = torch.autograd.grad(logit, trained, **again)
                rows.append(torch.cat([g.flatten() for g in gradients]))
            jacobian = torch.stack(rows).double()
            return jacobian @ jacobian.T

        def result(self):
            return self.values

        def reset(self):
            self.values = {}


    class Stopped(BaseException):
        """What stops a run here; nobody catches it."""


    class Stop(PluginMetric):
        remembers = ()
        at = None

        def before_training_exp(self, strategy):
            if self.at == strategy.experience.current_experience:
                raise Stopped

        def result(self):
            return None

        def reset(self):
            pass


    @hookimpl
    def peftcl_metrics():
        yield Component("tangent_kernel", TangentKernel, source="Jacot et al., arXiv 1806.07572")
        yield Component("stop", Stop, source="test")
'''
NAMES = ["NTK/alignment", "NTK/drift", "NTK/effective_rank", "NTK/trace"]


@pytest.fixture
def guest(tmp_path, monkeypatch):
    """The stranger's package, installed; returns a way to its module."""
    folder = tmp_path / "installed"
    info = folder / "guest_metrics-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "guest_metrics.py").write_text(dedent(METRIC), encoding="utf-8")
    metadata = "Metadata-Version: 2.1\nName: guest-metrics\nVersion: 1.0\n"
    (info / "METADATA").write_text(metadata, encoding="utf-8")
    points = "[avalanche_peftcl]\nguest = guest_metrics\n"
    (info / "entry_points.txt").write_text(points, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    discover()
    yield sys.modules["guest_metrics"]
    del sys.modules["guest_metrics"]


def config(output, **changes):
    settings = {
        "output": output,
        "backbone": "vit_glyph",
        "module": "frozen",
        "benchmark": {"name": "digits", "n_experiences": 5, "train_per_class": 6},
        "strategy": {"name": "naive", "lr": 0.05, "train_epochs": 1, "mixed_precision": "no"},
        "metrics": ["tangent_kernel", "stop"],
    }
    return RunConfig.model_validate(settings | changes)


def further_metrics(folder):
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["further_metrics"]


def test_it_is_short_and_uses_public_names():
    source = dedent(METRIC)
    own = source[: source.index("class Stopped")]
    assert sum(bool(line.strip()) for line in own.splitlines()) <= 50
    assert private(source) == []
    assert not re.search(r"\._(?!_)", source)  # nor does it reach into anything


def test_of_a_linear_head_on_frozen_features_it_is_their_inner_products(tmp_path, guest):
    asked = config(tmp_path / "run")
    avalanche_peftcl.run(asked)
    further = further_metrics(asked.output)
    assert sorted(further) == NAMES
    backbone = vit_glyph()
    benchmark = digits(input_config=backbone.input_config, seed=0, **asked.benchmark.options)
    data = benchmark.train_stream[0].dataset.eval()
    images, labels, _ = zip(*(data[i * (len(data) // 6)] for i in range(6)), strict=True)
    z, y = backbone(torch.stack(images)).double(), torch.tensor(labels)
    alike = (y[:, None] == y).double()
    kernel = (z @ z.T + 1) * alike
    eigenvalues = torch.linalg.eigvalsh(kernel)
    expected = {
        "NTK/trace": eigenvalues.sum(),
        "NTK/effective_rank": eigenvalues.sum() ** 2 / eigenvalues.square().sum(),
        "NTK/alignment": kernel.sum() / eigenvalues.norm() / alike.sum().sqrt(),
        "NTK/drift": 0.0,
    }
    for name, value in expected.items():
        assert further[name] == pytest.approx([float(value)] * 5, rel=1e-4, abs=1e-9)


ADAPTERS = {"module": {"name": "adapter", "r": 4}}


def test_it_shows_in_summary_and_comparison_and_changes_nothing(tmp_path, guest):
    watched = config(tmp_path / "watched", **ADAPTERS)
    alone = config(tmp_path / "alone", **ADAPTERS, metrics=[])
    other = config(tmp_path / "other")
    for run in (watched, alone, other):
        avalanche_peftcl.run(run)
    drift = further_metrics(watched.output)["NTK/drift"]
    assert drift[0] == 0
    assert min(drift[1:]) > 0
    matrices = [(run.output / "accuracy_matrix.csv").read_bytes() for run in (watched, alone)]
    assert matrices[0] == matrices[1]
    summary = (watched.output / "summary.md").read_text(encoding="utf-8")
    assert all(name in summary for name in NAMES)
    folders = [str(watched.output), str(other.output)]
    result = CliRunner().invoke(app, ["compare", *folders, "--html", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(name in page for name in NAMES)


@pytest.mark.slow
def test_a_run_that_it_watches_goes_on(tmp_path, guest, monkeypatch):
    whole, halves = (config(tmp_path / name, **ADAPTERS) for name in ("whole", "halves"))
    avalanche_peftcl.run(whole)
    monkeypatch.setattr(guest.Stop, "at", 2)
    with pytest.raises(guest.Stopped):
        avalanche_peftcl.run(halves)
    assert len(further_metrics(halves.output)["NTK/trace"]) == 2
    monkeypatch.setattr(guest.Stop, "at", None)
    result = CliRunner().invoke(app, ["run", "--resume", str(halves.output)])
    assert result.exit_code == 0, result.stderr
    assert further_metrics(halves.output) == further_metrics(whole.output)
