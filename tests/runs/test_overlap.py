"""What of a stream's classes pre-training had labels for."""

import pytest
from timm.data import ImageNetInfo

from avalanche_peftcl.config import ComponentConfig
from avalanche_peftcl.runs.overlap import overlap_of, pretrained_on

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def timm_vit(model_name="deit_tiny_patch16_224", **options):
    return ComponentConfig(name="timm_vit", model_name=model_name, **options)


def test_names_are_held_against_all_names_of_all_labels():
    """By a search of its own through the words that timm ships."""
    found = overlap_of(timm_vit(checkpoint="file"), CIFAR10)
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
    found = overlap_of(timm_vit(pretrained=True), [name, name, "zzz"])
    assert (found.known, found.kinds, found.classes) == ([name], [], 2)


def test_what_nobody_knows_is_not_said():
    assert overlap_of(timm_vit(pretrained=True), ["0", "17"]) is None
    assert overlap_of(ComponentConfig(name="vit_glyph"), ["cat"]) is None
    assert overlap_of(timm_vit("vit_base_patch14_dinov2", pretrained=True), ["cat"]) is None
    assert overlap_of(timm_vit("local-dir:place", pretrained=True), ["cat"]) is None


def test_random_weights_know_nothing():
    found = overlap_of(timm_vit(), ["cat"])
    assert (found.pretrained_on, found.known, found.kinds) == ([], [], [])
    assert found.said() == "none: its weights are random"


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
    assert pretrained_on(name) == sets
