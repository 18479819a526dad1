"""``peftcl evaluate``: folders are labels, and numbers are those of scikit-learn."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score
from torch import nn
from typer.testing import CliRunner

from avalanche_peftcl.cli import app
from avalanche_peftcl.errors import DataError
from avalanche_peftcl.export.evaluate import DomainAccuracy, Evaluation, evaluate
from avalanche_peftcl.export.evaluate_command import confusion_table
from avalanche_peftcl.models.heads.rows import ClassRows

NAMES = ("cat", "dog", "photo/owl", "eel")


class ByBrightness(nn.Module):
    """Says of a picture of brightness ``k`` that it is class ``k``; ``eel`` was never trained."""

    def __init__(self, pairs=((0, 0), (0, 1), (0, 2))):
        super().__init__()
        self.classes = ClassRows()
        self.classes.add(pairs)

    def forward(self, images, tasks=None):
        shade = (255 * images.mean(dim=(1, 2, 3))).round()
        return -(shade[:, None] - torch.arange(len(NAMES))).abs()


def network(**kwargs):
    model = ByBrightness(**kwargs)

    def logits(images, task=None):
        out = model(images)
        out[:, 3] = -1000
        return out

    class Network(nn.Module):
        class_names = NAMES
        score_name = "probability"
        forward = staticmethod(logits)

        def __init__(self):
            super().__init__()
            self.model = model

        def transform(self, image):
            return torch.tensor(np.array(image)).permute(2, 0, 1) / 255

        def scores(self, out):
            return out.softmax(1)

        def class_name(self, number):
            return NAMES[number]

    return Network()


def paint(folder, *shades):
    folder.mkdir(parents=True)
    for i, shade in enumerate(shades):
        Image.new("RGB", (4, 4), (shade,) * 3).save(folder / f"{i}.png")


def test_numbers_are_those_of_scikit_learn(tmp_path):
    shades = {"cat": [0, 0, 1], "dog": [1, 2, 2, 2], "owl": [2], "eel": [0]}
    for name, painted in shades.items():
        paint(tmp_path / name, *painted)
    told = evaluate(network(), tmp_path)
    order = ("cat", "dog", "owl", "eel")
    true = [order.index(name) for name, painted in shades.items() for _ in painted]
    predicted = [shade for painted in shades.values() for shade in painted]
    assert told.class_names == NAMES
    np.testing.assert_array_equal(told.confusion, confusion_matrix(true, predicted))
    assert told.accuracy == accuracy_score(true, predicted)
    assert told.class_accuracy == pytest.approx(recall_score(true, predicted, average=None))
    assert told.mistakes(1) == [("photo/owl", 3)]
    assert told.untrained == ("eel",)


def test_folders_above_those_of_classes_are_domains_and_no_labels(tmp_path):
    paint(tmp_path / "sketch" / "cat", 0)
    paint(tmp_path / "photo" / "test" / "cat", 0, 1)
    paint(tmp_path / "photo" / "train" / "dog", 0)
    told = evaluate(network(), tmp_path)
    assert (told.class_names, told.images, told.right) == (("cat", "dog"), 4, 2)
    assert told.domains == (DomainAccuracy("photo", 3, 1), DomainAccuracy("sketch", 1, 1))
    assert json.loads(told.to_json())["domains"][0] == {
        "name": "photo",
        "images": 3,
        "right": 1,
        "accuracy": 1 / 3,
    }
    assert evaluate(network(), tmp_path / "photo").domains == ()  # train and test are none


def test_images_in_no_domain_are_told_beside_those_in_one(tmp_path):
    paint(tmp_path / "cat", 0)
    paint(tmp_path / "sketch" / "cat", 0)
    (tmp_path / "sketch" / "cat" / "1.png").write_bytes(b"no image")
    told = evaluate(network(), tmp_path)
    assert told.domains == (DomainAccuracy("", 1, 1), DomainAccuracy("sketch", 1, 1))


def test_an_image_that_cannot_be_read_counts_in_no_number(tmp_path):
    paint(tmp_path / "cat", 0, 0)
    (tmp_path / "cat" / "0.png").write_bytes(b"no image")
    told = evaluate(network(), tmp_path)
    assert (told.images, told.accuracy) == (1, 1.0)
    (reason,) = told.unreadable
    assert "0.png cannot be decoded" in reason


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("cats", r"'cats' is no class of this network \(did you mean 'cat'\?\); its classes are"),
        (".", r"0\.png lies in no folder that could be its label"),
    ],
)
def test_folders_that_are_no_labels_are_refused_before_the_work(tmp_path, folder, said):
    root = tmp_path / "images"
    paint(root / folder, 0)
    with pytest.raises(DataError, match=said):
        evaluate(network(), root)


def test_a_name_of_two_classes_is_refused(tmp_path, monkeypatch):
    paint(tmp_path / "a", 0)
    model = network(pairs=((0, 0), (1, 1)))
    monkeypatch.setattr(model, "class_names", ("one/a", "two/a"), raising=False)
    with pytest.raises(DataError, match="may be each of the classes 'one/a', 'two/a'"):
        evaluate(model, tmp_path)
    told = evaluate(model, tmp_path, task=1)  # of the classes of that task it is one
    assert told.images == 1


@pytest.mark.parametrize("classes", [2, 12, 40, 300])
def test_tables_hold_at_80_columns_and_show_every_class(classes):
    names = tuple(f"a class with a rather long name, number {i}" for i in range(classes))
    random = np.random.default_rng(0)
    told = Evaluation(names, random.integers(0, 12, (classes, classes)))
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(confusion_table(told))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(lines)
    assert "…" not in text
    if classes == 2:  # the matrix itself
        assert all(str(count) in text.split() for count in told.confusion.ravel() if count)
    share = f"{100 * told.class_accuracy[0]:.0f} %"
    assert share in text


def test_the_command(tmp_path, monkeypatch):
    paint(tmp_path / "cat", 0, 0, 1)
    paint(tmp_path / "dog", 1)
    monkeypatch.setattr(
        "avalanche_peftcl.export.evaluate_command.load",
        lambda *_, **__: SimpleNamespace(to=lambda device: network()),
    )
    words = ["evaluate", "network.safetensors", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.stderr
    assert "accuracy 75.0 %, 3 of 4 images" in result.stdout
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told["accuracy"] == 0.75
    assert told["confusion"] == [[2, 1], [0, 1]]
    assert "domain" not in result.stdout
    paint(tmp_path / "sketch" / "dog", 0)
    result = CliRunner().invoke(app, words)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["none", "4", "75.0", "%"] in lines
    assert ["sketch", "1", "0.0", "%"] in lines
    shutil.copy(__file__, tmp_path / "dog" / "1.png")
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "unreadable: " in result.stderr
