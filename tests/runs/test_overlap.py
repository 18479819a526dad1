"""What of a stream's classes pre-training had labels for."""

import pytest
import torch
from timm.data import ImageNetInfo

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import create_backbone, vit_glyph
from avalanche_peftcl.models.backbones.timm_names import label_sets
from avalanche_peftcl.runs.overlap import overlap_of

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


IN1K = ["imagenet-1k"]


def test_names_are_held_against_all_names_of_all_labels():
    """By a search of its own through the words that timm ships."""
    found = overlap_of(IN1K, CIFAR10)
    info = ImageNetInfo("imagenet-1k")
    names = [
        name.strip().lower()
        for synset in info.label_names()
        for name in info.label_name_to_description(synset).split(",")
    ]
    assert found.known == [c for c in CIFAR10 if c in names] == []
    kinds = [c for c in CIFAR10 if any(name.endswith(f" {c}") for name in names)]
    assert found.kinds == kinds
    assert {"cat", "dog", "frog", "truck"} <= set(kinds)
    assert (found.classes, found.pretrained_on) == (10, ["imagenet-1k"])


@pytest.mark.parametrize("name", ["goldfish", "Carassius_auratus", "n01443537", "GOLDFISH"])
def test_a_class_goes_by_any_of_its_names(name):
    found = overlap_of(IN1K, [name, name, "zzz"])
    assert (found.known, found.kinds, found.classes) == ([name], [], 2)


def test_what_nobody_knows_is_not_said():
    assert overlap_of(IN1K, ["0", "17"]) is None
    assert overlap_of(None, ["cat"]) is None
    assert vit_glyph().pretrained_on is None


def test_random_weights_know_nothing():
    small = {"img_size": 32, "depth": 1}
    backbone = create_backbone("deit_tiny_patch16_224", **small)
    found = overlap_of(backbone.pretrained_on, ["cat"])
    assert (found.pretrained_on, found.known, found.kinds) == ([], [], [])
    assert found.said() == "none: its weights are random"


def test_a_file_is_taken_for_timms_of_that_name(tmp_path):
    small = {"img_size": 32, "depth": 1}
    weights = create_backbone("deit_tiny_patch16_224", **small).vit.state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    file = {"checkpoint": tmp_path / "weights.pth"}
    assert create_backbone("deit_tiny_patch16_224", **file, **small).pretrained_on == tuple(IN1K)


def test_a_set_of_labels_that_nobody_knows_is_refused():
    with pytest.raises(ConfigError, match="pretrained_on names 'webli', of which no labels are"):
        overlap_of(["webli"], ["cat"])


@pytest.mark.parametrize(
    ("name", "sets"),
    [
        ("vit_base_patch16_224", ("imagenet-21k", "imagenet-1k")),
        ("vit_base_patch16_224.augreg_in21k", ("imagenet-21k",)),
        ("vit_base_patch16_clip_224.openai", ()),
        ("vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", ("imagenet-12k", "imagenet-1k")),
    ],
)
def test_the_name_of_weights_says_what_they_were_trained_on(name, sets):
    assert label_sets(name) == (sets or None)
