"""Floors: runs beside a run, on the same network and stream, kept where they are there."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from avalanche_peftcl.compare import compare_runs
from avalanche_peftcl.compare.records import find_records
from avalanche_peftcl.compare.render import markdown_tables
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.config.settings import dump_settings
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import discover
from avalanche_peftcl.runs.command import resume_from_folder, run_from_file
from avalanche_peftcl.runs.floors import floor_runs
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.sweeps.sweep import run_sweep

REGISTRY = discover()
NAMES = ("nearest_class_mean", "ridge")
QUIET = Console(quiet=True)


def settings(output: Path, **changed) -> RunConfig:
    given = {
        "output": output,
        "num_threads": 1,
        "backbone": {"name": "vit_glyph", "img_size": 16},
        "module": "lora",
        "benchmark": {"name": "digits", "n_experiences": 2, "train_per_class": 4}
        | {"validation_per_class": 2},
        "strategy": {"name": "naive", "train_epochs": 1, "eval_mb_size": 8},
        "plugins": [{"name": "replay", "mem_size": 4}],
        "checkpoint_every": 100,
    }
    return RunConfig.model_validate(given | changed)


def written(folder: Path) -> dict[str, str]:
    """Return when each floor below a folder was begun."""
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())["written_at"]
        + str(path.stat().st_mtime_ns)
        for path in sorted(folder.glob("floors/**/metrics.json"))
    }


def test_zero_shot_is_one_where_the_head_reads_class_names(tmp_path):
    words = {"class_words": {"0": "zero"}, "templates": ["a {}"]}
    places = {"checkpoint": "a", "checkpoint_text": "b", "checkpoint_projections": "c"}
    config = settings(
        tmp_path,
        backbone={"name": "dual_encoder", "model_name": "test_vit", "out_features": 4} | places,
        head={"name": "zero_shot"} | words,
    )
    floors = {floor.output.name: floor for floor in floor_runs(config, REGISTRY)}
    assert floors.keys() == {*NAMES, "zero_shot"}
    assert floors["zero_shot"].head.options == words
    assert floors["zero_shot"].strategy.name == "closed_form"
    assert floors["ridge"].head.options == {}
    assert floors["zero_shot"].backbone == config.backbone
    itself = config.model_copy(
        update={
            "module": None,
            "plugins": [],
            "strategy": config.strategy.model_validate({"name": "closed_form"}),
        }
    )
    assert [floor.output.name for floor in floor_runs(itself, REGISTRY)] == [*NAMES]


def test_they_have_all_of_a_run_but_its_method(tmp_path):
    config = settings(
        tmp_path, seed=3, module=None, strategy={"name": "ntk_cl", "mixed_precision": "bf16"}
    )
    class_means, ridge = floor_runs(config, REGISTRY)
    assert class_means.output == tmp_path / "floors" / "nearest_class_mean"
    assert ridge.output == tmp_path / "floors" / "ridge"
    assert (ridge.strategy.name, ridge.head.name) == ("closed_form", "ridge")
    for floor in (class_means, ridge):
        assert floor.strategy.options == {"mixed_precision": "bf16", "eval_mb_size": 64}
        assert (floor.module, floor.plugins, floor.checkpoint_every) == (None, [], None)
        assert (floor.seed, floor.floor) == (3, True)
        for same in ("backbone", "benchmark", "device", "num_threads", "num_workers", "evaluate"):
            assert getattr(floor, same) == getattr(config, same)


def test_a_run_that_is_a_floor_has_the_other_alone(tmp_path):
    config = settings(tmp_path, module=None, plugins=[], strategy="nearest_class_mean")
    (ridge,) = floor_runs(config, REGISTRY)
    assert ridge.head.name == "ridge"


def test_of_several_seeds_each_floor_has_them_all(tmp_path):
    floors = floor_runs(settings(tmp_path, seeds=[0, 2]), REGISTRY)
    assert [floor.seeds for floor in floors] == [[0, 2], [0, 2]]
    assert floors[0].for_seed(2).output == tmp_path / "floors" / "nearest_class_mean" / "seed2"


def test_they_are_run_once_and_marked(tmp_path):
    folder, file = tmp_path / "a", tmp_path / "a.yaml"
    file.write_text(dump_settings(settings(folder).model_dump(mode="json")))
    run_from_file(file, [], False, QUIET, floors=True)
    begun = written(folder)
    assert set(begun) == {f"floors/{name}" for name in NAMES}
    main = read_record(folder)
    assert main.config.floor is None
    for name in NAMES:
        floor = read_record(folder / "floors" / name)
        assert floor.config.floor is True
        assert floor.complete
        assert floor.weights_sha256 == main.weights_sha256
        assert floor.protocol.experiences == main.protocol.experiences
        assert floor.protocol.precision == main.protocol.precision
        saved = "were there before" in str(floor.notes)
        assert saved  # test images are evaluated again after each experience
        assert "is a floor" in (folder / "floors" / name / "summary.md").read_text()
    # gone on with, and replaced: they are the same, and stay
    resume_from_folder(folder, None, [], False, QUIET, floors=True)
    assert written(folder) == begun
    run(settings(folder), overwrite=True, floors=True)
    assert written(folder) == begun
    # of another stream they are others
    run(settings(folder, seed=1), overwrite=True, floors=True)
    assert not set(written(folder).values()) & set(begun.values())
    assert read_record(folder / "floors" / "ridge").seed == 1


@pytest.mark.slow
def test_of_other_weights_they_are_run_again(tmp_path):
    run(settings(tmp_path), floors=True)
    begun, file = written(tmp_path), tmp_path / "floors" / "ridge" / "metrics.json"
    metrics = json.loads(file.read_text())
    file.write_text(json.dumps(metrics | {"weights_sha256": "0" * 64}))
    run(settings(tmp_path), resume=True, floors=True)
    assert json.loads(file.read_text())["weights_sha256"] == metrics["weights_sha256"]
    assert written(tmp_path)["floors/nearest_class_mean"] == begun["floors/nearest_class_mean"]


def test_a_folder_that_can_be_none_is_refused_before_anything_runs(tmp_path):
    strange = tmp_path / "floors" / "ridge" / "thesis.tex"
    strange.parent.mkdir(parents=True)
    strange.touch()
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        run(settings(tmp_path), floors=True)
    assert not (tmp_path / "metrics.json").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "floors").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=r"floors \(a link\)"):
        run(settings(tmp_path / "other"))


def test_compare_finds_them_and_takes_each_once(tmp_path):
    for name, lr in (("a", 0.1), ("b", 0.2)):
        strategy = {"name": "naive", "train_epochs": 1, "lr": lr}
        run(settings(tmp_path / name, strategy=strategy), floors=True)
    comparison = compare_runs([tmp_path / "a", tmp_path / "b"])
    labels = [method.label for method in comparison.methods]
    assert [label.split()[0] for label in labels] == [
        "naive",
        "nearest_class_mean",
        "closed_form",
        "naive",
    ]
    assert [label.endswith(" (floor)") for label in labels] == [False, True, True, False]
    assert all(len(method.runs) == 1 for method in comparison.methods)
    table = markdown_tables(comparison)
    assert "| nearest_class_mean (floor) | 1 |" in table
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    head, *rows = [row for row in rows if len(row) > 2 and not row[0].startswith("-")]
    floors = [dict(zip(head, row, strict=False)) for row in rows if row[0].endswith("(floor)")]
    for column in ("passes a training image", "training time (s)"):  # they share features
        assert [floor[column] for floor in floors[:2]] == ["-", "-"]
    # a run of the same kind that is no floor stands for it
    run(
        settings(tmp_path / "c", module=None, plugins=[], strategy="nearest_class_mean").model_copy(
            update={"checkpoint_every": None}
        )
    )
    comparison = compare_runs([tmp_path])
    assert "nearest_class_mean" in [method.label for method in comparison.methods]
    assert "nearest_class_mean (floor)" not in [method.label for method in comparison.methods]


def test_compare_finds_those_beside_the_seeds_of_a_sweep(tmp_path):
    for folder in ("s/seed0", "s/seed1", "s/floors/ridge/seed0", "s/floors/ridge/seed1"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "metrics.json").touch()
    found = find_records([tmp_path / "s" / "seed1"])
    assert found == [tmp_path / "s" / "seed1", tmp_path / "s" / "floors" / "ridge" / "seed1"]
    assert len(find_records([tmp_path / "s"])) == 4


@pytest.mark.parametrize("given", [False, None])
def test_a_run_is_no_floor_unless_it_is_said(tmp_path, given):
    assert settings(tmp_path, floor=given).floor is None


@pytest.mark.parametrize("given", ["yes", 1, []])
def test_a_floor_is_true_or_nothing(tmp_path, given):
    with pytest.raises(ValueError, match="floor"):
        settings(tmp_path, floor=given)


@pytest.mark.slow
def test_a_sweep_has_floors_of_every_seed(tmp_path):
    config = settings(tmp_path, seeds=[0, 1])
    outcomes = run_sweep(config, jobs=2, floors=True)
    assert [outcome.error for outcome in outcomes] == [None] * 6
    begun = written(tmp_path)
    assert set(begun) == {f"floors/{name}/seed{seed}" for name in NAMES for seed in (0, 1)}
    run_sweep(config, floors=True)
    assert written(tmp_path) == begun
    comparison = compare_runs([tmp_path])
    assert [method.seeds for method in comparison.methods] == [(0, 1)] * 3
