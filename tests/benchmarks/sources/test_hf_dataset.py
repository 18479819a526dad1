"""Data sets that the library ``datasets`` reads, from this machine; nothing is fetched."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from avalanche_peftcl.benchmarks import hf_dataset
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.testing import BenchmarkContract

NAMES = ["ant", "bee", "cow", "dog"]
CLASS = datasets.ClassLabel(names=NAMES)


@pytest.fixture(autouse=True)
def quiet(tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the library's copies out of the cache of whoever runs this, and it off the net."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def build(input_config: InputConfig) -> Any:
    return lambda dataset, **options: hf_dataset(
        input_config=input_config, dataset=str(dataset), augment="none", **options
    )


def encoded(shade: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(file, "png")
    return file.getvalue()


def table(labels: list[Any], *, image: str = "image", feature: Any = CLASS, **more: Any) -> Any:
    """Return a data set whose images are as bright as their rows are far down."""
    columns = {"label": labels} | {name: values for name, (values, _) in more.items()}
    columns[image] = [{"bytes": encoded(i), "path": None} for i in range(len(labels))]
    features = {"label": feature} | {name: feature for name, (_, feature) in more.items()}
    features = datasets.Features(features | {image: datasets.Image()})
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A folder as the Hub has it: four classes, two training images and a test image each."""
    folder = tmp_path / "shapes" / "data"
    folder.mkdir(parents=True)
    table([0, 1, 2, 3] * 2).to_parquet(folder / "train-00000-of-00001.parquet")
    table([3, 2, 1, 0]).to_parquet(folder / "test-00000-of-00001.parquet")
    return tmp_path / "shapes"


def shades(experience: Any) -> list[int]:
    return [round(float(x.mean()) * 255) for x, *_ in experience.dataset]


def test_parquet_files_make_a_stream(build: Any, parquet: Path) -> None:
    benchmark = build(parquet, n_experiences=2, class_order="natural")
    assert benchmark.class_names == NAMES
    assert [shades(e) for e in benchmark.train_stream] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [shades(e) for e in benchmark.test_stream] == [[2, 3], [0, 1]]
    assert [int(y) for _, y, _ in benchmark.test_stream[0].dataset] == [1, 0]
    entries = list(benchmark.contents.entries(hashed=True))
    assert entries[4][:4] == ("train", "", "ant", "train/4")
    assert entries[4].size == len(encoded(4))
    assert entries[-1].path == "test/3"
    assert len({entry.sha256 for entry in entries}) == 8


def test_folders_of_images_make_one(build: Any, tmp_path: Path, write_images: Any) -> None:
    for part, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            write_images(tmp_path / "pets" / part / name, count)
    benchmark = build(tmp_path / "pets", n_experiences=2, class_order=[1, 0])
    assert benchmark.class_names == ["dog", "cat"]
    assert [len(e.dataset) for e in benchmark.train_stream] == [3, 3]
    sizes = {entry.size for entry in benchmark.contents.entries(hashed=False)}
    assert sizes <= {path.stat().st_size for path in tmp_path.rglob("*.png")}
    (tmp_path / "pets" / "test" / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.png cannot be read"):
        _ = benchmark.test_stream[1].dataset[0]


def test_a_test_is_drawn_from_one_file_and_columns_are_found(build: Any, tmp_path: Path) -> None:
    file = tmp_path / "all.parquet"
    table([20, 10] * 5, image="img", feature=datasets.Value("int64")).to_parquet(file)
    benchmark = build(file, test_share=0.2, n_experiences=2, class_order="natural")
    assert benchmark.class_names == ["10", "20"]  # numbers need not begin at 0
    assert [len(e.dataset) for e in benchmark.train_stream] == [4, 4]
    trained, tested = (
        [s for e in stream for s in shades(e)]
        for stream in (benchmark.train_stream, benchmark.test_stream)
    )
    assert sorted(trained + tested) == list(range(10))
    drawn = benchmark.contents.entries(hashed=False)
    assert {entry.path for entry in drawn} == {f"train/{i}" for i in range(10)}


def test_domains_are_experiences_in_the_order_asked_for(build: Any, tmp_path: Path) -> None:
    styles = ["photo", "sketch"] * 4
    rows = table([0, 0, 1, 1] * 2, style=(styles, datasets.Value("string")))
    datasets.DatasetDict(training=rows, held=rows).save_to_disk(tmp_path / "saved")
    splits = {"train_split": "training", "test_split": "held", "domain": "style"}
    with pytest.raises(DataError, match=r"classes without training images: \['cow', 'dog'\]"):
        build(tmp_path / "saved", scenario="domain", **splits)
    rows = rows.cast_column("label", datasets.ClassLabel(names=NAMES[:2]))
    datasets.DatasetDict(training=rows, held=rows).save_to_disk(tmp_path / "two")
    order = {"domain_order": ["sketch", "photo"]}
    benchmark = build(tmp_path / "two", scenario="domain", **splits, **order)
    assert benchmark.domains == ["sketch", "photo"]
    assert [shades(e) for e in benchmark.train_stream] == [[1, 3, 5, 7], [0, 2, 4, 6]]
    with pytest.raises(ConfigError, match="does not name each of the domains once"):
        build(tmp_path / "two", scenario="domain", **splits, domain_order=["photo"])
    with pytest.raises(ConfigError, match=r"domains need the column .* are 'label', 'style', 'im"):
        build(tmp_path / "two", scenario="domain", train_split="training", test_split="held")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"test_split": "tests"}, DataError, r"no split 'tests' \(did you mean 'test'\?\), it has"),
        ({"image": "label"}, ConfigError, "the column 'label' holds no images"),
        ({"label": "lable"}, ConfigError, r"label='lable' is no column \(did you mean 'label'\?\)"),
        ({"domain": "no"}, ConfigError, "domain='no' is no column; the columns are"),
        ({"revision": "main"}, ConfigError, "revision='main' is for the Hub"),
        ({"subset": "no"}, DataError, "cannot be loaded: "),
        ({"n_experiences": 3}, DataError, "4 classes do not divide into 3 experiences"),
    ],
)
def test_what_does_not_fit_is_told(
    build: Any, parquet: Path, options: Any, error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        build(parquet, **{"n_experiences": 2} | options)


def test_rows_and_columns_that_say_nothing_are_told(build: Any, tmp_path: Path) -> None:
    def saved(**splits: Any) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        datasets.DatasetDict(splits).save_to_disk(folder)
        return folder

    rows = table([0, 1, 2, 3])
    hidden = saved(train=rows, test=table([-1] * 4))
    with pytest.raises(DataError, match=r"row 0 of split 'test' has -1 .* are not given away"):
        build(hidden, n_experiences=2)
    both = rows.rename_column("label", "fine").add_column("coarse", [0] * 4)
    both = both.cast_column("coarse", CLASS)
    with pytest.raises(DataError, match=r"has the label\? 'fine', 'coarse' may each be meant"):
        build(saved(train=both, test=both), n_experiences=2)
    with pytest.raises(DataError, match=r"has the image\? none is named so; say so with image: N"):
        build(saved(train=rows.remove_columns("image")), test_share=0.5, n_experiences=2)
    unlabelled = saved(train=rows, test=rows.remove_columns("label"))
    with pytest.raises(DataError, match="split 'test' has no column 'label'"):
        build(unlabelled, n_experiences=2)
    broken = rows.map(lambda _: {"image": {"bytes": b"no image", "path": None}})
    benchmark = build(saved(train=rows, test=broken), n_experiences=2)
    with pytest.raises(DataError, match=r"row \d of split 'test' cannot be decoded as an image"):
        _ = benchmark.test_stream[0].dataset[0]


def test_nothing_is_fetched_unasked(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no folder or file 'owner/name', and download=False"):
        build("owner/name", download=False, n_experiences=2)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'avalanche-peftcl\[datasets\]'"):
        build("owner/name", n_experiences=2)


class TestContract(BenchmarkContract):
    @pytest.fixture(autouse=True)
    def files(self, parquet: Path) -> None:
        self.folder = parquet

    def create_benchmark(self, input_config: InputConfig, *, seed: int) -> Any:
        return hf_dataset(
            input_config=input_config, dataset=str(self.folder), n_experiences=2, seed=seed
        )
