"""A run that dies, or whose disk fails, at each of its file operations."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from avalanche_peftcl.checkpoints.folder import strangers
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.export.file import read_export
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.runs import record
from avalanche_peftcl.runs.command import resume_from_folder
from avalanche_peftcl.runs.folder import CHECKPOINTS, FILES, check_output
from avalanche_peftcl.runs.matrix_file import read_matrix
from avalanche_peftcl.runs.reading import read_claim, read_record
from avalanche_peftcl.runs.run import run

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
DIGITS = {"name": "digits", "n_experiences": 2, "train_per_class": 1, "validation_per_class": 1}
STEP = 19  # of the plain tests; the slow ones take every operation


class Died(BaseException):
    """What the process was doing when it died; nobody catches it."""


class Disk:
    """Lets what is done to the files below a folder go wrong from the n-th operation on.

    ``how`` is ``"die"`` (nothing more is done, half of what is being written is), ``"fail"`` (that
    one operation fails) or ``"full"`` (that one and all that need room fail).
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.open_files = folder.resolve(), set[int]()
        self.begin(None)
        self._real = {name: getattr(os, name) for name in ("open", "replace", "unlink")}
        self._real |= {name: getattr(os, name) for name in ("mkdir", "rmdir", "write", "fsync")}
        for name in self._real:
            monkeypatch.setattr(os, name, self._wrapped(name))

    def begin(self, at: int | None, how: str = "die") -> None:
        self.at, self.how, self.done = at, how, 0

    def _wrapped(self, name: str) -> Callable[..., Any]:
        def operate(place: Any, *more: Any, **named: Any) -> Any:
            if not self._concerns(place):
                return self._real[name](place, *more, **named)
            self.done += 1
            if self.at is not None and self.done >= self.at:
                self._go_wrong(name, place, *more)
            result = self._real[name](place, *more, **named)
            if name == "open":
                self.open_files.add(result)
            return result

        return operate

    def _concerns(self, place: Any) -> bool:
        if isinstance(place, int):
            return place in self.open_files
        return self.folder in (path := Path(place).absolute()).parents or path == self.folder

    def _go_wrong(self, name: str, place: Any, *more: Any) -> None:
        if self.how == "die":
            if name == "write" and self.done == self.at:
                self._real["write"](place, more[0][: len(more[0]) // 2])
            raise Died
        if self.done == self.at or (self.how == "full" and name in ("open", "write", "mkdir")):
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover()


@pytest.fixture(scope="module", autouse=True)
def pictures_that_can_be_read():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "record_picture", lambda given: str(given.experiences.finished))
        yield


@pytest.fixture
def disk(monkeypatch, tmp_path) -> Disk:
    (tmp_path / "outside.txt").write_text("mine")
    return Disk(monkeypatch, tmp_path / "run")


def tiny(output: Path, seed: int = 0) -> RunConfig:
    settings = {"output": output, "num_threads": 1, "seed": seed, "backbone": BACKBONE}
    strategy = {"name": "nearest_class_mean", "mixed_precision": "no"}
    settings |= {"benchmark": DIGITS, "strategy": strategy}
    return RunConfig.model_validate(settings)


@pytest.fixture(scope="module")
def whole(registry, pictures_that_can_be_read, tmp_path_factory) -> dict[int, Path]:
    """The folders of finished runs of seeds 0 and 1."""
    folder = tmp_path_factory.mktemp("whole")
    return {s: run(tiny(folder / str(s), s), registry=registry).folder for s in (0, 1)}


def matrix(folder: Path) -> Any:
    return read_matrix(folder, 2)


def check_whole(folder: Path) -> None:
    """Whatever file there is is whole; a record that says complete says so of all."""
    for path in folder.glob("*.json"):
        assert isinstance(json.loads(path.read_text()), dict)
    if (folder / "model.safetensors").exists():
        info, _, _ = read_export(folder / "model.safetensors")
    assert strangers(folder / CHECKPOINTS) == []
    check_output(folder, overwrite=True)  # no leftover is in the way of another run
    claim = read_claim(folder)
    if claim is None or not claim.complete:
        return
    accuracy = read_record(folder).accuracy
    assert {*FILES} <= {path.name for path in folder.iterdir()}
    assert info.finished == info.total == 2
    assert (folder / "accuracy_matrix.svg").read_text() == "2"
    assert " of 2 experiences)" not in (folder / "summary.md").read_text()
    first, last = read_matrix(folder, 2)
    assert first[0] == accuracy.accuracy_curve[0]
    assert last == accuracy.per_task
    assert len((folder / "accuracy_matrix.csv").read_text().splitlines()) == 3


def names(folder: Path) -> list[str]:
    """Return the names of what is in a folder, those of checkpoints without their numbers."""
    return sorted(path.name.lstrip("0123456789") for path in folder.rglob("*"))


THOROUGH = pytest.mark.parametrize(
    "thorough", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some", "every"]
)


@THOROUGH
def test_a_run_that_dies_goes_on_to_the_same_end(thorough, disk, registry, whole, tmp_path):
    config, at = tiny(tmp_path / "run"), 1
    while True:
        disk.begin(at, "die")
        try:
            run(config, registry=registry)
            break
        except Died:
            disk.begin(None)
        check_whole(config.output)
        assert run(config, registry=registry, resume=True).metrics["complete"]
        check_whole(config.output)
        assert matrix(config.output) == matrix(whole[0])
        assert not [*config.output.rglob("*.part")]
        assert names(config.output) == names(whole[0])
        shutil.rmtree(config.output)
        at += 1 if thorough else STEP
    assert at > 60  # operations there were
    assert (tmp_path / "outside.txt").read_text() == "mine"


@THOROUGH
def test_a_run_that_dies_while_it_replaces_another(
    thorough, disk, registry, whole, tmp_path, monkeypatch
):
    from avalanche_peftcl.runs import run as module

    monkeypatch.setattr(module, "discover", lambda: registry)
    folder, at, ends = tmp_path / "run", 1, set()
    while True:
        shutil.copytree(whole[0], folder)
        disk.begin(at, "die")
        try:
            run(tiny(folder, seed=1), registry=registry, overwrite=True)
            break
        except Died:
            disk.begin(None)
        check_whole(folder)
        resume_from_folder(folder, None, [], False, Console(quiet=True))
        check_whole(folder)
        seed = json.loads((folder / "metrics.json").read_text())["seed"]
        assert matrix(folder) == matrix(whole[seed])
        ends.add(seed)
        shutil.rmtree(folder)
        at += 1 if thorough else STEP
    assert ends == {0, 1}  # before it had begun to replace it, and after
    assert (tmp_path / "outside.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("how", "thorough"),
    [
        ("full", False),
        pytest.param("full", True, marks=pytest.mark.slow),
        pytest.param("fail", True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore::avalanche_peftcl.errors.CheckpointWarning")
def test_a_disk_that_fails_costs_nothing_that_was_promised(
    thorough, how, disk, registry, whole, tmp_path
):
    config, at, told = tiny(tmp_path / "run"), 1, set()
    while True:
        disk.begin(at, how)
        try:
            assert run(config, registry=registry).metrics["complete"]
            said = "complete"
        except (ConfigError, OSError) as error:
            said = str(error)
            assert "No space left" in said
        ended = disk.done < at
        disk.begin(None)
        check_whole(config.output)
        assert not [*config.output.rglob("*.part")]
        if "--resume" in said and "--overwrite" not in said:
            told.add("goes on")
            run(config, registry=registry, resume=True)
        elif "begin anew" in said:
            told.add("begins anew")
            run(config, registry=registry, resume=True, overwrite=True)
        else:
            run(config, registry=registry, resume=True)
        check_whole(config.output)
        assert matrix(config.output) == matrix(whole[0])
        shutil.rmtree(config.output)
        if ended:
            break
        at += 1 if thorough else STEP
    if thorough and how == "full":
        assert told == {"goes on", "begins anew"}
