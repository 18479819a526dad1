"""A run by class names: stopped and gone on with, exported, and predicting without texts."""

import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from avalanche_peftcl import Component
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.export.load import load
from avalanche_peftcl.export.predict import predict
from avalanche_peftcl.export.write import export_run
from avalanche_peftcl.models import create_dual_encoder
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.run import run
from tests.models.backbones.test_dual_encoder import WIDTH, open_clip, write

pytestmark = pytest.mark.skipif(open_clip is None, reason="open_clip_torch is not installed")
NAMES = ["n1_cat", "n2_dog", "n3_photo", "n4_a"]


@pytest.fixture
def made(tmp_path):
    """Return the settings of a run, and the options of its backbone."""
    options = write(tmp_path)[0]
    rng = np.random.default_rng(0)
    for part, label in [(part, name) for part in ("train", "test") for name in NAMES]:
        (tmp_path / "images" / part / label).mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / part / label / f"{i}.png")
    plain = {k: v if isinstance(v, int | str) else str(v) for k, v in options.items()}
    settings = {
        "output": tmp_path / "run",
        "backbone": {"name": "dual_encoder", "resize_mode": "squash"} | plain,
        "benchmark": {
            "name": "image_folder",
            "root": str(tmp_path / "images"),
            "n_experiences": 2,
            "augment": "none",
        },
        "head": {
            "name": "zero_shot",
            "class_words": {name: name[3:] for name in NAMES},
            "templates": ["a {}", "photo {}"],
        },
        "strategy": {"name": "closed_form", "mixed_precision": "no"},
    }
    return settings, options


def test_a_run_by_class_names_is_exported_and_predicts_without_a_text_side(
    made, tmp_path, monkeypatch
):
    settings, options = made
    report = run(RunConfig.model_validate(settings))
    assert report.record.not_exported is None
    for library in ("open_clip_torch", "transformers"):
        assert report.record.versions[library] == version(library)
    assert report.record.protocol.normalisation["resize_mode"] == "squash"
    backbone = create_dual_encoder(**options, resize_mode="squash")
    network = load(tmp_path / "run", backbone=backbone)
    words = [name[3:] for name in network.class_names]
    texts = backbone.encode_text(words, ["a {}", "photo {}"])
    rows = dict(network.named_buffers())["model.head.rows"]
    keys = dict(network.named_buffers())["model.classes.keys"][:, 1]
    assert torch.equal(rows, texts[keys])

    with pytest.raises(CheckpointError, match=r"are those of several files \(checkpoint, checkp"):
        load(tmp_path / "run", checkpoint=options["checkpoint"])
    file = tmp_path / "network.safetensors"
    export_run(tmp_path / "run", file, with_backbone=True, backbone=backbone)
    with safe_open(file, "pt") as held:
        assert not [name for name in held.keys() if "bert" in name or "text." in name]  # noqa: SIM118
    monkeypatch.setitem(sys.modules, "open_clip", None)
    alone, images = load(file), sorted((tmp_path / "images" / "test").rglob("*.png"))
    assert sorted(alone.class_names) == NAMES
    assert alone.input_config.resize_mode == "squash"
    told = [p.classes for p in predict(alone, images)]
    assert told == [p.classes for p in predict(network, images)]
    assert all(len(classes) == 1 and classes[0][0] in NAMES for classes in told)


def test_a_run_without_a_word_for_a_class_says_so_in_a_line(made):
    settings, _ = made
    settings["head"]["class_words"].pop("n2_dog")
    with pytest.raises(ConfigError) as caught:
        run(RunConfig.model_validate(settings))
    assert str(caught.value).startswith("class_words has no word for n2_dog; give one for each")
    assert "\n" not in str(caught.value)


def test_a_ridge_head_reads_the_embeddings_too(made, tmp_path):
    settings, options = made
    settings["head"] = {"name": "ridge"}
    settings["output"] = tmp_path / "ridge"
    assert run(RunConfig.model_validate(settings)).record.complete
    network = load(tmp_path / "ridge", backbone=create_dual_encoder(**options))
    assert network.model.head.in_features == WIDTH


def test_contexts_of_texts_are_trained_and_exported_as_what_they_made_of_classes(made, tmp_path):
    settings, options = made
    settings["module"] = {"name": "linear_adapter", "r": 2}
    settings["head"] = {
        "name": "text_context",
        "n_context": 2,
        "class_words": settings["head"]["class_words"],
    }
    settings["strategy"] = {
        "name": "pegp",
        "train_epochs": 2,
        "head_epochs": 0,
        "train_mb_size": 4,
        "mixed_precision": "no",
    }
    report = run(RunConfig.model_validate(settings))
    assert report.record.not_exported is None
    backbone = create_dual_encoder(**options, resize_mode="squash")
    network = load(tmp_path / "run", backbone=backbone)
    held = dict(network.named_buffers()) | dict(network.named_parameters())
    context, keys = held["model.head.context"], held["model.classes.keys"][:, 1].tolist()
    words = [network.class_names[c][3:] for c in keys]
    last = backbone.encode_context(context, words[2:])
    torch.testing.assert_close(held["model.head.rows"][2:], last, atol=1e-6, rtol=0)
    assert (held["model.head.rows"].norm(dim=1) - 1).abs().max() < 1e-5
    file, images = tmp_path / "network.safetensors", sorted(tmp_path.rglob("test/*/*.png"))
    export_run(tmp_path / "run", file, with_backbone=True, backbone=backbone)
    told = [p.classes for p in predict(load(file), images)]
    assert told == [p.classes for p in predict(network, images)]


class Stop(SupervisedPlugin, supports_distributed=False):
    """Interrupts a run when an iteration of this number begins."""

    at = None

    def __init__(self):
        super().__init__()
        self.begun = 0

    def before_training_iteration(self, strategy, **kwargs):
        self.begun += 1
        if self.begun == self.at:
            raise KeyboardInterrupt


TRAINED = {
    "text_context": ("pegp", {"head_epochs": 0, "merge_epochs": 0}),
    "zero_shot_ridge": ("naive", {}),
    "zero_shot": ("pegp", {"merge_epochs": 1}),
}
MODULES = {
    "lora": {"name": "lora", "r": 2, "tower": "both"},
    "prefix": {"name": "prefix", "length": 2, "tower": "both"},
}


@pytest.mark.parametrize(
    "head",
    [
        "text_context",
        pytest.param("lora", marks=pytest.mark.slow),
        pytest.param("prefix", marks=pytest.mark.slow),
        pytest.param("zero_shot_ridge", marks=pytest.mark.slow),
        pytest.param("zero_shot", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_within_an_experience_goes_on_to_the_bit(
    made, head, tmp_path, monkeypatch
):
    settings, options = made
    stop = Entry("strategy_plugin", Component("stop", Stop, source="t"), Provider("test", "1"))
    registry = Registry([*discover().entries(), stop])
    module = MODULES.get(head, {"name": "linear_adapter", "r": 2})
    head = "zero_shot" if head in MODULES else head
    strategy, more = TRAINED[head]
    words = {"class_words": settings["head"]["class_words"]}
    settings |= {
        "module": module,
        "head": {"name": head} | words | ({"n_context": 2} if head == "text_context" else {}),
        "strategy": {
            "name": strategy,
            "train_epochs": 2,
            "train_mb_size": 2,
            "mixed_precision": "no",
        }
        | more,
        "plugins": [{"name": "stop"}],
        "checkpoint_every": 1,
    }
    whole, parts = (
        RunConfig.model_validate(settings | {"output": tmp_path / name})
        for name in ("whole", "parts")
    )
    there = run(whole, registry=registry).record
    monkeypatch.setattr(Stop, "at", 7)  # in the second experience of four iterations
    with pytest.raises(KeyboardInterrupt):
        run(parts, registry=registry)
    monkeypatch.setattr(Stop, "at", None)
    gone_on = run(parts, registry=registry, resume=True).record
    assert len(gone_on.resumed_at) == 1
    assert gone_on.accuracy_matrix == there.accuracy_matrix
    kept = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert kept[0].keys() == kept[1].keys()
    assert not [name for name in kept[0] if not torch.equal(kept[0][name], kept[1][name])]
    backbone = create_dual_encoder(**options, resize_mode="squash")
    network, images = (
        load(tmp_path / "parts", backbone=backbone),
        sorted(tmp_path.rglob("test/*/*")),
    )
    assert sorted(network.class_names) == NAMES
    told = [each.classes for each in predict(network, images)]
    assert told == [
        each.classes for each in predict(load(tmp_path / "whole", backbone=backbone), images)
    ]


@pytest.mark.parametrize(
    "module",
    ["adapter", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "prefix"))],
)
def test_a_text_tower_that_was_trained_stays_behind(made, tmp_path, module):
    """What became of the texts is in the file, and nothing that made it."""
    settings, options = made
    settings["module"] = {"name": module, "tower": "text"}
    settings["module"] |= {"length": 2} if module == "prefix" else {"r": 2}
    settings["strategy"] = {
        "name": "naive",
        "train_epochs": 2,
        "lr": 0.5,
        "train_mb_size": 4,
        "mixed_precision": "no",
    }
    settings["plugins"] = [{"name": "gradient_projection"}]
    assert run(RunConfig.model_validate(settings)).record.not_exported is None
    backbone = create_dual_encoder(**options, resize_mode="squash")
    network = load(tmp_path / "run", backbone=backbone)
    held = dict(network.named_buffers())
    words = [network.class_names[c][3:] for c in held["model.classes.keys"][:, 1].tolist()]
    frozen = backbone.encode_text(words, ["a {}", "photo {}"])
    assert (held["model.head.rows"] - frozen).abs().max() > 1e-6
    file, images = tmp_path / "network.safetensors", sorted(tmp_path.rglob("test/*/*.png"))
    export_run(tmp_path / "run", file, with_backbone=True, backbone=backbone)
    with safe_open(file, "pt") as kept:
        learnt = [k for k in kept.keys() if k.startswith("model.")]  # noqa: SIM118
    assert sorted(learnt) == [
        "model.classes._extra_state",
        "model.classes.keys",
        "model.head.rows",
        "model.head.scale",
    ]
    told = [p.classes for p in predict(load(file), images)]
    assert told == [p.classes for p in predict(network, images)]
