import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_peftcl.benchmarks import core50
from avalanche_peftcl.errors import ConfigError, DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig

SESSIONS = [1, 2, 4, 5, 6, 8, 9, 11]
NAMES = [f"s{number}" for number in SESSIONS]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write an image of each object in each training session and in session 3, the test."""
    paths = [
        f"s{s}/o{o + 1}/C_{s:02}_{o + 1:02}.png" for s in [11, *SESSIONS[:-1], 3] for o in range(50)
    ]
    for i, path in enumerate(paths):
        file = tmp_path / "core50_128x128" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (i % 50,) * 3).save(file)
    batches = [list(range(50 * s, 50 * s + 50)) for s in range(9)]  # the last is the test
    files = {
        "paths": paths,
        "labels": {"ni": [[[i % 50 for i in batch] for batch in batches]]},
        "LUP": {"ni": [batches]},
    }
    for name, content in files.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content))
    return tmp_path


@pytest.fixture
def build(root: Path, input_config: InputConfig) -> Any:
    options = {"root": root, "download": False, "augment": "none", "input_config": input_config}
    return lambda **more: core50(**options | more)


def check_labels(benchmark: Any) -> None:
    """Assert that each image's grey value is its original label."""
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for experience in stream:
            for x, y, _ in experience.dataset.eval():
                assert abs(float(x.mean()) * 255 - benchmark.class_order[int(y)]) < 0.5


def test_by_classes(build: Any) -> None:
    benchmark = build()
    assert [len(e.dataset) for e in benchmark.train_stream] == [40] * 10
    assert [len(e.dataset) for e in benchmark.test_stream] == [5] * 10
    assert benchmark.class_names == [f"o{c + 1}" for c in benchmark.class_order]
    assert benchmark.domains is None
    check_labels(benchmark)


def test_session_by_session_with_one_test(build: Any) -> None:
    benchmark = build(scenario="domain")
    assert benchmark.domains == NAMES
    assert [len(e.dataset) for e in benchmark.train_stream] == [50] * 8
    assert [len(e.dataset) for e in benchmark.test_stream] == [50]
    assert benchmark.class_order == list(range(50))
    check_labels(benchmark)
    entries = list(benchmark.contents.entries(hashed=False))
    assert entries[0][:4] == ("train", "s11", "o1", "core50_128x128/s11/o1/C_11_01.png")
    assert entries[-1][:4] == ("test", "", "o50", "core50_128x128/s3/o50/C_03_50.png")
    assert list(build().contents.entries(hashed=False)) == entries


def test_order_of_the_sessions(build: Any) -> None:
    order = NAMES[::-1]
    benchmark = build(scenario="domain", domain_order=order)
    assert benchmark.domains == order
    straight = build(scenario="domain").train_stream[0].dataset
    assert torch.equal(benchmark.train_stream[7].dataset[0][0], straight[0][0])


def test_held_out_images_are_those_of_an_object_in_a_session(build: Any) -> None:
    with pytest.raises(DataError, match="nothing to train on: o1 in domain s1 has 1 training"):
        build(scenario="domain", validation_per_class=1)


def test_wrong_orders_are_refused(build: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        build(scenario="domain", domain_order=["s1"])
    assert str(caught.value) == (f"domain_order=['s1'] does not name each session once: {NAMES}")
    with pytest.raises(ConfigError) as caught:
        build(domain_order=NAMES)
    assert str(caught.value) == (
        f"domain_order={NAMES} orders the sessions of scenario 'domain'; leave it out"
    )


def test_missing_files_name_the_way_out(tmp_path: Path, input_config: InputConfig) -> None:
    with pytest.raises(DataError) as caught:
        core50(input_config=input_config, root=tmp_path, download=False)
    assert str(caught.value).startswith(f"core50 could not be read from {tmp_path} (")
    assert str(caught.value).endswith(
        "put the folder core50_128x128, paths.pkl, LUP.pkl and labels.pkl into that folder, with "
        "download=False"
    )


@pytest.mark.parametrize("path", ["../s1/o1/a.png", "/etc/a.png", "s1/../../a.png"])
def test_a_list_that_leads_out_of_the_folder_is_refused(build: Any, root: Path, path: str) -> None:
    paths = pickle.loads((root / "paths.pkl").read_bytes())
    (root / "paths.pkl").write_bytes(pickle.dumps([path, *paths[1:]]))
    with pytest.raises(DataError, match="which is not below core50_128x128"):
        build()


def test_lists_may_be_arrays(build: Any, root: Path) -> None:
    expected = list(build().contents.entries(hashed=False))
    for name in ("labels", "LUP"):
        content = pickle.loads((root / f"{name}.pkl").read_bytes())
        arrays = {"ni": [[np.array(batch) for batch in content["ni"][0]]]}
        (root / f"{name}.pkl").write_bytes(pickle.dumps(arrays))
    assert list(build().contents.entries(hashed=False)) == expected
