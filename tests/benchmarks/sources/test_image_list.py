import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avalanche_peftcl.benchmarks import image_list
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig

DOMAINS = ["real", "clipart"]


@pytest.fixture
def build(input_config: InputConfig) -> Any:
    return lambda root, **options: image_list(input_config=input_config, root=root, **options)


@pytest.fixture
def domains(tmp_path: Path, write_images: Callable[..., None]) -> Path:
    """Write two domains in DomainNet's layout: three classes, two training and one test image."""
    for domain in DOMAINS:
        lists = {"train": "", "test": ""}
        for label, name in enumerate(("ant", "The_Bee", "big cow")):
            write_images(tmp_path / domain / name, 3, ending="jpg")
            for i in range(3):
                lists["test" if i == 2 else "train"] += f"{domain}/{name}/{i}.jpg {label}\n"
        for part, text in lists.items():
            (tmp_path / f"{domain}_{part}.txt").write_text(text)
    return tmp_path


def test_domains_in_turn(build: Any, domains: Path) -> None:
    benchmark = build(domains, domains=DOMAINS, scenario="domain")
    assert benchmark.domains == DOMAINS
    assert [len(e.dataset) for e in benchmark.train_stream] == [6, 6]
    assert [len(e.dataset) for e in benchmark.test_stream] == [3, 3]
    assert benchmark.class_names == ["ant", "The_Bee", "big cow"]
    entries = list(benchmark.contents.entries(hashed=False))
    assert entries[0][:4] == ("train", "real", "ant", "real/ant/0.jpg")
    assert entries[-1][:4] == ("test", "clipart", "big cow", "clipart/big cow/2.jpg")
    x, y, t = benchmark.test_stream[1].dataset[2]
    assert (x.shape, y, t) == ((3, 8, 8), 2, 0)


def test_classes_of_all_domains(build: Any, domains: Path) -> None:
    benchmark = build(domains, domains=DOMAINS, n_experiences=3, class_order=[2, 0, 1])
    assert [len(e.dataset) for e in benchmark.train_stream] == [4, 4, 4]
    assert benchmark.class_names == ["big cow", "ant", "The_Bee"]
    assert benchmark.domains is None


def test_one_pair_of_lists(build: Any, domains: Path) -> None:
    for part in ("train", "test"):
        (domains / f"real_{part}.txt").rename(domains / f"{part}.txt")
    benchmark = build(domains, n_experiences=1)
    assert len(benchmark.train_stream[0].dataset) == 6
    with pytest.raises(ConfigError, match="use scenario 'class', 'task' or 'online'"):
        build(domains, scenario="domain")


def test_a_domain_may_lack_test_images_of_a_class(build: Any, domains: Path) -> None:
    (domains / "real_test.txt").write_text("real/ant/2.jpg 0\n")
    benchmark = build(domains, domains=DOMAINS, scenario="domain")
    assert [len(e.dataset) for e in benchmark.test_stream] == [1, 3]
    (domains / "clipart_test.txt").write_text("clipart/ant/2.jpg 0\n")
    with pytest.raises(DataError) as caught:
        build(domains, domains=DOMAINS, scenario="domain")
    assert str(caught.value) == (
        "classes without test images in any domain: ['The_Bee', 'big cow'] (2 in all); add images "
        "or take the classes out"
    )


def test_a_domain_is_not_tested_on_classes_that_come_later(build: Any, domains: Path) -> None:
    (domains / "real_train.txt").write_text("real/ant/0.jpg 0\n")
    with pytest.raises(DataError) as caught:
        build(domains, domains=DOMAINS, scenario="domain")
    assert str(caught.value) == (
        "experience 0: classes without training images: ['The_Bee', 'big cow'] (2 in all); add "
        "images or take the classes out"
    )
    (domains / "clipart_train.txt").write_text("clipart/ant/0.jpg 0\nclipart/big cow/0.jpg 2\n")
    (domains / "real_train.txt").write_text("real/The_Bee/0.jpg 1\nreal/ant/0.jpg 0\n")
    (domains / "real_test.txt").write_text("real/ant/2.jpg 0\n")
    late = build(domains, domains=DOMAINS, scenario="domain")  # the bee was trained before
    assert late.test_stream[1].classes_in_this_experience == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("real_test.txt", "", "the list {file} names no images"),
        ("real_test.txt", "a.jpg", "{file}, line 1: 'a.jpg' is not of the form 'path label'"),
        ("real_test.txt", "x/a.jpg 0\n\n", "{file}, line 2: '' is not of the form 'path label'"),
        (
            "real_test.txt",
            "x/a.jpg -1",
            "{file}, line 1: 'x/a.jpg -1' is not of the form 'path label'",
        ),
        (
            "real_test.txt",
            "x/a.jpg \u0663",
            "{file}, line 1: 'x/a.jpg \u0663' is not of the form 'path label'",
        ),
        (
            "clipart_train.txt",
            "clipart/ant/0.jpg 0\nclipart/bug/0.jpg 1",
            "{file}, line 2: label 1 is the folder 'bug' here and 'The_Bee' before; a label stands "
            "for one class, whose name may be given in a file: class_names",
        ),
        (
            "clipart_test.txt",
            "clipart/ant/2.jpg 0\nclipart/ant/0.jpg 0",
            "{file}, line 2: {root}/clipart/ant/0.jpg is listed for training too, in "
            "{root}/clipart_train.txt, line 1; no image may be trained on and tested on",
        ),
        (
            "clipart_train.txt",
            "clipart/dog/0.jpg 3\nclipart/dog/1.jpg 4",
            "{file}, line 2: the folder 'dog' has label 4 here and 3 before; a folder stands for "
            "one class, unless names are given in a file: class_names",
        ),
        (
            "real_test.txt",
            "/media/ant/2.jpg 0",
            "{file}, line 1: '/media/ant/2.jpg' is not below {root}; give it relative to that",
        ),
        (
            "real_test.txt",
            "../ant/2.jpg 0",
            "{file}, line 1: '../ant/2.jpg' is not below {root}; give it relative to that",
        ),
        (
            "real_test.txt",
            "ant/\0.jpg 0",
            "{file}, line 1: 'ant/\\x00.jpg 0' is not of the form 'path label'",
        ),
        (
            "clipart_train.txt",
            "clipart/dog/0.jpg 999999999",
            "labels in {root} go up to 999999999, but there are 7 training images; number the "
            "classes from 0 without gaps",
        ),
        (
            "clipart_train.txt",
            "clipart/dog/0.jpg 4",
            "classes without training images: ['3'] (1 in all)",
        ),
    ],
)
def test_lists_that_cannot_be_used(
    build: Any, domains: Path, name: str, text: str, message: str
) -> None:
    (domains / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        build(domains, domains=DOMAINS, scenario="domain")
    assert str(caught.value) == message.format(file=domains / name, root=domains)


def test_a_missing_list_says_where_to_get_a_known_data_set(build: Any, tmp_path: Path) -> None:
    root = tmp_path / "DomainNet"
    with pytest.raises(DataError) as caught:
        build(root, domains=DOMAINS)
    assert str(caught.value) == (
        f"no list {root / 'real_train.txt'}; expected root/{{train,test}}.txt or, with domains, "
        "root/domain_{train,test}.txt; if this is to be DomainNet (345 classes in six domains): it "
        "is at http://ai.bu.edu/M3SDA/ (put domain/class and the lists domain_train.txt and "
        "domain_test.txt into one folder and read it with the benchmark image_list)"
    )


def test_a_list_that_is_no_text(build: Any, domains: Path) -> None:
    (domains / "real_train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"the list .*real_train.txt cannot be read: 'utf-8' codec"):
        build(domains, domains=DOMAINS)


def test_a_byte_order_mark_is_no_part_of_a_name(build: Any, domains: Path) -> None:
    for file in domains.glob("*.txt"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert len(build(domains, domains=DOMAINS, scenario="domain").train_stream) == 2


NAMES = ["a red ant", "bee", "B\u00fcffel"]


@pytest.mark.parametrize("file", ["names.txt", "names.JSON"])
def test_names_of_classes_from_a_file(build: Any, domains: Path, file: str) -> None:
    place = domains / file
    text = "\r\n".join(NAMES) + "\r\n" if file.endswith("txt") else json.dumps(NAMES)
    place.write_bytes(b"\xef\xbb\xbf" + text.replace("\u00fc", "u\u0308").encode())
    benchmark = build(
        domains, domains=DOMAINS, n_experiences=3, class_order=[2, 0, 1], class_names=place
    )
    assert benchmark.class_names == [NAMES[2], NAMES[0], NAMES[1]]
    entries = list(benchmark.contents.entries(hashed=False))
    assert entries[0][2:4] == ("a red ant", "real/ant/0.jpg")


def test_with_names_folders_are_no_classes(build: Any, domains: Path) -> None:
    (domains / "names.txt").write_text("\n".join(NAMES))
    files = [f"real/{folder}/{i}.jpg" for i in range(3) for folder in ("ant", "big cow")]
    (domains / "train.txt").write_text("".join(f"{f} {i % 3}\n" for i, f in enumerate(files[:5])))
    (domains / "test.txt").write_text("".join(f"clipart/ant/{i}.jpg {i}\n" for i in range(3)))
    benchmark = build(domains, n_experiences=3, class_names=domains / "names.txt")
    assert sorted(benchmark.class_names) == sorted(NAMES)
    with pytest.raises(DataError, match=r"the folder 'ant' has label 2 here.*: class_names$"):
        build(domains, n_experiences=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a\nb\n",
            "{file} has 2 names for 3 labels: label 2 and those after it have none; add them in "
            "order, the first is of label 0",
        ),
        (
            "a\nb\nc\nd\n",
            "{file} has 4 names for 3 labels: no image has the label of 'd'; take the names out, "
            "or add the images to the lists",
        ),
        ("a\n\nc\n", "{file}: the name of label 1 is ''; give it in one line"),
        ("a\nb\tc\nd\n", "{file}: the name of label 1 is 'b\\tc'; give it in one line"),
        (
            "a\nb\n a \n",
            "{file}: 'a' is the name of the labels 0 and 2; each class needs its own",
        ),
        ("[1]", "{file}: the name of label 0 is 1; give it in one line"),
    ],
)
def test_names_that_cannot_be_used(build: Any, domains: Path, text: str, message: str) -> None:
    file = domains / ("names.json" if text == "[1]" else "names.txt")
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        build(domains, domains=DOMAINS, n_experiences=3, class_names=file)
    assert str(caught.value) == message.format(file=file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no file of class names .*, not to root"),
        (b"{", "the class names .* cannot be read: "),
        (b"\xff", "the class names .* cannot be read: 'utf-8' codec"),
        (b'{"0": "ant"}', "holds .*, not a list of names in order of their labels"),
    ],
)
def test_a_file_that_has_no_names(
    build: Any, domains: Path, content: bytes | None, message: str
) -> None:
    file = domains / "names.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        build(domains, domains=DOMAINS, n_experiences=3, class_names=file)


@pytest.mark.parametrize("names", [[], ["real", "real"]])
def test_domains_must_be_named_once(build: Any, domains: Path, names: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(domains, domains=names)
    assert str(caught.value) == f"domains={names} does not name each domain once"


def test_an_image_that_is_not_there_is_named(build: Any, domains: Path) -> None:
    (domains / "real" / "ant" / "0.jpg").unlink()
    benchmark = build(domains, domains=DOMAINS, n_experiences=1)
    with pytest.raises(DataError, match=r"0.jpg cannot be read \(No such file or directory\)"):
        list(benchmark.contents.entries(hashed=False))
