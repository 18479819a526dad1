"""Retrieval between images and captions beside a stream, against a slow search by hand."""

import json

import numpy as np
import pytest
from pictures import Kept, benchmark, captioned, pixels, seen, strategy, told

from avalanche_peftcl.errors import PEFTCLError
from avalanche_peftcl.evaluation import retrieval, retrieval_metrics
from avalanche_peftcl.testing.probes import differing, weights

TIMES = ("day", "night", "dusk")
CAPTIONS = {
    f"{i:02}.png": [
        f"scene {chr(97 + i)} by {word}" for word in ("day", "night", "sea")[: 1 + i % 3]
    ]
    for i in range(12)
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("captioned")
    captioned(root, CAPTIONS)
    return root


def by_hand(images, texts, owners):
    """Return recall both ways, one query after the other, and the gap."""
    found = {}
    for way, queries, candidates, of_query, of_candidate in (
        ("image_to_text", images, texts, np.arange(len(images)), owners),
        ("text_to_image", texts, images, owners, np.arange(len(images))),
    ):
        places = []
        for query, image in zip(queries, of_query, strict=True):
            order = np.argsort(-(candidates @ query))
            places.append(int(np.flatnonzero(of_candidate[order] == image)[0]))
        for k in (1, 5, 10):
            found[f"{way}_r{k}"] = np.mean(np.array(places) < k)
    gap = np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0))
    return found | {"modality_gap": gap}


def test_numbers_are_those_of_the_network_at_each_time(place, monkeypatch):
    monkeypatch.setattr(retrieval, "_QUERIES", 5)
    metric = retrieval_metrics(root=place, captions=place / "captions.json", chunk_size=5)
    kept = Kept()
    method = strategy(metric, loggers=[kept])
    backbone = method.network.backbone
    texts = backbone.encode_text([t for each in CAPTIONS.values() for t in each]).double().numpy()
    owners = np.repeat(np.arange(12), [len(each) for each in CAPTIONS.values()])
    images = pixels([place / name for name in CAPTIONS])
    found = [by_hand(seen(backbone, images), texts, owners)]
    for experience in benchmark().train_stream:
        method.train(experience)
        found.append(by_hand(seen(method.network.eval().embed, images), texts, owners))
    summary, heard = metric.summary(), told(kept)
    assert (summary["images"], summary["captions"]) == (12, len(texts))
    for expected, value in zip(found, [summary["before"], *summary["after"]], strict=True):
        assert value == pytest.approx(expected, abs=1e-6)
    assert len({each["text_to_image_r5"] for each in found}) > 1
    assert heard.keys() == {name.title() for name in found[0]}
    assert heard["Image_To_Text_R5"] == [
        each["image_to_text_r5"] for each in (summary["before"], *summary["after"])
    ]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_a_run_is_the_same_to_the_bit_with_it_and_without(place):
    ends = []
    for metrics in ([], [retrieval_metrics(root=place, captions=place / "captions.json")]):
        method = strategy(*metrics)
        for experience in benchmark().train_stream:
            method.train(experience)
        ends.append(weights(method.model))
    assert not differing(*ends)


def test_recall_beyond_the_candidates_is_undefined(place):
    kept = Kept()
    metric = retrieval_metrics(root=place, captions=place / "captions.json", max_images=6)
    strategy(metric, loggers=[kept]).train(benchmark().train_stream[0])
    before = metric.summary()["before"]
    assert before["text_to_image_r10"] is None
    assert before["text_to_image_r5"] is not None
    assert before["image_to_text_r10"] is not None
    assert "Text_To_Image_R10" not in told(kept)


def test_a_choice_of_images_is_seeded_and_stays(place):
    def names(**options):
        found = retrieval_metrics(root=place, captions=place / "captions.json", **options).images
        assert [CAPTIONS[found.paths[i].name] for i in sorted(set(found.owners))] == [
            [t for t, o in zip(found.captions, found.owners, strict=True) if o == i]
            for i in sorted(set(found.owners))
        ]
        return [path.name for path in found.paths]

    assert names(max_images=4) == names(max_images=4) != names(max_images=4, seed=1)
    assert len(names(max_images=4)) == 4
    assert names(max_images=None) == list(CAPTIONS)


def test_one_caption_may_stand_alone_and_further_images_are_left_out(place, tmp_path):
    path = tmp_path / "few.json"
    path.write_text(json.dumps({"00.png": "night", "01.png": ["fog", "a grey day"]}))
    found = retrieval_metrics(root=place, captions=path).images
    assert found.captions == ("night", "fog", "a grey day")
    assert found.owners == (0, 1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no.json cannot be read: No such file or directory"),
        ("{", "cannot be read as JSON"),
        ("[]", "must hold captions of images: {file name: [caption, ...], ...}"),
        ('{"00.png": [], "01.png": "fog"}', "must hold captions of images"),
        ('{"00.png": [3], "01.png": "fog"}', "must hold captions of images"),
        ('{"00.png": " ", "01.png": "fog"}', "must hold captions of images"),
        (
            '{"a.png": "a", "b.png": "b", "c.png": "c", "d.png": "d"}',
            "has no image a.png, b.png, c.png and 1 more, of which ",
        ),
        ('{"00.png": "night"}', "has 1 images, and two are needed at least"),
    ],
)
def test_bad_input_is_told_in_a_line(place, tmp_path, text, message):
    path = tmp_path / "no.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PEFTCLError) as caught:
        retrieval_metrics(root=place, captions=path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_told(tmp_path, place):
    with pytest.raises(PEFTCLError, match=r"there is no folder .*gone, where the images of "):
        retrieval_metrics(root=tmp_path / "gone", captions=place / "captions.json")
