"""Metrics of images and texts in a run: in its record, and nothing else of it differs."""

from pathlib import Path

import pytest
from pictures import captioned, folders

from avalanche_peftcl import Component
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.evaluation import WrongMatchesMetric
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.testing import toy_image_text


def toy():
    return toy_image_text()


@pytest.fixture(scope="module")
def registry():
    entry = Entry("backbone", Component("toy", toy, source="test"), Provider("test-package", "1.2"))
    return Registry([*discover().entries(), entry])


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    root = tmp_path_factory.mktemp("beside")
    folders(root / "skies", ["night", "snow", "sea"])
    captions = captioned(root / "scenes", {f"{i}.png": f"scene {i}" for i in range(12)})
    return [
        {"name": "zero_shot_retention", "root": {"skies": str(root / "skies")}},
        {"name": "retrieval", "root": str(root / "scenes"), "captions": str(captions)},
        {"name": "wrong_matches", "images_per_experience": 10, "templates": ["digit {}"]},
    ]


def settings(output: Path, **changed) -> RunConfig:
    given = {
        "output": output,
        "num_threads": 1,
        "backbone": "toy",
        "module": {"name": "adapter", "r": 2},
        "benchmark": {"name": "digits", "classes_per_experience": [4, 3, 3], "train_per_class": 4},
        "strategy": {"name": "naive", "train_epochs": 1, "train_mb_size": 8, "lr": 0.1},
        "head": "zero_shot",
        "evaluate": "seen",
    }
    return RunConfig.model_validate(given | changed)


def test_the_record_has_the_numbers_and_nothing_else_differs(registry, metrics, tmp_path):
    whole = run(settings(tmp_path / "a", metrics=metrics), registry=registry).record
    plain = run(settings(tmp_path / "b"), registry=registry).record
    assert whole.accuracy_matrix == plain.accuracy_matrix
    assert whole.accuracy == plain.accuracy
    retention, retrieval, wrong = (
        whole.metric_summaries[name]
        for name in ("ZeroShotRetentionMetric", "RetrievalMetric", "WrongMatchesMetric")
    )
    found = whole.further_metrics
    assert len(found) == 2 + 7 + 2
    assert found["Zero_Shot_Accuracy/skies"] == list(retention["sets"]["skies"]["after"])
    assert found["Zero_Shot_Change"] == list(retention["change"])
    assert found["Modality_Gap"] == [each["modality_gap"] for each in retrieval["after"]]
    assert found["Wrong_Match_Rate"][0] is None
    assert found["Wrong_Match_Rate"][1] == wrong["rate"][1][0]
    assert [len(row) for row in wrong["frozen_auc"]] == [0, 1, 2]


@pytest.mark.slow
def test_a_run_that_is_gone_on_with_has_the_same_numbers(registry, metrics, tmp_path, monkeypatch):
    whole = run(settings(tmp_path / "a", metrics=metrics), registry=registry).record
    config = settings(tmp_path / "b", metrics=metrics)
    with monkeypatch.context() as patched:
        stops(patched, after=2)
        with pytest.raises(KeyboardInterrupt):
            run(config, registry=registry)
    again = run(config, registry=registry, resume=True).record
    for part in ("metric_summaries", "further_metrics", "accuracy_matrix"):
        assert getattr(again, part) == getattr(whole, part), part


def stops(patched, *, after):
    """Interrupt a run when an experience begins after so many."""
    begins, begun = WrongMatchesMetric.before_training_exp, []

    def before(self, strategy):
        if len(begun) == after:
            raise KeyboardInterrupt
        begun.append(1)
        return begins(self, strategy)

    patched.setattr(WrongMatchesMetric, "before_training_exp", before)
