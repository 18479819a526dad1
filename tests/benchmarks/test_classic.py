import gzip
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from avalanche_peftcl.benchmarks import classic
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbone import InputConfig

NAMES = ["mnist", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet", "cub200", "core50"]


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def write_mnist(root: Path, name: str) -> None:
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 30), ("t10k", 20)):
        labels = np.arange(count) % 10
        pixels = np.broadcast_to(labels[:, None, None] * 20, (count, 28, 28))
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels)
        write_idx(raw / f"{part}-labels-idx1-ubyte", labels)
        for path in raw.glob(f"{part}*ubyte"):  # torchvision looks for the archives' names, too
            path.with_suffix(".gz").write_bytes(gzip.compress(b""))


def write_cifar(root: Path, dataset: Any, n_classes: int, key: str, names_key: str) -> None:
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    labels = list(range(n_classes))
    pixels = np.broadcast_to(np.array(labels, np.uint8)[:, None] * 2, (n_classes, 3072))
    for name, _ in dataset.train_list + dataset.test_list:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, key: labels}))
    meta = {names_key: [f"name{c}" for c in labels]}
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps(meta))


def save_grey(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (value,) * 3).save(path)


def read_labels(benchmark: Any, scale: float) -> None:
    """Assert that each image's grey value is its original label times ``scale``."""
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for experience in stream:
            for x, y, _ in experience.dataset.eval():
                value = float(x.mean()) * 255
                assert abs(value - scale * benchmark.class_order[int(y)]) < 1.5


@pytest.fixture
def build(tmp_path: Path, input_config: InputConfig) -> Callable[..., Any]:
    def build(name: str, **options: Any) -> Any:
        options = {"root": tmp_path, "download": False, "augment": "none"} | options
        return getattr(classic, name)(input_config=input_config, **options)

    return build


@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")]
)
def test_idx_files(build: Any, tmp_path: Path, name: str, folder: str) -> None:
    write_mnist(tmp_path, folder)
    benchmark = build(name)
    assert [len(e.dataset) for e in benchmark.train_stream] == [6] * 5
    read_labels(benchmark, 20)


@pytest.mark.parametrize(
    ("name", "dataset", "n_classes", "key", "names_key", "length"),
    [
        ("cifar10", CIFAR10, 10, "labels", "label_names", 5),
        ("cifar100", CIFAR100, 100, "fine_labels", "fine_label_names", 10),
    ],
)
def test_cifar_batches(
    build: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    dataset: Any,
    n_classes: int,
    key: str,
    names_key: str,
    length: int,
) -> None:
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    write_cifar(tmp_path, dataset, n_classes, key, names_key)
    benchmark = build(name)
    assert len(benchmark.train_stream) == length
    assert benchmark.class_names == [f"name{c}" for c in benchmark.class_order]
    read_labels(benchmark, 2)


def test_cifar_files_of_another_checksum_are_refused(build: Any, tmp_path: Path) -> None:
    write_cifar(tmp_path, CIFAR10, 10, "labels", "label_names")
    with pytest.raises(DataError, match=r"cifar10 could not be read from .*corrupted"):
        build("cifar10")


def test_tiny_imagenet_files(build: Any, tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    wnids = [f"n{c:03}" for c in reversed(range(200))]
    annotations = ""
    for c, wnid in enumerate(wnids):
        save_grey(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", c)
        save_grey(root / "val" / "images" / f"val_{c}.JPEG", c)
        annotations += f"val_{c}.JPEG\t{wnid}\t0\t0\t9\t9\n"
    (root / "wnids.txt").write_text("\n".join(wnids) + "\n")
    (root / "val" / "val_annotations.txt").write_text(annotations)
    benchmark = build("tiny_imagenet", scenario="task")
    assert [e.task_label for e in benchmark.train_stream] == list(range(10))
    assert benchmark.class_names == [wnids[c] for c in benchmark.class_order]
    read_labels(benchmark, 1)


def test_cub200_files(build: Any, tmp_path: Path) -> None:
    root = tmp_path / "CUB_200_2011"
    tables: dict[str, str] = dict.fromkeys(
        ["images", "train_test_split", "image_class_labels", "bounding_boxes"], ""
    )
    for i in range(400):
        c, path = i // 2, f"{i // 2 + 1:03}.Bird_{i // 2}/bird_{i}.jpg"
        save_grey(root / "images" / path, c)
        tables["images"] += f"{i + 1} {path}\n"
        tables["train_test_split"] += f"{i + 1} {i % 2}\n"
        tables["image_class_labels"] += f"{i + 1} {c + 1}\n"
        tables["bounding_boxes"] += f"{i + 1} 1.0 1.0 3.0 3.0\n"
    for name, text in tables.items():
        (root / f"{name}.txt").write_text(text)
    benchmark = build("cub200", classes_per_experience=[100, 60, 40])
    assert [len(e.dataset) for e in benchmark.train_stream] == [100, 60, 40]
    names = [f"{c + 1:03}.Bird_{c}" for c in benchmark.class_order]
    assert benchmark.class_names == names
    read_labels(benchmark, 1)


def test_core50_files(build: Any, tmp_path: Path) -> None:
    paths = [f"s{s}/o{o + 1}/C_{s:02}_{o + 1:02}.png" for s in range(1, 10) for o in range(50)]
    for i, path in enumerate(paths):
        save_grey(tmp_path / "core50_128x128" / path, i % 50)
    for folder in ("batches_filelists", "NIC_v2_79_cat"):
        (tmp_path / folder).mkdir()
    batches = [list(range(50 * s, 50 * s + 50)) for s in range(9)]  # the last is the test
    files = {
        "paths": paths,
        "labels": {"ni": [[[i % 50 for i in batch] for batch in batches]]},
        "LUP": {"ni": [batches]},
        "labels2names": {},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content))
    benchmark = build("core50")
    assert [len(e.dataset) for e in benchmark.train_stream] == [40] * 10
    assert [len(e.dataset) for e in benchmark.test_stream] == [5] * 10
    assert benchmark.class_names == [f"o{c + 1}" for c in benchmark.class_order]
    read_labels(benchmark, 1)


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_name_the_way_out(
    build: Any, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError) as caught:
        build(name)
    assert str(caught.value).startswith(f"{name} could not be read from {tmp_path} (")
    assert "into a folder and give it as root=, with download=False" in str(caught.value)
    assert capsys.readouterr().out == ""


def test_failed_download_names_the_way_out(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(DataError) as caught:
        build("cifar10", download=True)
    assert str(caught.value) == (
        f"cifar10 could not be downloaded to {tmp_path} (OSError: no route to host); put the "
        "folder cifar-10-batches-py of cifar-10-python.tar.gz into a folder and give it as "
        "root=, with download=False"
    )


def test_domains_are_refused(build: Any, tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    with pytest.raises(ConfigError, match="use scenario 'class', 'task' or 'online'"):
        build("mnist", scenario="domain", n_experiences=None)


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_the_schema(name: str) -> None:
    builder = getattr(classic, name)
    parameters = inspect.signature(builder).parameters
    assert builder.__name__ == name
    assert builder.__doc__.startswith("Make a benchmark from ")
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert [p for p in parameters if f"    {p}: " not in builder.__doc__] == []
    expected = "none" if "mnist" in name else "random_resized_crop"
    assert parameters["augment"].default == expected
