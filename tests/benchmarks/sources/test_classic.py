import gzip
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100

from avalanche_peftcl import benchmarks
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig

NAMES = ["mnist", "fashion_mnist", "svhn", "cifar10", "cifar100", "tiny_imagenet", "cub200"]
NAMES += ["oxford_pets", "eurosat"]


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


def write_svhn(root: Path) -> None:
    for part, count in (("train", 20), ("test", 10)):
        labels = np.arange(1, count + 1) % 10  # the digit 0 has the label 10
        grey = np.broadcast_to(labels * 20, (32, 32, 3, count)) + np.array([1, 0, -1])[:, None]
        content = {"X": grey.clip(0).astype(np.uint8), "y": np.where(labels, labels, 10)[:, None]}
        savemat(root / f"{part}_32x32.mat", content)


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
        return getattr(benchmarks, name)(input_config=input_config, **options)

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


def test_oxford_pets_files(build: Any, tmp_path: Path) -> None:
    root = tmp_path / "oxford-iiit-pet"
    (root / "annotations").mkdir(parents=True)
    breeds = [f"breed_{c:02}" for c in reversed(range(37))]  # labels are not sorted by name
    for part, count in (("trainval", 2), ("test", 1)):
        rows = ""
        for c, breed in enumerate(breeds):
            for i in range(count):
                save_grey(root / "images" / f"{breed}_{part}{i}.jpg", 3 * c)
                rows += f"{breed}_{part}{i} {c + 1} 1 1\n"
        (root / "annotations" / f"{part}.txt").write_text(rows)
    benchmark = build("oxford_pets")
    assert [len(e.dataset) for e in benchmark.train_stream] == [14, 10, 10, 10, 10, 10, 10]
    assert [len(e.dataset) for e in benchmark.test_stream] == [7, 5, 5, 5, 5, 5, 5]
    assert benchmark.class_names == [f"Breed {36 - c:02}" for c in benchmark.class_order]
    names = [e.path for e in benchmark.contents.entries(hashed=False)]
    assert names[0] == "oxford-iiit-pet/images/breed_36_trainval0.jpg"
    read_labels(benchmark, 3)


def test_eurosat_files_are_split_in_the_same_way_for_every_seed(build: Any, tmp_path: Path) -> None:
    kinds = [f"Kind{c}" for c in range(10)]
    for c, kind in enumerate(kinds):
        for i in range(10):
            save_grey(tmp_path / "eurosat" / "2750" / kind / f"{kind}_{i}.jpg", 20 * c)
    benchmark = build("eurosat")
    assert [len(e.dataset) for e in benchmark.train_stream] == [16] * 5
    assert [len(e.dataset) for e in benchmark.test_stream] == [4] * 5
    assert benchmark.class_names == [kinds[c] for c in benchmark.class_order]
    read_labels(benchmark, 20)
    expected = np.random.RandomState(0).permutation(10)[8:]
    tested = {e.path for e in benchmark.contents.entries(hashed=False) if e.split == "test"}
    assert tested == {f"eurosat/2750/{kind}/{kind}_{i}.jpg" for kind in kinds for i in expected}
    other = build("eurosat", seed=7).contents
    assert list(other.entries(hashed=False)) == list(benchmark.contents.entries(hashed=False))


def test_svhn_files(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    write_svhn(tmp_path)
    benchmark = build("svhn")
    assert [len(e.dataset) for e in benchmark.train_stream] == [4] * 5
    assert benchmark.class_names == [str(c) for c in benchmark.class_order]
    read_labels(benchmark, 20)
    pixels = benchmark.contents.train.images
    assert pixels.shape == (20, 32, 32, 3)
    assert pixels[0, 0, 0].tolist() == [21, 20, 19]  # red, green, blue


@pytest.mark.parametrize("name", NAMES)
def test_missing_files_name_the_way_out(
    build: Any, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError) as caught:
        build(name)
    assert str(caught.value).startswith(f"{name} could not be read from {tmp_path} (")
    assert "into that folder, with download=False" in str(caught.value)
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
        "folder cifar-10-batches-py of cifar-10-python.tar.gz into that folder, with download=False"
    )


def test_without_a_root_it_is_said_how_to_give_one(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "avalanche_peftcl.benchmarks.sources.download.default_dataset_location", lambda _: tmp_path
    )
    with pytest.raises(DataError, match="into a folder given as root=, with download=False"):
        build("cifar10", root=None)


def test_domains_are_refused(build: Any, tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST")
    with pytest.raises(ConfigError, match="use scenario 'class', 'task' or 'online'"):
        build("mnist", scenario="domain", n_experiences=None)


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_the_schema(name: str) -> None:
    builder = getattr(benchmarks, name)
    parameters = inspect.signature(builder).parameters
    assert builder.__name__ == name
    assert builder.__doc__.startswith("Make a benchmark from ")
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert [p for p in parameters if f"    {p}: " not in builder.__doc__] == []
    expected = "none" if name in ("mnist", "fashion_mnist", "svhn") else "random_resized_crop"
    assert parameters["augment"].default == expected
