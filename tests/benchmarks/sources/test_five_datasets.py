from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from avalanche_peftcl.benchmarks import ImageArray, five_datasets
from avalanche_peftcl.benchmarks.sources.download import Download
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig

NAMES = ["cifar10", "mnist", "fashion_mnist", "svhn", "notmnist"]
SEEN: list[tuple[str, Path | None, bool]] = []


@pytest.fixture
def build(
    tmp_path: Path,
    input_config: InputConfig,
    write_images: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """Give the downloaded sets two images a class; the grey value is 20 times the label."""

    def get(files: Download, root: Path | None, download: bool) -> Any:
        SEEN.append((files.name, root, download))
        pixels = np.repeat(np.arange(10, dtype=np.uint8) * 20, 2)[:, None, None]
        images = ImageArray(np.broadcast_to(pixels, (20, 4, 4)), [i // 2 for i in range(20)])
        return images, images, [f"kind {c}" for c in range(10)]

    monkeypatch.setattr(Download, "get", get)
    for letter in "ABCDEFGHIJ":
        write_images(tmp_path / "notMNIST_small" / letter, 5, mode="L")
    SEEN.clear()
    options = {"root": tmp_path, "download": False, "input_config": input_config}
    return lambda **more: five_datasets(**options | more)


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_each_data_set_is_an_experience(build: Any, tmp_path: Path, scenario: str) -> None:
    benchmark = build(scenario=scenario)
    assert [len(e.dataset) for e in benchmark.train_stream] == [20] * 4 + [40]
    assert [len(e.dataset) for e in benchmark.test_stream] == [20] * 4 + [10]
    classes = [sorted(e.classes_in_this_experience) for e in benchmark.train_stream]
    assert classes == [list(range(10 * e, 10 * e + 10)) for e in range(5)]
    assert benchmark.class_names[::10] == [f"{name}/kind 0" for name in NAMES[:-1]] + ["notmnist/A"]
    assert benchmark.class_names[-1] == "notmnist/J"
    folders = ["cifar10", "mnist", "fashionmnist", "svhn"]
    assert [(n, tmp_path / f, False) for n, f in zip(NAMES, folders, strict=False)] == SEEN
    for x, y, t in benchmark.test_stream[2].dataset:
        assert round(float(x.mean()) * 255) == 20 * (int(y) - 20)
        assert t == (2 if scenario == "task" else 0)
    paths = [e.path for e in benchmark.contents.entries(hashed=False)]
    assert paths[20] == "mnist/0"
    assert paths[80] == "notmnist/A/0.png"


def test_order(build: Any) -> None:
    order = ["svhn", "mnist", "cifar10", "notmnist", "fashion_mnist"]
    benchmark = build(order=order)
    assert [name.split("/")[0] for name in benchmark.class_names[::10]] == order
    assert [len(e.dataset) for e in benchmark.train_stream] == [20, 20, 20, 40, 20]


@pytest.mark.parametrize("order", [NAMES[:4], [*NAMES, "mnist"]])
def test_an_order_must_name_each_once(build: Any, order: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(order=order)
    assert str(caught.value) == f"order={order} does not name each of the five once: {NAMES}"


def test_notmnist_is_said_where_to_get(build: Any, tmp_path: Path) -> None:
    way_out = (
        "not A to J: notMNIST (letters A to J) is not downloaded; it is at "
        "http://yaroslavvb.blogspot.com/2011/09/notmnist-dataset.html "
        "(unpack notMNIST_small.tar.gz to notMNIST_small/{A,B,...,J})"
    )
    folder = tmp_path / "notMNIST_small"
    (folder / "J").rename(folder / "K")
    with pytest.raises(DataError) as caught:
        build()
    letters = [*"ABCDEFGHIK"]
    assert str(caught.value) == f"{folder} has the folders {letters}, {way_out}"
    folder.rename(tmp_path / "letters")
    with pytest.raises(DataError) as caught:
        build()
    assert str(caught.value) == f"{folder} has no folders, {way_out}"


def test_the_two_broken_files_of_notmnist_are_left_out(build: Any, tmp_path: Path) -> None:
    for file in (
        "A/RGVtb2NyYXRpY2FCb2xkT2xkc3R5bGUgQm9sZC50dGY=.png",
        "F/Q3Jvc3NvdmVyIEJvbGRPYmxpcXVlLnR0Zg==.png",
    ):
        (tmp_path / "notMNIST_small" / file).write_bytes(b"no image")
    benchmark = build()
    assert [len(e.dataset) for e in benchmark.train_stream] == [20] * 4 + [40]
    assert len(list(benchmark.test_stream[4].dataset)) == 10


def test_without_a_root_the_data_folder_of_avalanche_is_taken(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("avalanche_peftcl.benchmarks.sources.five_datasets")
    monkeypatch.setattr(module, "default_dataset_location", lambda name: tmp_path / "data" / name)
    (tmp_path / "data" / "notmnist").mkdir(parents=True)
    (tmp_path / "notMNIST_small").rename(tmp_path / "data" / "notmnist" / "notMNIST_small")
    assert len(build(root=None).train_stream) == 5
    assert [root for _, root, _ in SEEN] == [None] * 4
