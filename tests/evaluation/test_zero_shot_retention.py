"""Zero-shot accuracy beside a stream: what is measured, of which images, and that nothing moves."""

import json

import numpy as np
import pytest
import torch
from pictures import (
    Kept,
    benchmark,
    folders,
    picture,
    pixels,
    seen,
    strategy,
    told,
)
from sklearn.metrics import accuracy_score

from avalanche_peftcl.errors import ConfigError, NotFiniteError, PEFTCLError
from avalanche_peftcl.evaluation import CostMetric, zero_shot_retention_metrics
from avalanche_peftcl.models import FrozenBranch
from avalanche_peftcl.testing import toy_backbone, toy_image_text
from avalanche_peftcl.testing.probes import differing, weights
from avalanche_peftcl.training.ntk_cl import build_ntk_cl

CLASSES = ["polar bear", "sun", "sea", "tree"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    folders(root / "one", ["polar_bear", "sun", "sea", "tree"])
    folders(root / "two", ["n01", "n02"], test="")
    return root


def by_hand(embed, paths, labels, texts):
    scores = seen(embed, pixels(paths)) @ texts.double().numpy().T
    return accuracy_score(labels, scores.argmax(axis=1))


def test_accuracies_are_those_of_the_network_at_each_time(places):
    metric = zero_shot_retention_metrics(
        root={"one": places / "one", "two": places / "two"},
        templates=["a {}.", "the {}"],
        chunk_size=3,
    )
    kept = Kept()
    method = strategy(metric, loggers=[kept])
    files = {
        name: sorted((places / name).rglob("*.png"), key=lambda p: (p.parent.name, p.name))
        for name in ("one", "two")
    }
    words = {"one": ["polar bear", "sea", "sun", "tree"], "two": ["n01", "n02"]}
    labels = {
        n: [sorted({p.parent.name for p in f}).index(p.parent.name) for p in f]
        for n, f in files.items()
    }
    backbone = method.network.backbone
    texts = {n: backbone.encode_text(w, ["a {}.", "the {}"]) for n, w in words.items()}

    def expected(embed):
        return {n: by_hand(embed, files[n], labels[n], texts[n]) for n in files}

    found = [expected(backbone)]
    for experience in benchmark().train_stream:
        method.train(experience)
        found.append(expected(method.network.eval().embed))
    heard, summary = told(kept), metric.summary()
    for name in files:
        values = [each[name] for each in found]
        assert heard[f"Zero_Shot_Accuracy/{name}"] == pytest.approx(values, abs=1e-12)
        one = summary["sets"][name]
        assert [one["before"], *one["after"]] == heard[f"Zero_Shot_Accuracy/{name}"]
        assert (one["images"], one["classes"]) == (len(files[name]), len(words[name]))
    assert found[0] != found[1] != found[2]
    change = [np.mean([each[n] - found[0][n] for n in files]) for each in found[1:]]
    assert heard["Zero_Shot_Change"] == pytest.approx(change, abs=1e-12)
    assert summary["change"] == heard["Zero_Shot_Change"]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def ends(*metrics, scenario="class"):
    """Return where a run ends, with dropout in its modules: weights, generators, modes, terms."""
    method = strategy(*metrics)
    for experience in benchmark(scenario).train_stream:
        method.train(experience)
    state = weights(method.model) | {"random": torch.get_rng_state()}
    state |= {"numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64))}
    assert method.network.training
    assert method.network.branch.training
    assert not method.network.branch.terms
    return state


@pytest.mark.parametrize("scenario", ["class", "online"])
def test_a_run_is_the_same_to_the_bit_with_it_and_without(places, scenario):
    metric = zero_shot_retention_metrics(root=places / "one")
    assert not differing(ends(scenario=scenario), ends(metric, scenario=scenario))
    assert len(metric.summary()["change"]) == 3  # of an online stream once an experience


def test_images_come_in_batches_and_texts_are_encoded_once(places, monkeypatch):
    backbone = toy_image_text()
    sizes, encoded = [], []
    embed, encode = backbone.embed, backbone.text.module.forward

    def counted(images):
        sizes.append(len(images))
        return embed(images)

    def counts(tokens):
        encoded.append(len(tokens))
        return encode(tokens)

    monkeypatch.setattr(backbone.text.module, "forward", counts)
    metric = zero_shot_retention_metrics(root=places / "one", chunk_size=3)
    method = strategy(metric, backbone=backbone, train_mb_size=2)
    monkeypatch.setattr(backbone, "embed", counted)
    method.train(benchmark().train_stream[0])
    method.train(benchmark().train_stream[1])
    assert max(sizes) == 3
    assert sum(size == 3 for size in sizes) == 3 * 6  # of 20 images, before and twice after
    assert encoded == [8] * 3  # four words, of three lengths


def test_what_nothing_changes_is_measured_once(places, monkeypatch):
    backbone, metric = toy_image_text(), zero_shot_retention_metrics(root=places / "one")
    method = strategy(metric, backbone=backbone, module=FrozenBranch(), train_epochs=1)
    passes = []
    measure = metric.measure
    monkeypatch.setattr(metric, "measure", lambda *a, **k: passes.append(1) or measure(*a, **k))
    stream = benchmark().train_stream
    for experience in stream[:2]:
        method.train(experience)
    summary = metric.summary()
    assert len(passes) == 1
    assert summary["sets"]["one"]["after"] == [summary["sets"]["one"]["before"]] * 2
    with torch.no_grad():
        next(iter(backbone.parameters())).mul_(-1)
    method.train(stream[2])
    assert len(passes) == 2


def test_a_choice_of_images_is_seeded_and_stays(places):
    def names(**options):
        (some,) = zero_shot_retention_metrics(root=places / "one", **options).sets.values()
        return [(path.parent.name, path.name) for path in some.paths]

    few = names(images_per_class=2)
    assert few == names(images_per_class=2) != names(images_per_class=2, seed=2)
    assert [folder for folder, _ in few] == [f for f in sorted(set(dict(few))) for _ in range(2)]
    assert set(few) < set(names(images_per_class=None)) == set(names(images_per_class=99))


@pytest.mark.parametrize("nested", [True, False])
def test_words_come_from_a_map_or_a_file_of_one_or_several(places, tmp_path, nested):
    words = {"n01": "king", "n02": "queen", "n03": "not there"}
    path = tmp_path / "words.json"
    path.write_text(json.dumps({"two": words, "other": {}} if nested else words))
    for given in (path, words):
        metric = zero_shot_retention_metrics(root={"two": places / "two"}, class_words=given)
        assert metric.sets["two"].words == ("king", "queen")


def test_a_single_folder_is_called_by_its_name_and_alike_classes_are_one(places, monkeypatch):
    monkeypatch.chdir(places / "one")
    words = {"polar_bear": "bear", "sun": "star", "sea": "sea", "tree": "star"}
    metric = zero_shot_retention_metrics(root=type(places)("."), class_words=words)
    assert metric.sets.keys() == {"one"}
    assert metric.sets["one"].words == ("bear", "sea", "star")
    assert set(metric.sets["one"].labels) == {0, 1, 2}


def test_a_cost_metric_counts_it_as_evaluation(places):
    cost = CostMetric()
    strategy(cost, zero_shot_retention_metrics(root=places / "one")).train(
        benchmark().train_stream[0], eval_streams=[]
    )
    assert sum(cost.summary()["evaluation_seconds"]) > 0


def test_what_cannot_be_measured_is_refused_before_anything_trains(places):
    metric = zero_shot_retention_metrics(root=places / "one")
    blind = strategy(metric, backbone=toy_backbone())
    with pytest.raises(ConfigError) as caught:
        blind.train(benchmark().train_stream[0])
    assert str(caught.value).startswith(
        "metric 'zero_shot_retention' compares images with texts, and a ViTBackbone has no text "
        "side; take a backbone that has one, such as 'open_clip' or 'dual_encoder'"
    )
    assert blind.clock.train_iterations == 0
    several = build_ntk_cl(backbone=toy_image_text(), evaluator=blind.evaluator, train_epochs=1)
    with pytest.raises(ConfigError, match="and a NTKCLModel has 4; take a strategy with one, such"):
        several.train(benchmark().train_stream[0])


def test_embeddings_that_are_no_numbers_are_no_result(places):
    method = strategy(zero_shot_retention_metrics(root=places / "one"))
    method.train(benchmark().train_stream[0])
    with torch.no_grad():
        next(iter(method.network.branch.parameters())).fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="embeddings of images that metric 'zero_shot_retent"):
        method.evaluator.metrics[0].after_training_exp(method)


def wrong(place, tmp_path):
    """Return bad options by what they are."""
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text('["cat"]')
    (tmp_path / "deep.json").write_text('{"two": {"n01": 3, "n02": "queen"}}')
    (tmp_path / "few" / "cat").mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    two = {"two": place / "two"}
    return {
        "no folder": ({"root": place / "three"}, "there is no folder "),
        "one class": ({"root": tmp_path / "few"}, "few has 1 folders of classes, and two are"),
        "no images": ({"root": tmp_path / "empty"}, "empty/cat has no images; add some or take"),
        "no file": (
            {"root": two, "class_words": tmp_path / "no.json"},
            "no.json cannot be read: No such file",
        ),
        "no JSON": ({"root": two, "class_words": tmp_path / "bad.json"}, "cannot be read as JSON"),
        "no map": ({"root": two, "class_words": tmp_path / "list.json"}, "must hold a word for"),
        "numbers": ({"root": two, "class_words": tmp_path / "deep.json"}, "'two' among them"),
        "no word": (
            {"root": two, "class_words": {"n02": "queen"}},
            "class_words has no word for n01 of ",
        ),
        "empty word": (
            {"root": two, "class_words": {"n01": " ", "n02": "queen"}},
            "class_words has an empty word for n01; give one",
        ),
        "no place": ({"root": two, "templates": ["a photo"]}, "a template is a sentence with {}"),
        "no set": ({"root": {}}, "metric 'zero_shot_retention' needs a set of images; give root"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "no folder",
        "one class",
        "no images",
        "no file",
        "no JSON",
        "no map",
        "numbers",
        "no word",
        "empty word",
        "no place",
        "no set",
    ],
)
def test_bad_input_is_told_in_a_line(places, tmp_path, case):
    options, message = wrong(places, tmp_path)[case]
    with pytest.raises(PEFTCLError) as caught:
        zero_shot_retention_metrics(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    folders(tmp_path, ["a", "b"], n=1)
    picture(tmp_path / "test" / "b" / "x.png", 3)
    (tmp_path / "test" / "b" / "x.png").write_text("no image")
    method = strategy(zero_shot_retention_metrics(root=tmp_path))
    with pytest.raises(PEFTCLError, match=r"x\.png cannot be decoded"):
        method.train(benchmark().train_stream[0])
