import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import ConfigError, DataError, ResourceError
from avalanche_peftcl.export.load import load
from avalanche_peftcl.export.predict import (
    Prediction,
    find_images,
    predict,
    predictions_csv,
    write_csv,
)
from avalanche_peftcl.runs.run import run

BACKBONE = {"name": "vit_glyph", "img_size": 16}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two digits as image files: ``{train,test}/{one,seven}/*.png``."""
    root, data = tmp_path_factory.mktemp("digits"), load_digits()
    pixels = np.round(data.images * (255 / 16)).astype(np.uint8)
    for name, digit in (("one", 1), ("seven", 7)):
        chosen = pixels[data.target == digit]
        for part, pictures in (("train", chosen[:4]), ("test", chosen[10:20])):
            (root / part / name).mkdir(parents=True)
            for i, picture in enumerate(pictures):
                Image.fromarray(picture).save(root / part / name / f"{i}.png")
    return root


def settings(output: Path, images: Path, **changed) -> RunConfig:
    benchmark = {"name": "image_folder", "root": str(images), "n_experiences": 2}
    return RunConfig.model_validate(
        {
            "output": output,
            "backbone": BACKBONE,
            "benchmark": benchmark | {"augment": "none"} | changed,
            "strategy": {"name": "nearest_class_mean"},
        }
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory, images):
    return run(settings(tmp_path_factory.mktemp("runs") / "ncm", images))


@pytest.fixture(scope="module")
def by_task(tmp_path_factory, images) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "task"
    return run(settings(folder, images, scenario="task")).folder


def peftcl(*words):
    return CliRunner().invoke(app, ["predict", *map(str, words)])


def test_predictions_of_the_test_images_give_the_accuracy_of_the_run(done, images):
    paths = find_images([images / "test"])
    told = list(predict(load(done.folder), paths))
    right = [p.classes[0][0] == p.path.parent.name for p in told]
    assert [p.path for p in told] == paths
    assert len(right) == 20
    assert sum(right) / 20 == done.metrics["accuracy"]["last_accuracy"]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_no_numbers_are_no_class(done, images, bad, monkeypatch):
    """The largest of not-a-number is the first class; the image after it has its own."""
    model = load(done.folder)
    embed = model.model.embed

    def overflow(pictures):
        features = embed(pictures)
        features[0] = bad
        return features

    monkeypatch.setattr(model.model, "embed", overflow)
    first, second = predict(model, find_images([images / "test" / "one"])[:2])
    assert first.classes == ()
    assert f"{first.path} has no prediction: the network's outputs are not" in first.error
    assert second.error is None


def test_scores_are_cosines_of_class_means_in_order(done, images):
    model = load(done.folder)
    paths = find_images([images / "test" / "one"])
    for prediction in predict(model, paths, top=5):
        with Image.open(prediction.path) as image:
            embedded = model.model.embed(model.transform(image)[None])
        means = model.model.head.prototypes[model.model.classes.keys[:, 1].argsort()]
        expected = torch.nn.functional.cosine_similarity(embedded, means)
        assert [name for name, _ in prediction.classes] == [
            model.class_names[c] for c in expected.argsort(descending=True)
        ]
        values = [p for _, p in prediction.classes]
        torch.testing.assert_close(torch.tensor(values), expected.sort(descending=True).values)
        assert len(values) == 2  # there are no more classes
        assert prediction.score_name == "similarity"
        assert str(prediction).startswith(f"1. {prediction.classes[0][0]} {values[0]:.3f}, 2. ")


def test_what_a_softmax_is_of_decides_what_is_told():
    path = Path("a.png")
    assert str(Prediction(path, (("cat", 0.75), ("dog", 0.25)))) == "cat 75.0 %, dog 25.0 %"
    told = Prediction(path, (("cat", 0.75),), score_name="estimate")
    assert str(told) == "1. cat 0.750 (estimate)"
    assert predictions_csv([Prediction(path, error="no"), told]).startswith("image,class,estimate,")


def test_more_images_than_one_minibatch_stay_in_order(done, images, monkeypatch):
    paths = find_images([images / "test"])
    whole = list(predict(load(done.folder), paths))
    monkeypatch.setattr("avalanche_peftcl.export.predict._BATCH", 3)
    parts = list(predict(load(done.folder), paths))
    assert [p.path for p in parts] == paths
    assert [p.classes[0][0] for p in parts] == [p.classes[0][0] for p in whole]


def test_images_are_found_below_folders_and_hidden_ones_are_not(tmp_path, images):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / ".c").mkdir()
    picture = (images / "test" / "one" / "0.png").read_bytes()
    for name in ("a/2.png", "a/b/1.JPG", "a/.c/3.png", "a/.4.png", "a/notes.txt", "raw"):
        (tmp_path / name).write_bytes(picture)
    found = find_images([tmp_path / "raw", tmp_path / "a"])
    assert [str(p.relative_to(tmp_path)) for p in found] == ["raw", "a/2.png", "a/b/1.JPG"]


def test_what_is_not_there_is_refused_before_the_work(tmp_path):
    with pytest.raises(DataError, match="there is no image or folder"):
        find_images([tmp_path / "none.png"])
    with pytest.raises(DataError, match=r"holds no image; images end in \.jpg, "):
        find_images([tmp_path])


def test_an_image_that_cannot_be_read_does_not_stop_the_others(done, images, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG no image")
    good = images / "test" / "one" / "0.png"
    told = list(predict(load(done.folder), [bad, good, bad]))
    assert [bool(p.error) for p in told] == [True, False, True]
    assert "bad.png cannot be decoded" in told[0].error
    assert told[1].classes[0][0] == "one"
    assert next(predict(load(done.folder), [bad])).classes == ()


def test_the_command_tells_each_image_and_fails_if_one_is_unreadable(done, images, tmp_path):
    bad, table = tmp_path / "bad.png", tmp_path / "table.csv"
    bad.write_bytes(b"")
    good = images / "test" / "seven"
    result = peftcl(done.folder, bad, good, "--top", "2", "--csv", table)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith(f"{good / '0.png'}  1. seven ")
    assert ", 2. one " in lines[0]
    assert lines[0].endswith(" (similarity)")
    assert "unreadable: " in result.stderr
    assert "error: 1 of 11 images could not be read" in result.stderr
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 11
    assert rows[0]["image"] == str(bad)
    assert rows[0]["class"] == ""
    assert "cannot be decoded" in rows[0]["error"]
    assert {row["class"] for row in rows[1:]} | {row["class_2"] for row in rows[1:]} == {
        "one",
        "seven",
    }
    for row in rows[1:]:
        assert 1 >= float(row["similarity"]) >= float(row["similarity_2"]) >= -1
    result = peftcl(done.folder, good)
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_network_trained_task_by_task_needs_the_task(by_task, images):
    picture = images / "test" / "one" / "0.png"
    result = peftcl(by_task, picture)
    assert result.exit_code == 2
    assert "task by task" in result.stderr
    assert "0, 1" in result.stderr
    told = [peftcl(by_task, picture, "--task", task).stdout for task in (0, 1)]
    assert sorted(line.split()[2] for line in told) == ["one", "seven"]
    assert all(", 2. " not in line for line in told)  # the only class of its task
    assert "there is no task label 5" in peftcl(by_task, picture, "--task", 5).stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nowhere", "{image}"), "there is no file nowhere"),
        (("{run}", "nowhere.png"), "there is no image or folder nowhere.png"),
        (("{run}", "{image}", "--task", "0"), "takes no task label"),
        (("{run}", "{image}", "--csv", "no/such/folder.csv"), "there is no folder no/such"),
        (("{run}", "{image}", "--device", "cuda:99"), "there is no device 'cuda:99' here"),
        (("{image}", "{image}"), "cannot be read as safetensors"),
    ],
)
def test_mistakes_are_one_message(done, images, words, said):
    places = {"run": done.folder, "image": images / "test" / "one" / "0.png"}
    result = peftcl(*(word.format(**places) for word in words))
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.name != "posix", reason="file names are text on this system")
def test_a_file_name_that_is_no_text_is_no_obstacle(done, images, tmp_path):
    picture = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    picture.write_bytes((images / "test" / "one" / "0.png").read_bytes())
    result = peftcl(done.folder, picture, "--csv", tmp_path / "table.csv")
    assert result.exit_code == 0, result.stderr
    assert "udcff.png  1. one" in result.stdout
    assert b"\xff.png,one," in (tmp_path / "table.csv").read_bytes()


def test_the_table_has_a_row_an_image_whatever_it_lacks(tmp_path):
    told = [
        Prediction(Path("a,b.png"), (("cat", 0.5), ("dog", 0.25))),
        Prediction(Path("c.png"), (("cat", 1.0),)),
        Prediction(Path("d.png"), error="broken"),
    ]
    rows = list(csv.reader(predictions_csv(told, top=2).splitlines()))
    assert rows == [
        ["image", "class", "probability", "class_2", "probability_2", "error"],
        ["a,b.png", "cat", "0.5", "dog", "0.25", ""],
        ["c.png", "cat", "1.0", "", "", ""],
        ["d.png", "", "", "", "", "broken"],
    ]
    with pytest.raises(ConfigError, match="cannot write"):
        write_csv(tmp_path / "no" / "a.csv", told)


def test_fewer_images_at_a_time_where_the_memory_is_small(done, images, monkeypatch):
    model, paths = load(done.folder), find_images([images / "test"])
    whole = list(predict(model, paths))
    forward, sizes = type(model).forward, []

    def short(self, batch, task=None):
        sizes.append(len(batch))
        if len(batch) > 3:
            torch.empty(2**60, dtype=torch.uint8)  # more than any machine has
        return forward(self, batch, task)

    monkeypatch.setattr(type(model), "forward", short)
    parts = list(predict(model, paths))
    assert [(p.path, p.classes[0][0]) for p in parts] == [(p.path, p.classes[0][0]) for p in whole]
    assert sizes == [20, 10, 5, 2, 3, 5, 2, 3, 10, 5, 2, 3, 5, 2, 3]


def test_no_memory_for_a_single_image_is_one_message(done, images, monkeypatch):
    model = load(done.folder)

    def short(self, batch, task=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(type(model), "forward", short)
    with pytest.raises(ResourceError, match=r"too little memory .*; end other programs"):
        list(predict(model, find_images([images / "test"])))
