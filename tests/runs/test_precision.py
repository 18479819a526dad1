"""A run states the precision that auto came to, keeps it where it goes on, is compared by it."""

import json
import shutil

import pytest

from avalanche_peftcl.compare.alike import protocol_differences
from avalanche_peftcl.config import RunConfig, load_config
from avalanche_peftcl.errors import CheckpointError, PrecisionWarning
from avalanche_peftcl.registry import discover
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.sweeps.earlier import other_settings

NATIVE = "avalanche_peftcl.models.precision.native_bfloat16"


def config(folder, **strategy):
    return RunConfig(
        output=folder,
        backbone="vit_glyph",
        benchmark={"name": "digits", "n_experiences": 2, "train_per_class": 2},
        strategy={"name": "nearest_class_mean"} | strategy,
    )


@pytest.fixture
def native(monkeypatch):
    """Let the processor have units for bfloat16, or not."""

    def choose(there):
        monkeypatch.setattr(NATIVE, lambda device: there)

    return choose


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """One run on a processor with these units, and one without: their folders."""
    folders = {}
    for there in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(NATIVE, lambda device, there=there: there)
            folders[there] = tmp_path_factory.mktemp("run")
            run(config(folders[there]))
    return folders


@pytest.mark.parametrize(
    ("there", "precision", "words"), [(True, "bf16", "bf16 autocast"), (False, "no", "float32")]
)
def test_the_record_states_what_auto_came_to(recorded, there, precision, words):
    metrics = json.loads((recorded[there] / "metrics.json").read_text())
    assert metrics["config"]["strategy"]["mixed_precision"] == precision
    assert metrics["protocol"]["precision"] == words
    assert f"- precision: {words}" in (recorded[there] / "summary.md").read_text()
    again = load_config(recorded[there] / "config.yaml")
    assert again.strategy.options["mixed_precision"] == precision  # as it was, on any processor


def test_a_run_that_goes_on_keeps_its_precision(recorded, tmp_path, native):
    folder = tmp_path / "moved"
    shutil.copytree(recorded[True], folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"complete": False}))
    native(False)
    with pytest.raises(CheckpointError, match=r"strategy\.mixed_precision was 'bf16', is 'no'"):
        run(config(folder, mixed_precision="no"), resume=True)
    with pytest.warns(PrecisionWarning, match="no units for bfloat16"):
        assert run(config(folder), resume=True).metrics["protocol"]["precision"] == "bf16 autocast"


def test_a_sweep_keeps_finished_runs_of_another_processor(recorded, native):
    native(False)
    folder, registry = recorded[True], discover()
    record = read_record(folder)
    assert other_settings(record, config(folder), registry) == []
    (difference,) = other_settings(record, config(folder, mixed_precision="no"), registry)
    assert difference == "  strategy.mixed_precision: 'bf16' there, 'no' here"


def test_runs_of_two_precisions_are_not_compared_unasked(recorded):
    runs = [RunRecord(recorded[there], read_record(recorded[there])) for there in (True, False)]
    (difference,) = protocol_differences(runs)
    assert difference.key == "precision"
    assert [value for value, _ in difference.values] == ["bf16 autocast", "float32"]
