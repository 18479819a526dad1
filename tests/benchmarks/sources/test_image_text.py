import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from avalanche_peftcl.benchmarks import image_text, split_sha256, write_manifest
from avalanche_peftcl.errors import ConfigError, ConfigWarning, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.testing import BenchmarkContract

ANIMALS = {"cats": ["cat", "cats"], "dogs": ["dog", "guide dog"]}
CAPTIONS = {
    "train": [
        ["A Cat sits .", "An animal ."],
        ["Two cats, and a dog"],  # of both: it belongs to the first
        ["a catalogue", "a dog runs"],
        ["the guide\tdog", "my dog"],
        ["a house"],
        ["dogged"],
    ],
    "test": [["a cat"], ["a dog"], ["nothing"]],
}


@pytest.fixture
def root(tmp_path: Path, write_images: Callable[..., None]) -> Path:
    for part, captions in CAPTIONS.items():
        write_images(tmp_path / part, len(captions), ending="jpg")
        told = {f"{i}.jpg": own for i, own in enumerate(captions)}
        (tmp_path / f"{part}.json").write_text(json.dumps(told))
    return tmp_path


@pytest.fixture
def build(input_config: InputConfig) -> Any:
    return lambda root, **options: image_text(input_config=input_config, root=root, **options)


def by_experience(stream: Any, captions: Any) -> list[list[str]]:
    """Return the first caption of each image of each experience."""
    return [[captions[y][0] for y in e.dataset.targets] for e in stream]


def test_an_image_belongs_to_the_first_topic_whose_words_occur(build: Any, root: Path) -> None:
    with pytest.warns(ConfigWarning) as told:
        benchmark = build(root, topics=ANIMALS)
    assert [str(each.message) for each in told] == [
        f"of the images of {root}, 2 of 6 for training and 1 of 3 for test have no word of a topic "
        "in their captions and are left out"
    ]
    assert by_experience(benchmark.train_stream, benchmark.captions) == [
        ["A Cat sits .", "Two cats, and a dog"],
        ["a catalogue", "the guide\tdog"],
    ]
    assert by_experience(benchmark.test_stream, benchmark.captions) == [["a cat"], ["a dog"]]
    assert benchmark.left_out == {"train": 2, "test": 1}
    assert benchmark.domains == ["cats", "dogs"]
    with pytest.warns(ConfigWarning):
        turned = build(root, topics=dict(reversed(ANIMALS.items())))
    assert by_experience(turned.train_stream, turned.captions) == [
        ["Two cats, and a dog", "a catalogue", "the guide\tdog"],
        ["A Cat sits ."],
    ]


def test_targets_are_numbers_in_one_table_of_captions(build: Any, root: Path) -> None:
    benchmark = build(root, n_experiences=3, seed=1)
    streams = [benchmark.train_stream, benchmark.test_stream]
    ids = [int(y) for stream in streams for e in stream for y in e.dataset.targets]
    assert ids == list(range(9))
    assert sorted(benchmark.captions[:6]) == sorted(map(tuple, CAPTIONS["train"]))
    x, y, t = benchmark.test_stream[2].dataset[0]
    assert (x.shape, y, t) == ((3, 8, 8), 8, 2)
    assert (benchmark.scenario, benchmark.left_out) == ("task", None)
    assert not hasattr(benchmark, "class_names")


def test_images_have_their_own_captions(build: Any, root: Path) -> None:
    plain = build(root, n_experiences=1, augment="none")
    again = build(root, n_experiences=3, augment="none", seed=3, in_memory=True)
    wanted = {plain.captions[y]: x for x, y, _ in plain.train_stream[0].dataset}
    found = {again.captions[y]: x for e in again.train_stream for x, y, _ in e.dataset}
    assert wanted.keys() == found.keys() == set(map(tuple, CAPTIONS["train"]))
    assert all(torch.equal(found[told], image) for told, image in wanted.items())


def test_captioned_images_are_mirrored_if_told(build: Any, root: Path) -> None:
    plain, mirrored = (
        build(root, n_experiences=1, augment="none", mirror=told) for told in (None, True)
    )
    torch.manual_seed(0)
    pairs = zip(plain.train_stream[0].dataset, mirrored.train_stream[0].dataset, strict=True)
    sides = {(torch.equal(x, y), torch.equal(x.flip(2), y)) for (x, *_), (y, *_) in pairs}
    assert sides == {(True, False), (False, True)}
    pairs = zip(plain.test_stream[0].dataset, mirrored.test_stream[0].dataset, strict=True)
    assert all(torch.equal(x, y) for (x, *_), (y, *_) in pairs)


def test_parts_are_drawn_by_the_seed(build: Any, root: Path) -> None:
    streams = [build(root, n_experiences=3, seed=seed) for seed in (0, 0, 1)]
    first, same, other = (by_experience(b.train_stream, b.captions) for b in streams)
    assert first == same != other
    assert [len(part) for part in first] == [2, 2, 2]
    with pytest.raises(DataError) as caught:
        build(root, n_experiences=2)
    assert str(caught.value) == (
        "6 training and 3 test images do not divide into 2 experiences; give n_experiences one of "
        "[1, 3], or topics or experiences"
    )


def test_experiences_by_file(build: Any, root: Path) -> None:
    (root / "train" / "0.jpg").rename(root / "train" / "a.jpg")
    (root / "train" / "1.jpg").rename(root / "train" / "b.jpg")
    (root / "late.json").write_text('{"a.jpg": ["one"], "2.jpg": ["two"]}')
    (root / "early.json").write_text('{"b.jpg": ["three", "four"]}')
    for name in ("2.jpg", "3.jpg"):
        (root / "train" / name).unlink()
    (root / "test" / "0.jpg").rename(root / "test" / "c.jpg")
    (root / "early.json").write_text('{"b.jpg": ["three", "four"], "c.jpg": ["five"]}')
    benchmark = build(root, experiences={"early": "early.json", "late": "late.json"})
    assert benchmark.captions == [("three", "four"), ("one",), ("five",), ("two",)]
    assert benchmark.domains == ["early", "late"]
    (root / "late.json").write_text('{"b.jpg": ["one"], "2.jpg": ["two"]}')
    with pytest.raises(DataError, match="it may be in one experience only"):
        build(root, experiences={"early": "early.json", "late": "late.json"})
    (root / "late.json").write_text('{"z.jpg": ["one"]}')
    with pytest.raises(DataError, match=r"'z.jpg', which is in neither of .*; it must be in one"):
        build(root, experiences={"late": "late.json"})


def test_subsets(build: Any, root: Path) -> None:
    few = build(root, n_experiences=3, train_per_experience=1, test_per_experience=1)
    assert [len(e.dataset) for e in few.train_stream] == [1, 1, 1]
    held = build(root, n_experiences=3, validation_per_experience=1)
    assert held.tested_on == "held-out training images"
    assert [len(e.dataset) for e in held.train_stream] == [1, 1, 1]
    used = {held.captions[y] for s in held.streams.values() for e in s for y in e.dataset.targets}
    assert used == set(map(tuple, CAPTIONS["train"]))
    with pytest.raises(DataError, match="validation_per_experience=2 leaves nothing to train on"):
        build(root, n_experiences=3, validation_per_experience=2)


def test_a_manifest_holds_the_captions_too(build: Any, root: Path) -> None:
    contents = build(root, n_experiences=1).contents
    entry = next(contents.entries(hashed=True))
    assert entry[:4] == ("train", "", "part 1", "train/0.jpg")
    told = (root / "train" / "0.jpg").read_bytes() + json.dumps(CAPTIONS["train"][0]).encode()
    assert (entry.size, entry.sha256) == (len(told), hashlib.sha256(told).hexdigest())
    write_manifest(root / "manifest", contents.entries(hashed=True))
    same = build(root, n_experiences=1, manifest=root / "manifest", seed=4)
    assert same.manifest_sha256 is not None
    split = split_sha256(contents.entries(hashed=False))
    told_now = json.loads((root / "train.json").read_text()) | {"0.jpg": ["A Dog sits .", "An ox"]}
    (root / "train.json").write_text(json.dumps(told_now))
    assert split_sha256(build(root, n_experiences=1).contents.entries(hashed=False)) != split
    with pytest.raises(DataError, match=r"1 changed: train train/0.jpg"):
        build(root, n_experiences=1, manifest=root / "manifest")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing given; give one of topics, experiences, n_experiences: it says which images"),
        (
            {"topics": {}, "n_experiences": 1},
            "topics and n_experiences given; give one of topics, ",
        ),
        ({"topics": {}}, "topics={} names no topic; give words by name of an experience"),
        ({"topics": {"cats": []}}, "topic 'cats' needs words, got []"),
        ({"topics": {"cats": [" "]}}, "topic 'cats' needs words, got [' ']"),
        ({"experiences": {}}, "experiences={} names no file; give one by name of an experience"),
    ],
)
def test_options_that_make_no_sense(
    build: Any, root: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        build(root, **options)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::avalanche_peftcl.errors.ConfigWarning")
def test_a_topic_needs_images(build: Any, root: Path) -> None:
    with pytest.raises(DataError) as caught:
        build(root, topics={"cats": ["cat"], "houses": ["house"], "cars": ["car"]})
    assert str(caught.value) == (
        "experiences without train images: ['cars'] (1 in all); add images or leave them out"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, 'no file of captions {file}; expected {{"file name": ["caption", ...], ...}}'),
        ("{", "the captions {file} cannot be read: "),
        ("[" * 10**5, "the captions {file} cannot be read: "),
        ("[]", '{file} holds no captions; expected {{"file name": ["caption", ...], ...}}'),
        ('{{"../x.jpg": ["a"]}}', "{file}: '../x.jpg' is no file name relative to the folder of "),
        (
            '{{"/x.jpg": ["a"]}}',
            "{file}: '/x.jpg' is no file name relative to the folder of images",
        ),
        ('{{"0.jpg": "a"}}', "{file}: '0.jpg' needs a list of captions, one at least and none of "),
        ('{{"0.jpg": []}}', "{file}: '0.jpg' needs a list of captions, one at least and none of "),
        ('{{"0.jpg": ["a", " "]}}', "{file}: '0.jpg' needs a list of captions, one at least and "),
        (
            '{{"0.jpg": ["a"], "z.jpg": ["b"]}}',
            "{file} has captions of 'z.jpg', which {root}/test does not have; add images or take ",
        ),
        (
            '{{"0.jpg": ["a"]}}',
            "{file} has no captions of '1.jpg', '2.jpg', which {root}/test has; add ",
        ),
    ],
)
def test_files_that_cannot_be_used(build: Any, root: Path, text: str | None, message: str) -> None:
    file = root / "test.json"
    file.unlink()
    if text is not None:
        file.write_text(text.replace("{{", "{").replace("}}", "}"))
    with pytest.raises(DataError) as caught:
        build(root, n_experiences=1)
    assert str(caught.value).startswith(message.format(file=file, root=root))
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(build: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*train; expected root/\{train,test\}"):
        build(tmp_path, n_experiences=1)


@pytest.mark.filterwarnings("ignore::avalanche_peftcl.errors.ConfigWarning")
class TestContract(BenchmarkContract):
    @pytest.fixture(autouse=True)
    def files(self, root: Path) -> None:
        self.root = root

    def create_benchmark(self, input_config: InputConfig, *, seed: int) -> Any:
        return image_text(
            input_config=input_config, root=self.root, topics=ANIMALS, seed=seed, augment="none"
        )


def test_the_photographs_by_topic(build: Any, shared_data: Path) -> None:
    topics = {
        "dogs": ["dog", "dogs"],
        "water": ["water", "beach", "ocean", "pool"],
        "street": ["street", "city", "building"],
    }
    with pytest.warns(ConfigWarning, match="of 3000 for training"):
        benchmark = build(shared_data / "flickr8k", topics=topics)
    sizes = [len(e.dataset) for e in benchmark.train_stream]
    assert sum(sizes) + benchmark.left_out["train"] == 3000
    assert min(sizes) > 200
    assert all(
        "dog" in " ".join(benchmark.captions[y]).lower()
        for y in benchmark.train_stream[0].dataset.targets
    )
