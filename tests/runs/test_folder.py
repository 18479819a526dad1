"""What lies in a run's folder and is not the run's stays as it is."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from avalanche_peftcl.checkpoints.folder import write_checkpoint
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.files import held
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.runs import journal
from avalanche_peftcl.runs.folder import (
    CHECKPOINTS,
    FILES,
    check_output,
    clear_output,
    listed_files,
)
from avalanche_peftcl.runs.matrix_file import read_matrix
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.record import RunRecord
from avalanche_peftcl.runs.run import run

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
DIGITS = {"name": "digits", "n_experiences": 2, "train_per_class": 1, "validation_per_class": 1}
RECORD = {"format": 2, "complete": False, "config": {}, "experiences": {"finished": 1}}
HOW = [{}, {"overwrite": True}, {"resume": True}, {"resume": True, "overwrite": True}]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return discover()


def tiny(output: Path, **changed: Any) -> RunConfig:
    settings = {"output": output, "num_threads": 1, "backbone": BACKBONE, "benchmark": DIGITS}
    settings |= {"strategy": {"name": "nearest_class_mean"}}
    return RunConfig.model_validate(settings | changed)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def recorded(tmp_path) -> Path:
    """The folder of an unfinished run: a record and a checkpoint."""
    folder = tmp_path / "run"
    write_checkpoint(folder / CHECKPOINTS, {"n": 1}, number=1)
    (folder / "metrics.json").write_text(json.dumps(RECORD | {"files": [*FILES, CHECKPOINTS]}))
    for name in FILES:
        if name != "metrics.json":
            (folder / name).write_text("of the run")
    return folder


# --- a folder without a record -------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW, ids=["", "overwrite", "resume", "resume-overwrite"])
@pytest.mark.parametrize(
    "name",
    [*FILES, "notes.txt", "checkpoint/000123.json", "checkpoint/000123.checkpoint", ".hidden"],
)
def test_what_no_record_lists_is_refused_and_stays(tmp_path, registry, name, how):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    told = name.split("/")[0].replace(".", r"\.")
    with pytest.raises(ConfigError, match=rf"holds what is not of a run.*: {told}\. Choose anoth"):
        run(tiny(tmp_path / "run"), registry=registry, **how)
    assert contents(tmp_path / "run") == {name: b"{}"}


def test_the_runs_of_a_sweep_are_in_no_other_runs_way(recorded):
    (recorded / "seed3").mkdir()
    (recorded / "seed3" / "summary.md").write_text("of another run")
    check_output(recorded, overwrite=True)
    clear_output(recorded)
    assert (recorded / "seed3" / "summary.md").read_text() == "of another run"
    (recorded / "seeds").mkdir()
    with pytest.raises(ConfigError, match=r"might be lost: seeds\. Choose"):
        check_output(recorded, overwrite=True)


def test_many_names_are_counted(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.txt").touch()
    with pytest.raises(ConfigError, match=r"0\.txt, 1\.txt, .*4\.txt and 4 more\. Choose"):
        check_output(tmp_path)


def test_what_a_sweep_or_a_killed_start_leaves_is_in_nobodys_way(tmp_path):
    assert check_output(tmp_path / "new") is None
    for name in ".lock", "run.log", ".metrics.json.0123456789abcdef.part":
        (tmp_path / name).touch()
    assert check_output(tmp_path) is None
    (tmp_path / ".notes.txt.0123456789abcdef.part").touch()
    with pytest.raises(ConfigError, match=r"might be lost: \.notes"):
        check_output(tmp_path)


# --- a folder with a record ----------------------------------------------------------------------


def test_what_lies_beside_a_run_is_refused_where_it_is_replaced_and_not_where_it_goes_on(recorded):
    stamp = check_output(recorded, overwrite=True)
    assert stamp is not None
    (recorded / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="already holds a run"):
        check_output(recorded)
    with pytest.raises(ConfigError, match=r"might be lost: notes\.txt\. Choose"):
        check_output(recorded, overwrite=True)
    assert check_output(recorded, resume=True) == stamp


@pytest.mark.parametrize("name", ["000123.json", "000123.checkpoint", "a.txt"])
def test_a_file_among_the_checkpoints_that_no_run_wrote_is_refused(recorded, name):
    (recorded / CHECKPOINTS / name).write_text('{"mine": 1}')
    before = contents(recorded)
    with pytest.raises(ConfigError, match=rf"might be lost: checkpoint/{name}\. Choose"):
        check_output(recorded, overwrite=True)
    check_output(recorded, resume=True)
    clear_output(recorded)
    assert contents(recorded) == {
        key: content
        for key, content in before.items()
        if key in ("metrics.json", f"checkpoint/{name}")
    }


def test_a_record_cannot_have_other_files_removed(recorded, tmp_path):
    (tmp_path / "outside.txt").write_text("mine")
    (recorded / "notes.txt").write_text("mine")
    listed = [*FILES, CHECKPOINTS, "notes.txt", "../outside.txt", 3, "outside"]
    (recorded / "metrics.json").write_text(json.dumps(RECORD | {"files": listed}))
    (recorded / "outside").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(ConfigError, match=r"outside \(a link\)"):
        check_output(recorded, overwrite=True)
    (recorded / "outside").unlink()
    check_output(recorded, overwrite=True)
    clear_output(recorded)
    assert contents(tmp_path).keys() == {"outside.txt", "run/notes.txt", "run/metrics.json"}


@pytest.mark.parametrize("given", [None, "all", [["config.yaml"]], {"a": 1}])
def test_a_list_that_is_none_lists_the_files_of_every_run(recorded, given):
    (recorded / "metrics.json").write_text(json.dumps(RECORD | {"files": given}))
    assert listed_files(recorded) == {*FILES, CHECKPOINTS}


def test_checkpoints_vouch_for_the_files_beside_a_spoilt_record(recorded):
    (recorded / "metrics.json").write_text('{"format"')
    assert check_output(recorded, resume=True) is not None
    (recorded / CHECKPOINTS / "000001.checkpoint").write_text("{}")
    with pytest.raises(ConfigError, match=r"might be lost: accuracy_matrix\.csv, "):
        check_output(recorded, resume=True)


# --- links, folders and pipes in the place of files ----------------------------------------------

PLACES = [
    *FILES,
    ".lock",
    "run.log",
    CHECKPOINTS,
    "checkpoint/000001.checkpoint",
    "tensorboard",
    "wandb",
]


def a_link(path: Path, outside: Path) -> str:
    if path.name in (CHECKPOINTS, "tensorboard", "wandb"):
        outside.mkdir()
    else:
        outside.write_text("mine")
    path.symlink_to(outside)
    return "a link"


def a_dangling_link(path: Path, outside: Path) -> str:
    path.symlink_to(outside)
    return "a link"


def another_kind(path: Path, outside: Path) -> str:
    if path.name in (CHECKPOINTS, "tensorboard", "wandb"):
        path.write_text("mine")
        return "no folder"
    path.mkdir()
    return "no file"


def a_pipe(path: Path, outside: Path) -> str:
    os.mkfifo(path)
    return "no folder" if path.name in (CHECKPOINTS, "tensorboard", "wandb") else "no file"


@pytest.mark.parametrize("make", [a_link, a_dangling_link, another_kind, a_pipe])
@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_file_of_a_run_is_refused_and_stays(tmp_path, recorded, registry, name, make):
    path, outside = recorded / name, tmp_path / "outside"
    if path.is_dir():
        path.rename(tmp_path / "earlier")
    path.unlink(missing_ok=True)
    kind = make(path, outside)
    before = contents(tmp_path)
    told = name if name.startswith(f"{CHECKPOINTS}/") else rf"{name} \({kind}\)"
    for how in {"resume": True}, {"overwrite": True}, {"resume": True, "overwrite": True}:
        with pytest.raises(ConfigError, match=rf"might be lost: .*{told}"):
            run(tiny(recorded), registry=registry, **how)
    assert contents(tmp_path) == before
    assert outside.exists() == (make is a_link)


def test_a_lock_is_not_written_through_a_link(tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "outside")
    with pytest.raises(ConfigError, match=r"\.lock: it is a link"), held(tmp_path):
        pass
    assert (tmp_path / "outside").read_text() == "mine"


# --- two processes -------------------------------------------------------------------------------


class Stops(RunProgress):
    def end(self, finished, *more, **named):
        raise KeyboardInterrupt


def slowly(monkeypatch, meanwhile: Callable[[], Any]) -> None:
    """Let something happen while a run is being built."""
    real = journal.weights_sha256

    def act(backbone):
        monkeypatch.setattr(journal, "weights_sha256", real)
        meanwhile()
        return real(backbone)

    monkeypatch.setattr(journal, "weights_sha256", act)


@pytest.mark.parametrize(
    ("begun", "how"), [(False, how) for how in HOW] + [(True, how) for how in HOW[1:]]
)
def test_a_run_that_another_process_finished_meanwhile_is_kept(
    tmp_path, registry, monkeypatch, how, begun
):
    config = tiny(tmp_path / "run")
    if begun:
        with pytest.raises(KeyboardInterrupt):
            run(config, registry=registry, reporter=Stops())
    slowly(monkeypatch, lambda: run(config, registry=registry, resume=True))
    with pytest.raises(ConfigError, match=r"(already holds|another process has written) a run"):
        run(config, registry=registry, **how)
    kept = json.loads((config.output / "metrics.json").read_text())
    assert kept["complete"]
    assert len(kept["resumed_at"]) == begun
    kept["accuracy_matrix"] = read_matrix(config.output, 2)
    assert run(config, registry=registry, resume=True).metrics == kept


def test_a_start_that_failed_is_in_nobodys_way(tmp_path, registry):
    class Fails(RunProgress):
        def before_training_exp(self, *more):
            raise KeyboardInterrupt

    config = tiny(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(config, registry=registry, reporter=Fails())
    assert json.loads((config.output / "metrics.json").read_text())["experiences"]["finished"] == 0
    assert run(config, registry=registry).record.complete
    with pytest.raises(ConfigError, match="already holds a run"):
        run(config, registry=registry)


def test_a_run_with_a_checkpoint_is_no_failed_start(tmp_path, record_of):
    RunRecord(tmp_path, record_of(2, 0)).write()
    assert check_output(tmp_path) is not None
    (tmp_path / "checkpoint").mkdir()
    assert check_output(tmp_path) is not None
    (tmp_path / "checkpoint" / "000001.checkpoint").touch()
    with pytest.raises(ConfigError, match=r"already holds a run.*--resume"):
        check_output(tmp_path)
