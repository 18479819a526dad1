"""A run on captioned images: what its record says, and that it goes on where it was stopped."""

import json

import numpy as np
import pytest
from PIL import Image

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import ConfigError, ConfigWarning
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.training import Contrastive
from tests.models.backbones.test_dual_encoder import open_clip, write

pytestmark = [
    pytest.mark.skipif(open_clip is None, reason="open_clip_torch is not installed"),
    pytest.mark.filterwarnings("ignore::avalanche_peftcl.errors.ConfigWarning"),
]


@pytest.fixture
def settings(tmp_path):
    options, rng = write(tmp_path)[0], np.random.default_rng(0)
    for part, count in (("train", 9), ("test", 5)):
        (tmp_path / "images" / part).mkdir(parents=True)
        told = {}
        for i in range(count):
            pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / part / f"{i}.jpg")
            told[f"{i}.jpg"] = [("a cat", "a dog")[i % 2] + " photo" * i, "a photo"]
        told[f"{count - 1}.jpg"] = ["a photo"]
        (tmp_path / "images" / f"{part}.json").write_text(json.dumps(told))
    plain = {k: v if isinstance(v, int | str) else str(v) for k, v in options.items()}
    return {
        "output": tmp_path / "run",
        "backbone": {"name": "dual_encoder"} | plain,
        "benchmark": {
            "name": "image_text",
            "root": str(tmp_path / "images"),
            "topics": {"cats": ["cat"], "dogs": ["dog"]},
        },
        "strategy": {
            "name": "contrastive",
            "train_epochs": 2,
            "train_mb_size": 2,
            "lr": 0.01,
            "mixed_precision": "no",
        },
        "plugins": [{"name": "gradient_projection", "threshold": 0.5}],
        "evaluate": "all",
    }


def test_what_the_record_says(settings):
    with pytest.warns(ConfigWarning, match="1 of 9 for training and 1 of 5 for test have no word"):
        record = run(RunConfig.model_validate(settings)).record
    protocol = record.protocol
    assert protocol.left_out == {"train": 1, "test": 1}
    assert (protocol.scenario, protocol.domains) == ("task", ["cats", "dogs"])
    assert protocol.task_label_at_test
    told = [(e.classes, e.class_names, e.train_images) for e in protocol.experiences]
    assert told == [([0], ["cats"], 4), ([1], ["dogs"], 4)]
    assert record.test_images == [2, 2]
    assert all(value is not None for value in record.baseline)
    summary = record.plugins["TextRetrievalPlugin"]
    assert len(summary["text_to_image"]) == 2
    assert summary["average"] is not None
    assert record.resume_obstacles == []
    assert record.complete


def test_metrics_of_the_joint_space_read_what_it_trains(settings, tmp_path):
    images, metric = tmp_path / "images", {"name": "retrieval"}
    metric |= {"root": str(images / "test"), "captions": str(images / "test.json")}
    told = run(RunConfig.model_validate(settings | {"metrics": [metric]})).record
    summary = told.metric_summaries["RetrievalMetric"]
    gaps = [each["modality_gap"] for each in (summary["before"], *summary["after"])]
    assert len(set(gaps)) == 3  # the frozen network's, and that of adapters that trained twice


@pytest.mark.slow
def test_goes_on_where_it_was_stopped(settings, tmp_path, monkeypatch):
    whole = run(RunConfig.model_validate(settings | {"output": tmp_path / "whole"})).record
    draw = Contrastive._draw

    def stopped(strategy):
        if strategy.experience.current_experience == 1:
            raise KeyboardInterrupt
        return draw(strategy)

    config = RunConfig.model_validate(settings)
    with monkeypatch.context() as patched:
        patched.setattr(Contrastive, "_draw", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    record = run(config, resume=True).record
    assert record.resumed_at
    assert list(record.accuracy_matrix) == list(whole.accuracy_matrix)
    assert record.plugins == whole.plugins
    assert record.complete


def test_a_strategy_that_classifies_is_refused_in_a_line(settings):
    settings |= {
        "strategy": {"name": "naive", "train_epochs": 1},
        "plugins": [],
        "evaluate": "seen",
    }
    with pytest.raises(ConfigError) as caught:
        run(RunConfig.model_validate(settings))
    assert str(caught.value) == (
        "the stream is of captioned images and has no classes; take the strategy 'contrastive', "
        "or a benchmark of classes"
    )


def test_floors_are_refused_before_anything_runs(settings, tmp_path):
    with pytest.raises(ConfigError, match="floors classify, and benchmark 'image_text' has no cla"):
        run(RunConfig.model_validate(settings), floors=True)
    assert not (tmp_path / "run").exists()
