import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from avalanche_peftcl.benchmarks import (
    Contents,
    Entry,
    ImageArray,
    ImageFiles,
    JoinedImages,
    check_manifest,
    digits,
    image_folder,
    make_benchmark,
    manifest_sha256,
    read_manifest,
    split_sha256,
    write_manifest,
)
from avalanche_peftcl.benchmarks.images.manifest import compare
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig

CAT = Entry("train", "", "cat", "train/cat/1.png", 3, hashlib.sha256(b"cat").hexdigest())
DOG = Entry("test", "photo", "d\u00f6g", "test/\u2028.png", 0, hashlib.sha256(b"").hexdigest())

names = st.text(max_size=5)
entries = st.lists(
    st.builds(
        Entry,
        st.sampled_from(["train", "test"]),
        names,
        names,
        names,
        st.integers(0, 9),
        st.sampled_from(["0" * 64, "1" * 64]),
    ),
    max_size=6,
)


@pytest.fixture
def folder(tmp_path: Path, write_images: Callable[..., None]) -> Path:
    root = tmp_path / "pets"
    for part, count in (("train", 2), ("test", 1)):
        for name in ("ant", "bee"):
            write_images(root / part / name, count)
    return root


def contents_of(root: Path, **options: Any) -> Contents:
    options = {"n_experiences": 2} | options
    contents: Contents = image_folder(
        input_config=InputConfig(img_size=8), root=root, **options
    ).contents
    return contents


def test_the_hashes_are_those_of_the_sorted_lines():
    lines = [
        r'["test","photo","d\u00f6g","test/\u2028.png",0',
        '["train","","cat","train/cat/1.png",3',
    ]
    split = "".join(f"{line}]\n" for line in lines)
    assert split_sha256([CAT, DOG]) == hashlib.sha256(split.encode()).hexdigest()
    pairs = zip(lines, (DOG.sha256, CAT.sha256), strict=True)
    whole = "".join(f'{line},"{digest}"]\n' for line, digest in pairs)
    assert manifest_sha256([CAT, DOG]) == hashlib.sha256(whole.encode()).hexdigest()


@given(entries, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_everything_else_does(images, order: random.Random):
    shuffled = order.sample(images, len(images))
    assert split_sha256(shuffled) == split_sha256(images)
    assert manifest_sha256(shuffled) == manifest_sha256(images)
    assert compare(shuffled, images) == []
    more = [*images, CAT]
    assert manifest_sha256(more) != manifest_sha256(images)
    for field, value in {"split": "", "class_name": "?" * 6, "size": 10, "sha256": "2"}.items():
        changed = [*images, CAT._replace(**{field: value})]
        assert manifest_sha256(changed) != manifest_sha256(more)
        assert (split_sha256(changed) == split_sha256(more)) is (field == "sha256")
        assert compare(more, changed) != []


@given(entries)
def test_a_manifest_is_read_as_written(tmp_path_factory, images):
    path = tmp_path_factory.getbasetemp() / "any.manifest"
    assert write_manifest(path, images) == manifest_sha256(images)
    assert sorted(read_manifest(path)) == sorted(images)


def test_the_file_tells_itself(tmp_path):
    path = tmp_path / "new" / "pets.manifest"
    total = write_manifest(path, [CAT, DOG])
    content = path.read_bytes()
    assert content.isascii()
    assert content.endswith(b"]\n")
    head, *lines = content.decode().splitlines()
    assert json.loads(head) == {
        "format": 1,
        "sha256": total,
        "train_images": 1,
        "test_images": 1,
        "classes": ["cat", "d\u00f6g"],
        "domains": ["photo"],
    }
    assert [Entry(*json.loads(line)) for line in lines] == [DOG, CAT]
    assert [p.name for p in path.parent.iterdir()] == ["pets.manifest"]


def test_files_are_listed_with_split_class_size_and_hash(folder):
    contents = contents_of(folder)
    listed = list(contents.entries(hashed=True))
    assert len(listed) == len(contents) == 6
    first = (folder / "train" / "ant" / "0.png").read_bytes()
    digest = hashlib.sha256(first).hexdigest()
    assert listed[0] == Entry("train", "", "ant", "train/ant/0.png", len(first), digest)
    assert listed[-1][:4] == ("test", "", "bee", "test/bee/0.png")
    cheap = list(contents.entries(hashed=False))
    assert cheap == [entry._replace(sha256="") for entry in listed]


def test_the_place_the_seed_and_the_order_do_not_matter(folder, tmp_path):
    before = contents_of(folder)
    expected = manifest_sha256(before.entries(hashed=True))
    shutil.copytree(folder, tmp_path / "elsewhere" / "animals")
    other = contents_of(tmp_path / "elsewhere" / "animals", seed=5, class_order=[1, 0])
    subset = contents_of(folder, train_per_class=1, validation_per_class=1, scenario="online")
    for contents in (other, subset):
        assert manifest_sha256(contents.entries(hashed=True)) == expected
        assert split_sha256(contents.entries(hashed=False)) == split_sha256(
            before.entries(hashed=False)
        )


def test_names_are_the_same_on_every_system():
    root = PureWindowsPath("C:/data/pets")
    files = ImageFiles([root / "train" / "Cafe\u0301" / "1.png"], [0], root=root)  # type: ignore[list-item]
    assert files.name(0) == "train/Caf\u00e9/1.png"
    images = ImageArray(np.zeros((1, 2, 2), np.uint8), [0])
    (entry, _) = Contents(images, images, ["Cafe\u0301"]).entries(hashed=False)
    assert entry.class_name == "Caf\u00e9"


def test_without_a_root_names_start_at_the_deepest_common_folder(tmp_path):
    files = ImageFiles([tmp_path / "a" / "1.png", tmp_path / "b" / "c" / "1.png"], [0, 1])
    assert [files.name(i) for i in range(2)] == ["a/1.png", "b/c/1.png"]
    assert ImageFiles([tmp_path / "a" / "1.png"], [0]).name(0) == "1.png"
    assert len(ImageFiles([], [])) == 0


def test_domains_are_named(folder, tmp_path):
    for domain in ("photo", "sketch"):
        shutil.copytree(folder, tmp_path / "domains" / domain)
    first = contents_of(tmp_path / "domains", scenario="domain", n_experiences=None)
    turned = contents_of(
        tmp_path / "domains",
        scenario="domain",
        n_experiences=None,
        domain_order=["sketch", "photo"],
    )
    listed = sorted(first.entries(hashed=False))
    assert listed == sorted(turned.entries(hashed=False))
    assert {(e.domain, e.path.split("/")[0]) for e in listed} == {
        ("photo", "photo"),
        ("sketch", "sketch"),
    }
    images = ImageArray(np.zeros((2, 2, 2), np.uint8), [0, 1])
    numbered = Contents(images, images, ["a", "b"], train_domains=[0, 1])
    assert [e.domain for e in numbered.entries(hashed=False)] == ["0", "1", "", ""]


def test_images_of_an_array_are_hashed_by_their_pixels():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    images = ImageArray(pixels, [0, 1])
    joined = JoinedImages({"a": images, "b": images}, n_classes=[2, 2])
    first, *_, last = Contents(joined, joined, list("wxyz")).entries(hashed=True)
    expected = hashlib.sha256(bytes(range(12))).hexdigest()
    assert first == Entry("train", "", "w", "a/0", 12, expected)
    assert last[:5] == ("test", "", "z", "b/1", 12)
    assert joined[3][1] == 3
    assert np.array_equal(joined[3][0], pixels[1])


def test_any_other_data_set_is_hashed_by_its_decoded_pixels():
    class Foreign:
        targets = (0, 0)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("L", (2, 1), index), 0

    images = Foreign()
    one, two, *_ = Contents(images, images, ["a"]).entries(hashed=True)
    assert one == Entry("train", "", "a", "0", 0, hashlib.sha256(bytes(6)).hexdigest())
    assert two.sha256 == hashlib.sha256(bytes([1] * 6)).hexdigest()
    assert next(Contents(images, images, ["a"]).entries(hashed=False)) == one._replace(sha256="")


def test_what_is_missing_extra_and_changed_is_named(folder, tmp_path):
    path = tmp_path / "pets.manifest"
    total = write_manifest(path, contents_of(folder).entries(hashed=True))
    assert check_manifest(path, contents_of(folder)) == total
    (folder / "train" / "ant" / "0.png").rename(folder / "train" / "ant" / "9.png")
    (folder / "train" / "bee" / "0.png").write_bytes(b"short")
    with pytest.raises(DataError) as caught:
        image_folder(
            input_config=InputConfig(img_size=8), root=folder, n_experiences=2, manifest=path
        )
    assert str(caught.value) == (
        f"the images are not those of the manifest {path}:\n"
        "  1 missing: train train/ant/0.png\n"
        "  1 extra: train train/ant/9.png\n"
        "  1 changed: train train/bee/0.png (size)\n"
        "use the images that it was made of, or write a manifest of these with: "
        f"peftcl manifest CONFIG {path} --overwrite"
    )


def test_a_change_that_keeps_the_size_is_found(folder, tmp_path):
    path = tmp_path / "pets.manifest"
    write_manifest(path, contents_of(folder).entries(hashed=True))
    changed = folder / "test" / "bee" / "0.png"
    content = changed.read_bytes()
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=r"1 changed: test test/bee/0.png \(content\)\n"):
        check_manifest(path, contents_of(folder))


def test_long_lists_of_differences_are_cut():
    old = [CAT._replace(path=f"{i:02}") for i in range(8)]
    assert compare(old, []) == [
        "8 missing: train 00, train 01, train 02, train 03, train 04 and 3 more"
    ]
    new = [entry._replace(class_name="dog", size=9, sha256="") for entry in old[:1]]
    assert compare(old[:1], new) == ["1 changed: train 00 (class, size)"]
    assert compare([CAT], [CAT, CAT]) == ["1 extra: train train/cat/1.png"]


def test_every_loader_takes_a_manifest(tmp_path, input_config):
    path = tmp_path / "digits.manifest"
    total = write_manifest(path, digits(input_config=input_config).contents.entries(hashed=True))
    benchmark = digits(input_config=input_config, seed=4, manifest=path)
    assert benchmark.manifest_sha256 == total
    assert digits(input_config=input_config).manifest_sha256 is None
    with pytest.raises(DataError, match=r"\n  1797 extra: test 360, .* and 1792 more\n"):
        digits(input_config=input_config, scenario="domain", n_experiences=2, manifest=path)


def test_make_benchmark_tells_its_contents(constant_images, input_config):
    images = constant_images([0, 1, 0, 1])
    options = {"input_config": input_config, "n_experiences": 2}
    benchmark = make_benchmark(images, images, **options)
    assert benchmark.tested_on == "test images"
    assert [e.class_name for e in benchmark.contents.entries(hashed=False)] == list("01010101")
    held = make_benchmark(images, images, validation_per_class=1, **options)
    assert held.tested_on == "held-out training images"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no manifest {path}; write one with: peftcl manifest CONFIG {path}"),
        ("", "{path} is not a manifest: its first line does not say so"),
        ("seed: 1\n", "{path} is not a manifest: its first line does not say so"),
        ("[" * 9999, "{path} is not a manifest: its first line does not say so"),
        ('{"format": 1}\n', "{path} is not a manifest: its first line does not say so"),
        (
            '{"format": 2, "sha256": ""}\n',
            "{path} is a manifest of format 2; only 1 can be read",
        ),
        (
            '{"format": 1, "sha256": "0"}\n["train"]\n',
            "the manifest {path} is damaged: line 2 is no image",
        ),
        (
            '{"format": 1, "sha256": "0"}\n["train","","","",true,"0"]\n',
            "the manifest {path} is damaged: line 2 is no image",
        ),
        (
            '{"format": 1, "sha256": "0"}\n["train","","","",1,""]\n',
            "the manifest {path} is damaged: line 2 is no image",
        ),
        (
            '{"format": 1, "sha256": "0"}\n["train","","","",1,"0"]\n',
            "the manifest {path} is damaged: its first line says sha256 0, its 1 images have "
            + hashlib.sha256(b'["train","","","",1,"0"]\n').hexdigest(),
        ),
    ],
)
def test_files_that_are_no_manifest(tmp_path, content, message):
    path = tmp_path / "a.manifest"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert str(caught.value) == message.format(path=path)


def test_a_manifest_that_cannot_be_decoded(tmp_path):
    path = tmp_path / "a.manifest"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=f"the manifest {path} cannot be read: 'ascii' codec"):
        read_manifest(path)
    with pytest.raises(DataError, match=f"the manifest {tmp_path} cannot be read: "):
        read_manifest(tmp_path)


def test_a_truncated_manifest_is_refused(tmp_path):
    path = tmp_path / "a.manifest"
    write_manifest(path, [CAT, DOG])
    text = path.read_text()
    for end in range(0, len(text) - 1, 7):  # only the last newline may be missing
        path.write_text(text[:end])
        with pytest.raises(DataError):
            read_manifest(path)


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*file/a: "):
        write_manifest(tmp_path / "file" / "a", [CAT])
    with pytest.raises(ConfigError, match=r"train/cat/1.png is not hashed; list with hashed=True"):
        write_manifest(tmp_path / "a", [CAT._replace(sha256="")])


def test_a_file_that_is_gone_is_named(folder):
    contents = contents_of(folder)
    gone = folder / "test" / "ant" / "0.png"
    gone.unlink()
    for hashed in (False, True):
        with pytest.raises(DataError) as caught:
            list(contents.entries(hashed=hashed))
        assert str(caught.value) == (
            f"{gone} cannot be read (No such file or directory); the data set is not complete"
        )
