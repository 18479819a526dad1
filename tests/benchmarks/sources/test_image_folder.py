import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from avalanche_peftcl.benchmarks import ImageFiles, image_folder
from avalanche_peftcl.benchmarks.images.datasets import read_image
from avalanche_peftcl.benchmarks.images.folders import subfolders
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig

Write = Callable[..., None]


@pytest.fixture
def flat(tmp_path: Path, write_images: Write) -> Path:
    for name, mode, ending in (("ant", "L", "png"), ("bee", "RGB", "jpg"), ("cow", "P", "png")):
        write_images(tmp_path / "train" / name, 3, mode=mode, ending=ending)
        write_images(tmp_path / "test" / name, 2, mode=mode, ending=ending)
    return tmp_path


@pytest.fixture
def domains(tmp_path: Path, write_images: Write) -> Path:
    for domain, names in (("photo", "ab"), ("art", "abc"), ("sketch", "bc")):
        for name in names:
            write_images(tmp_path / domain / "train" / name, 2, mode="1")
            write_images(tmp_path / domain / "test" / name, 1)
    return tmp_path


@pytest.fixture
def build(input_config: InputConfig) -> Any:
    return lambda root, **options: image_folder(input_config=input_config, root=root, **options)


def sizes(stream: Any) -> list[tuple[int, int]]:
    return [(len(e.classes_in_this_experience), len(e.dataset)) for e in stream]


@pytest.mark.parametrize("scenario", ["class", "task", "online"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_classes_by_folder(build: Any, flat: Path, scenario: str, in_memory: bool) -> None:
    benchmark = build(
        flat, scenario=scenario, n_experiences=3, class_order=[2, 0, 1], in_memory=in_memory
    )
    assert benchmark.class_names == ["cow", "ant", "bee"]
    assert sizes(benchmark.test_stream) == [(1, 2)] * 3
    if scenario != "online":
        assert sizes(benchmark.train_stream) == [(1, 3)] * 3
    x, y, t = next(iter(DataLoader(benchmark.test_stream[1].dataset, batch_size=2)))
    assert x.shape == (2, 3, 8, 8)
    assert y.tolist() == [1, 1]
    assert t.tolist() == ([1, 1] if scenario == "task" else [0, 0])


def test_other_and_hidden_files_are_left_out(build: Any, flat: Path) -> None:
    (flat / "train" / "ant" / "notes.txt").write_text("no image")
    (flat / "train" / "ant" / ".hidden.png").write_text("no image")
    (flat / "train" / ".cache").mkdir()
    assert sizes(build(flat, n_experiences=1).train_stream) == [(3, 9)]


@pytest.mark.parametrize("link", ["train/ant/9.png", "train/zebra"])
def test_a_link_to_nothing_is_named(build: Any, flat: Path, link: str) -> None:
    (flat / link).symlink_to(flat / "gone")
    (flat / "train" / "ant" / ".#lock").symlink_to("hidden")
    with pytest.raises(DataError) as caught:
        build(flat, n_experiences=1)
    assert str(caught.value) == (
        f"{flat / link} is a link to what is not there; mend it or take it out"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_names_that_are_no_text(build: Any, domains: Path) -> None:
    for part in ("train", "test"):
        folder = domains / "art" / part
        os.rename(folder / "a", os.fsencode(folder) + b"/caf\xe9")
    os.rename(domains / "art", os.fsencode(domains) + b"/\xe4rt")
    benchmark = build(domains, scenario="task")
    assert benchmark.domains == ["\\udce4rt", "photo", "sketch"]
    assert benchmark.class_names[2] == "\\udce4rt/caf\\udce9"
    for entry in benchmark.contents.entries(hashed=True):
        "".join(entry[:4]).encode()


def test_domain_order_may_be_spelt_as_on_another_system(build: Any, domains: Path) -> None:
    (domains / "art").rename(domains / "e\u0301")
    benchmark = build(domains, scenario="domain", domain_order=["sketch", "\u00e9", "photo"])
    assert benchmark.domains == ["sketch", "\u00e9", "photo"]


def test_domain_scenario(build: Any, domains: Path) -> None:
    benchmark = build(domains, scenario="domain")
    assert benchmark.domains == ["art", "photo", "sketch"]
    assert sizes(benchmark.train_stream) == [(3, 6), (2, 4), (2, 4)]
    assert benchmark.class_names == ["a", "b", "c"]
    turned = build(domains, scenario="domain", domain_order=["photo", "sketch", "art"])
    assert turned.domains == ["photo", "sketch", "art"]
    assert sizes(turned.test_stream) == [(2, 2), (2, 2), (3, 3)]


def test_domains_joined(build: Any, domains: Path) -> None:
    benchmark = build(domains, n_experiences=3, class_order=[0, 1, 2])
    assert sizes(benchmark.train_stream) == [(1, 4), (1, 6), (1, 4)]
    assert benchmark.domains is None
    joined = build(domains, scenario="task", own_classes=False, n_experiences=3)
    assert joined.n_classes == 3


def test_each_domain_is_a_task_with_its_own_classes(build: Any, domains: Path) -> None:
    benchmark = build(domains, scenario="task")
    assert sizes(benchmark.train_stream) == [(3, 6), (2, 4), (2, 4)]
    assert [e.task_label for e in benchmark.test_stream] == [0, 1, 2]
    assert benchmark.domains == ["art", "photo", "sketch"]
    assert benchmark.class_names == [
        *["art/a", "art/b", "art/c", "photo/a", "photo/b", "sketch/b", "sketch/c"]
    ]
    assert [e.classes_in_this_experience for e in benchmark.test_stream][1:] == [[3, 4], [5, 6]]


def test_own_classes_in_the_class_scenario(build: Any, domains: Path) -> None:
    benchmark = build(domains, own_classes=True, classes_per_experience=[4, 3])
    assert benchmark.n_classes == 7
    assert [c for c, _ in sizes(benchmark.test_stream)] == [4, 3]


def test_a_class_with_one_image(build: Any, tmp_path: Path, write_images: Write) -> None:
    for part in ("train", "test"):
        for name, count in (("a", 1), ("b", 2)):
            write_images(tmp_path / part / name, count)
    assert sorted(sizes(build(tmp_path, n_experiences=2).train_stream)) == [(1, 1), (1, 2)]


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("content", [b"no image", b""])
def test_unreadable_image_is_named(build: Any, flat: Path, in_memory: bool, content: bytes) -> None:
    broken = flat / "train" / "bee" / "1.jpg"
    broken.write_bytes(content)
    with pytest.raises(DataError, match=f"{broken} cannot be decoded as an image"):
        [list(e.dataset) for e in build(flat, n_experiences=1, in_memory=in_memory).train_stream]


def test_truncated_image_is_named_from_a_worker_too(flat: Path) -> None:
    broken = flat / "train" / "ant" / "0.png"
    broken.write_bytes(broken.read_bytes()[:-40])
    loader = DataLoader(ImageFiles([broken], [0]), num_workers=1)
    with pytest.raises(DataError, match=f"{broken} cannot be decoded as an image"):
        next(iter(loader))


def test_more_than_8_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep.png has more than 8 bits a channel"):
        read_image(tmp_path / "deep.png")


def test_missing_folders_are_named(build: Any, flat: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no folder {tmp_path / 'nowhere'}; expected"):
        build(tmp_path / "nowhere", n_experiences=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty has no folders; expected"):
        build(tmp_path / "empty", n_experiences=1)
    (flat / "test").rename(flat / "validation")
    with pytest.raises(DataError, match=f"no folder {flat / 'test'}; expected"):
        build(flat, n_experiences=1)


@pytest.mark.parametrize(("lacking", "there"), [("test", "train"), ("train", "test")])
def test_class_folder_of_one_part_only(build: Any, flat: Path, lacking: str, there: str) -> None:
    for path in (flat / lacking / "bee").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=f"{flat / lacking / 'bee'} has no images"):
        build(flat, n_experiences=1)
    (flat / lacking / "bee").rmdir()
    with pytest.raises(
        DataError, match=rf"'bee' of {flat / there} has no images in {flat / lacking}"
    ):
        build(flat, n_experiences=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "domain"}, "use scenario 'class', 'task' or 'online'"),
        ({"n_experiences": 1, "domain_order": ["a"]}, "has no domain folders"),
        ({"n_experiences": 1, "own_classes": True}, "own_classes=True makes no sense"),
    ],
)
def test_options_that_need_domains(
    build: Any, flat: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(flat, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "task", "n_experiences": 3}, "n_experiences=3: each of the 3 domains"),
        ({"scenario": "task", "class_order": [0]}, "class_order=.*: each of the 3 domains"),
        ({"scenario": "domain", "own_classes": True}, "scenario is 'domain'"),
        ({"scenario": "domain", "domain_order": ["art"]}, "does not name each of the domains"),
    ],
)
def test_options_against_domains(
    build: Any, domains: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(domains, **options)


@pytest.mark.slow
def test_real_images(shared_data: Path, input_config: InputConfig) -> None:
    def build(name: str, **options: Any) -> Any:
        return image_folder(input_config=input_config, root=shared_data / name, **options)

    assert sizes(build("cifar10", n_experiences=5).train_stream) == [(2, 1000)] * 5
    assert sizes(build("tiny_imagenet", n_experiences=10).test_stream) == [(5, 100)] * 10
    assert sizes(build("pacs", scenario="domain").test_stream) == [(7, 105)] * 4
    omniglot = build("omniglot", scenario="task")
    assert [c for c, _ in sizes(omniglot.test_stream)] == [24, 22, 24, 40, 26]
    x, y, t = omniglot.test_stream[1].dataset[0]
    assert (x.shape, y, t) == ((3, 8, 8), 24, 1)


def test_two_spellings_of_one_name_are_no_two_classes(tmp_path):
    for part in ("train", "test"):
        for name in ("caf\u00e9", "cafe\u0301"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / "0.png")
    with pytest.raises(DataError, match=r"has two folders named 'café', with accents"):
        subfolders(tmp_path / "train")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("train/0.png", "lies in no class folder; put it into one or take it out"),
        ("test/bee/more/0.png", "does not lie in the class folder .*bee itself; put it there or"),
    ],
)
def test_no_image_is_passed_over(build, flat, place, said):
    stray = flat / place
    stray.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(stray)
    with pytest.raises(DataError, match=said):
        build(flat, n_experiences=3)
    stray.rename(stray.with_suffix(".txt"))  # what is no image may lie about
    assert len(build(flat, n_experiences=3).train_stream) == 3


def test_a_picture_beside_the_classes_of_a_whole_data_set_is_none_of_it(
    build, tmp_path, write_images
):
    for name in ("ant", "bee"):
        write_images(tmp_path / name, 5)
    Image.new("RGB", (4, 4)).save(tmp_path / "overview.png")
    assert len(build(tmp_path, n_experiences=2, test_share=0.2).train_stream) == 2


@pytest.mark.parametrize("scenario", ["class", "online"])
def test_domains_without_a_word_of_them_are_told(build: Any, domains: Path, scenario: str) -> None:
    words = f"has the domains art, photo, sketch: take scenario='domain' .*{scenario!r} joins them"
    with pytest.raises(ConfigError, match=words):
        build(domains, scenario=scenario)
    assert len(build(domains, scenario=scenario, n_experiences=3).train_stream) >= 3
