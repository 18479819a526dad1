"""Wrong matches of old images, and matching, against counts by hand."""

import json

import numpy as np
import pytest
import torch
from pictures import NAMES, Kept, benchmark, seen, strategy, told
from sklearn.metrics import roc_auc_score

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation import wrong_matches_metrics
from avalanche_peftcl.testing import toy_backbone
from avalanche_peftcl.testing.probes import differing, weights
from avalanche_peftcl.testing.resuming import carried_over
from avalanche_peftcl.training.joint import build_joint

LISTS = ("rate", "auc", "frozen_rate", "frozen_auc")


def run(metric, stream, **options):
    method = strategy(metric, **options)
    for experience in stream.train_stream:
        method.train(experience)
    return metric.summary()


def by_hand(embed, tested, names, since, texts):
    """Return rate and area for the images of one experience that came ``since``."""
    rows = [tested.dataset.eval()[i] for i in range(len(tested.dataset))]
    z = seen(embed, torch.stack([row[0] for row in rows]))
    scores = z @ texts.T
    wrong = [since[names[i]] > tested.current_experience for i in scores.argmax(axis=1)]
    pairs = [
        (names[j] == NAMES[row[1]], scores[i, j])
        for i, row in enumerate(rows)
        for j in range(len(names))
    ]
    return np.mean(wrong), roc_auc_score(*zip(*pairs, strict=True))


def test_numbers_are_those_of_the_network_at_each_time():
    metric = wrong_matches_metrics(templates=["a {}.", "{}"], chunk_size=4)
    kept = Kept()
    method, stream = strategy(metric, loggers=[kept]), benchmark()
    backbone = method.network.backbone
    since = {name: i // 2 for i, name in enumerate(NAMES)}
    found = {name: [] for name in LISTS}
    for number, experience in enumerate(stream.train_stream):
        method.train(experience)
        names = NAMES[: 2 * (number + 1)]
        texts = backbone.encode_text(names, ["a {}.", "{}"]).double().numpy()
        for prefix, embed in (("", method.network.eval().embed), ("frozen_", backbone)):
            pairs = [
                by_hand(embed, stream.test_stream[i], names, since, texts) for i in range(number)
            ]
            found[f"{prefix}rate"].append([rate for rate, _ in pairs])
            found[f"{prefix}auc"].append([auc for _, auc in pairs])
    summary, heard = metric.summary(), told(kept)
    assert summary["experiences"] == [0, 1, 2]
    for name in LISTS:
        for row, expected in zip(summary[name], found[name], strict=True):
            assert row == pytest.approx(expected, abs=1e-9), name
    assert summary["rate"] != summary["frozen_rate"]
    assert heard == {
        "Wrong_Match_Rate": [np.mean(row) for row in summary["rate"][1:]],
        "Matching_AUC": [np.mean(row) for row in summary["auc"][1:]],
    }
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


@pytest.mark.parametrize("scenario", ["class", "online", "task"])
def test_a_run_is_the_same_to_the_bit_with_it_and_without(scenario):
    ends = []
    for metrics in ([], [wrong_matches_metrics()]):
        method = strategy(*metrics)
        for experience in benchmark(scenario).train_stream:
            method.train(experience)
        ends.append(weights(method.model) | {"random": torch.get_rng_state()})
        assert method.network.branch.training
    assert not differing(*ends)
    assert [len(row) for row in metrics[0].summary()["rate"]] == [0, 1, 2]


def test_no_text_is_later_where_classes_come_again():
    kept = Kept()
    found = run(wrong_matches_metrics(), benchmark("domain"), loggers=[kept])
    assert found["rate"] == [[], [None], [None, None]]
    assert all(0 <= value <= 1 for row in found["auc"] for value in row)
    assert told(kept).keys() == {"Matching_AUC"}


def test_a_class_that_is_called_as_an_earlier_one_is_no_later_one():
    words = dict.fromkeys(NAMES, "thing")
    found = run(wrong_matches_metrics(class_words=words), benchmark())
    assert found["rate"] == [[], [None], [None, None]]
    assert found["auc"] == [[], [None], [None, None]]
    words = {name: str(i % 3) for i, name in enumerate(NAMES)}  # the third experience: as before
    found = run(wrong_matches_metrics(class_words=words), benchmark())
    assert found["rate"][2][1] is None
    assert found["rate"][2][0] is not None


def test_images_of_each_experience_are_a_seeded_choice():
    metric = wrong_matches_metrics(images_per_experience=2)
    found = run(metric, benchmark())
    assert all(value in (0, 0.5, 1) for row in found["rate"] for value in row)
    assert found == run(wrong_matches_metrics(images_per_experience=2), benchmark())
    assert {len(z) for z in metric._frozen.values()} == {2}


def test_images_of_classes_that_were_not_trained_are_left_out():
    metric, stream = wrong_matches_metrics(), benchmark()
    method = strategy(metric)
    method.train(stream.train_stream[0])
    del metric._since[1]  # as if it had been tested on only
    method.train(stream.train_stream[1])
    assert len(metric._frozen[0]) == 8 == len(stream.test_stream[0].dataset) / 2
    metric._since = {2: 1, 3: 1}
    method.train(stream.train_stream[2])
    assert metric.summary()["rate"][2][0] is None


def test_a_run_that_goes_on_has_the_same_numbers():
    stream = benchmark()
    whole = run(wrong_matches_metrics(), stream)

    def build():
        return strategy(wrong_matches_metrics())

    old = build()
    old.train(stream.train_stream[0], eval_streams=[])
    new = carried_over(old, build, stream)
    for experience in list(stream.train_stream)[1:]:
        new.train(experience, eval_streams=[])
    assert new.evaluator.metrics[0].summary() == whole


def test_joint_training_has_no_earlier_experience():
    metric = wrong_matches_metrics()
    method = strategy(metric)
    joint = build_joint(
        backbone=method.network.backbone, train_epochs=1, evaluator=method.evaluator
    )
    joint.train(list(benchmark().train_stream))
    assert metric.summary() == {"experiences": [], **{name: [] for name in LISTS}}


def test_what_cannot_be_measured_is_refused_before_anything_trains():
    def refused(stream=None, backbone=None, **options):
        method = strategy(wrong_matches_metrics(**options), backbone=backbone)
        with pytest.raises(ConfigError) as caught:
            method.train((stream or benchmark()).train_stream[0])
        assert "\n" not in str(caught.value)
        assert method.clock.train_iterations == 0
        return str(caught.value)

    assert refused(backbone=toy_backbone()).startswith(
        "metric 'wrong_matches' compares images with texts, and a ViTBackbone has no text side"
    )
    nameless = benchmark()
    del nameless.class_names
    assert refused(nameless).startswith(
        "metric 'wrong_matches' needs the names of classes, and the benchmark does not tell them"
    )
    assert refused(class_words={"cat": "tabby"}).startswith(
        "class_words has no word for dog, gnu, owl and 2 more; give one for each class"
    )
    with pytest.raises(ConfigError, match="a template is a sentence"):
        wrong_matches_metrics(templates=["a photo"])
