"""A test split that is drawn, and the hint where known data sets are to be had."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avalanche_peftcl.benchmarks import image_folder
from avalanche_peftcl.benchmarks.images.folders import draw_test
from avalanche_peftcl.benchmarks.images.homes import HOMES, where_to_get
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig

Write = Callable[..., None]
LAYOUT = (
    "expected root/{train,test}/class or root/domain/{train,test}/class (root/class or "
    "root/domain/class with test_share)"
)


@pytest.fixture
def build(input_config: InputConfig) -> Any:
    return lambda root, **options: image_folder(input_config=input_config, root=root, **options)


def paths(benchmark: Any, split: str) -> list[str]:
    return [e.path for e in benchmark.contents.entries(hashed=False) if e.split == split]


@given(st.integers(2, 60), st.floats(0.01, 0.99))
def test_every_image_is_on_one_side(n: int, share: float) -> None:
    train, test = draw_test(range(n), share, what="numbers")
    assert sorted(train + test) == list(range(n))
    assert train == sorted(train)
    assert test == sorted(test)
    assert abs(len(test) - n * share) <= 0.5 or min(len(train), len(test)) == 1
    assert (train, test) == draw_test(range(n), share, what="numbers")


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"^letters has 1 image; a test split needs at least 2$"):
        draw_test(["a"], 0.5, what="letters")


def test_classes_without_a_split(build: Any, tmp_path: Path, write_images: Write) -> None:
    for name, count in (("ant", 10), ("bee", 5)):
        write_images(tmp_path / name, count)
    benchmark = build(tmp_path, test_share=0.2, n_experiences=2, class_order=[0, 1])
    assert [len(e.dataset) for e in benchmark.train_stream] == [8, 4]
    assert [len(e.dataset) for e in benchmark.test_stream] == [2, 1]
    drawn = sorted(np.random.RandomState(0).permutation(10)[8:].tolist())
    assert paths(benchmark, "test")[:2] == [f"ant/{i}.png" for i in drawn]
    again = build(tmp_path, test_share=0.2, n_experiences=1, seed=9)
    assert paths(again, "train") == paths(benchmark, "train")


def test_domains_without_a_split(build: Any, tmp_path: Path, write_images: Write) -> None:
    for domain in ("photo", "art"):
        for name in ("ant", "bee"):
            write_images(tmp_path / domain / name, 4)
    benchmark = build(tmp_path, test_share=0.5, scenario="domain")
    assert benchmark.domains == ["art", "photo"]
    assert [len(e.dataset) for e in benchmark.test_stream] == [4, 4]
    tasks = build(tmp_path, test_share=0.5, scenario="task")
    assert tasks.class_names == ["art/ant", "art/bee", "photo/ant", "photo/bee"]


def test_a_split_that_is_there_is_not_drawn_anew(
    build: Any, tmp_path: Path, write_images: Write
) -> None:
    write_images(tmp_path / "flat" / "train" / "ant", 2)
    write_images(tmp_path / "domains" / "photo" / "test" / "ant", 2)
    write_images(tmp_path / "both" / "train" / "ant", 2)
    write_images(tmp_path / "both" / "test" / "ant", 2)
    flat, domain, both = tmp_path / "flat", tmp_path / "domains" / "photo", tmp_path / "both"
    told = "test_share draws a test split, but {} has one: there are folders of classes in "
    for root, place, said in (
        (flat, flat, f"train; put test beside it and leave test_share out, or give root={flat}/"),
        (domain.parent, domain, "test; put train beside it and leave test_share out"),
        (both, both, "test and train; leave test_share out"),
    ):
        with pytest.raises(ConfigError) as caught:
            build(root, test_share=0.2, n_experiences=1)
        assert str(caught.value).removesuffix("train") == told.format(place) + said


@pytest.mark.parametrize("domain", ["", "photo"])
def test_a_class_may_be_named_like_a_part_of_a_split(
    domain: str, build: Any, tmp_path: Path, write_images: Write
) -> None:
    for name in ("car", "test", "train"):
        write_images(tmp_path / "drawn" / domain / name, 2)
        for part in ("train", "test"):
            write_images(tmp_path / "split" / domain / part / name, 1)
    for root, options in (("drawn", {"test_share": 0.5}), ("split", {})):
        benchmark = build(tmp_path / root, n_experiences=1, **options)
        assert sorted(benchmark.class_names) == ["car", "test", "train"]
        assert [len(e.dataset) for e in benchmark.train_stream] == [3]


def test_a_domain_may_be_named_like_a_part_of_a_split(
    build: Any, tmp_path: Path, write_images: Write
) -> None:
    for domain in ("boat", "train"):
        for part in ("train", "test"):
            write_images(tmp_path / domain / part / "blue", 1)
    assert build(tmp_path, scenario="domain").domains == ["boat", "train"]


def test_a_class_of_one_image_is_named(build: Any, tmp_path: Path, write_images: Write) -> None:
    write_images(tmp_path / "ant", 1)
    with pytest.raises(DataError) as caught:
        build(tmp_path, test_share=0.2, n_experiences=1)
    assert str(caught.value) == (
        f"the class folder {tmp_path / 'ant'} has 1 image; a test split needs at least 2"
    )


def test_a_missing_folder_says_where_to_get_what_it_is_named_after(
    build: Any, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        build(tmp_path / "imagenet-r", n_experiences=10)
    assert str(caught.value) == (
        f"no folder {tmp_path / 'imagenet-r'}; {LAYOUT}; if this is to be ImageNet-R (200 classes)"
        ": it is at https://github.com/hendrycks/imagenet-r (it has class folders and no split: "
        "sort them into {train,test}, or give test_share=0.2)"
    )
    with pytest.raises(DataError) as caught:
        build(tmp_path / "cats", n_experiences=10)
    assert str(caught.value) == f"no folder {tmp_path / 'cats'}; {LAYOUT}"


def test_classes_that_still_have_to_be_split_get_the_hint(
    build: Any, tmp_path: Path, write_images: Write
) -> None:
    write_images(tmp_path / "Kvasir-v2" / "polyps", 3)
    with pytest.raises(DataError) as caught:
        build(tmp_path / "Kvasir-v2", n_experiences=4)
    assert str(caught.value) == (
        f"no folder {tmp_path / 'Kvasir-v2' / 'polyps' / 'train'}; {LAYOUT}; if this is to be "
        "Kvasir (8 classes): it is at https://datasets.simula.no/kvasir/ (it has class folders "
        "and no split: sort them into {train,test}, or give test_share=0.2)"
    )


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("imagenet-r", "imagenetr"),
        ("ImageNet_A", "imageneta"),
        ("domainnet", "domainnet"),
        ("omnibenchmark", "omnibenchmark"),
        ("vtab-cil", "vtab"),
        ("PlantVillage", "plantvillage"),
        ("kvasir", "kvasir"),
        ("notMNIST_small", "notmnist"),
    ],
)
def test_known_data_sets(name: str, key: str) -> None:
    home = HOMES[key]
    assert home.url in where_to_get(Path("data") / name / "train")
    assert home.title in where_to_get(Path(name))
    assert where_to_get(Path(name) / "a" / "b" / "c") == ""


def test_other_folders_have_no_hint() -> None:
    assert where_to_get(Path("data/imagenet")) == where_to_get(Path()) == ""
