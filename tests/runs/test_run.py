import csv
import io
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import SupervisedPlugin
from rich.console import Console
from safetensors.torch import load_file

from avalanche_peftcl import Component, files
from avalanche_peftcl.benchmarks import digits
from avalanche_peftcl.config import RunConfig, load_config
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.weights import weights_sha256
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs import folder as output
from avalanche_peftcl.runs import record
from avalanche_peftcl.runs import run as run_module
from avalanche_peftcl.runs.command import run_from_file
from avalanche_peftcl.runs.matrix_file import read_matrix
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.run import check_device, run

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}


def tiny(folder, **changed) -> RunConfig:
    settings = {
        "output": folder,
        "backbone": BACKBONE,
        "benchmark": {"name": "digits", "n_experiences": 5, "train_per_class": 4},
        "strategy": {"name": "naive", "train_epochs": 1, "train_mb_size": 4},
    }
    return RunConfig.model_validate(settings | changed)


class StopAtThird(SupervisedPlugin):
    def before_training_exp(self, strategy, *args, **kwargs):
        if strategy.experience.current_experience == 2:
            raise KeyboardInterrupt


def refuse_everything(*, device="cpu"):
    raise AssertionError


@pytest.fixture(scope="module")
def registry():
    provider = Provider("test-package", "1.2")
    offered = [
        ("strategy_plugin", Component("stop_at_third", StopAtThird, source="test")),
        ("metric", Component("top1", lambda: accuracy_metrics(stream=True), source="test")),
        ("backbone", Component("no_input", lambda: torch.nn.Linear(1, 1), source="test")),
        ("strategy", Component("takes_nothing", refuse_everything, source="test")),
    ]
    more = [Entry(kind, component, provider) for kind, component in offered]
    return Registry([*discover().entries(), *more])


def read(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory, registry):
    folder = tmp_path_factory.mktemp("runs") / "a" / "b"
    return run(tiny(folder, seed=3), registry=registry)


def test_a_run_leaves_one_folder_with_these_files(done):
    assert sorted(path.name for path in done.folder.iterdir()) == sorted(
        [*output.FILES, output.CHECKPOINTS, ".lock"]
    )
    assert done.metrics["files"] == [*output.FILES, output.CHECKPOINTS]


def test_the_record_returned_is_the_one_on_disk(done):
    there = read(done.folder) | {"accuracy_matrix": read_matrix(done.folder, 5)}
    assert there == json.loads(json.dumps(done.metrics))
    assert "accuracy_matrix" not in read(done.folder)


def test_the_csv_holds_the_matrix(done):
    rows = list(csv.reader(io.StringIO((done.folder / "accuracy_matrix.csv").read_text())))
    values = [[float(cell) if cell else None for cell in row[1:]] for row in rows[1:]]
    assert values == done.metrics["accuracy_matrix"]
    for t, row in enumerate(values):
        assert all(0 <= value <= 1 for value in row[: t + 1])
        assert row[t + 1 :] == [None] * (4 - t)


def test_the_metrics_say_what_was_run(done):
    metrics = read(done.folder)
    assert metrics["format"] == 2
    assert metrics["complete"] is True
    assert metrics["experiences"] == {"total": 5, "finished": 5}
    protocol = metrics["protocol"]
    assert sorted(protocol["class_order"]) == list(range(10))
    assert protocol["scenario"] == "class"
    assert protocol["task_label_at_test"] is False
    assert protocol["normalisation"]["mean"] == [0.5, 0.5, 0.5]
    first = protocol["experiences"][0]
    assert first["classes"] == [0, 1]
    assert first["class_names"] == [str(label) for label in protocol["class_order"][:2]]
    assert first["train_images"] == 8
    assert [e["test_images"] for e in protocol["experiences"]] == metrics["test_images"]
    assert {"python", "avalanche-lib", "torch", "timm", "peft"} <= metrics["versions"].keys()
    assert not {"open_clip_torch", "transformers"} & metrics["versions"].keys()
    assert re.fullmatch("[0-9a-f]{64}", metrics["weights_sha256"])
    assert metrics["model_name"] == BACKBONE["model_name"]
    assert [c["kind"] for c in metrics["components"]] == ["backbone", "benchmark", "strategy"]
    assert metrics["components"][2]["provider"] == "avalanche-peftcl"
    assert len(metrics["cost"]["training_seconds"]) == 5
    trainable = {each["name"]: each["shape"] for each in metrics["trainable"]}
    assert trainable["head.weight"] == [10, 24]
    assert not any("vit" in name for name in trainable)


def test_the_resolved_config_has_every_default_and_gives_the_same_numbers(done, registry, tmp_path):
    config = load_config(done.folder / "config.yaml", [f"output={tmp_path / 'again'}"])
    assert config.strategy.options["lr"] == 0.025
    assert config.benchmark.options["seed"] == 3
    again = run(config, registry=registry).metrics
    for key in ("accuracy_matrix", "weights_sha256", "protocol", "trainable"):
        assert again[key] == done.metrics[key]
    assert again["config"]["strategy"] == done.metrics["config"]["strategy"]


def test_the_seed_changes_the_class_order_unless_the_benchmark_has_its_own(
    done, registry, tmp_path
):
    other = run(tiny(tmp_path / "other", seed=4), registry=registry).metrics
    assert other["protocol"]["class_order"] != done.metrics["protocol"]["class_order"]
    benchmark = {"name": "digits", "train_per_class": 4, "seed": 3}
    same = run(tiny(tmp_path / "same", seed=4, benchmark=benchmark), registry=registry).metrics
    assert same["protocol"]["class_order"] == done.metrics["protocol"]["class_order"]
    assert same["accuracy_matrix"] != done.metrics["accuracy_matrix"]


def test_evaluating_on_all_fills_the_matrix_and_the_baseline(registry, tmp_path):
    metrics = run(tiny(tmp_path / "all", evaluate="all"), registry=registry).metrics
    assert all(value is not None for row in metrics["accuracy_matrix"] for value in row)
    assert all(value is not None for value in metrics["baseline"])
    assert metrics["accuracy"]["forward_transfer"] is not None


def test_an_online_stream_is_evaluated_after_each_origin_experience(registry, tmp_path):
    benchmark = {"name": "digits", "train_per_class": 4, "scenario": "online"}
    benchmark |= {"experience_size": 3}
    lines = Console(file=io.StringIO(), width=200)
    metrics = run(
        tiny(tmp_path / "online", benchmark=benchmark),
        registry=registry,
        reporter=RunProgress(lines),
    ).metrics
    assert metrics["experiences"] == {"total": 5, "finished": 5}
    assert [sum(v is not None for v in row) for row in metrics["accuracy_matrix"]] == [*range(1, 6)]
    assert metrics["protocol"]["experiences"][0]["train_images"] == 8
    assert lines.file.getvalue().count("\nexperience ") == 5


def test_task_labels_at_test_are_recorded(registry, tmp_path):
    benchmark = {"name": "digits", "train_per_class": 4, "scenario": "task"}
    metrics = run(tiny(tmp_path / "task", benchmark=benchmark), registry=registry).metrics
    assert metrics["protocol"]["task_label_at_test"] is True


def test_what_is_finished_when_a_run_stops_is_on_disk(registry, tmp_path):
    config = tiny(tmp_path / "stopped", plugins=[{"name": "stop_at_third"}])
    with pytest.raises(KeyboardInterrupt):
        run(config, registry=registry)
    metrics = read(config.output)
    assert metrics["complete"] is False
    assert metrics["experiences"] == {"total": 5, "finished": 2}
    rows = (config.output / "accuracy_matrix.csv").read_text().splitlines()
    assert [sum(cell != "" for cell in row.split(",")[1:]) for row in rows[1:]] == [1, 2]
    assert "(2 of 5 experiences)" in (config.output / "summary.md").read_text()
    assert (config.output / "accuracy_matrix.svg").is_file()
    assert {
        "kind": "strategy_plugin",
        "name": "stop_at_third",
        "provider": "test-package",
        "version": "1.2",
        "source": "test",
    } in metrics["components"]


def test_a_run_stopped_at_once_leaves_a_record_that_a_new_run_may_replace(
    registry, tmp_path, record_of
):
    config = tiny(tmp_path / "out")
    record.RunRecord(config.output, record_of(1, 1)).write()
    (config.output / "accuracy_matrix.svg").write_bytes(b"of an earlier run")
    with pytest.raises(ConfigError, match=r"already holds a run; choose another \(output=\.\.\.\)"):
        run(config, registry=registry)
    stopped = tiny(config.output, benchmark={"name": "digits", "n_experiences": 3})
    with pytest.raises(ValueError, match="10"):  # a mistake leaves the earlier run as it is
        run(stopped, registry=registry, overwrite=True)
    assert (config.output / "accuracy_matrix.svg").read_bytes() == b"of an earlier run"
    run(config, registry=registry, overwrite=True)
    assert read(config.output)["complete"] is True
    assert (config.output / "accuracy_matrix.svg").read_bytes() != b"of an earlier run"


def test_files_are_replaced_in_one_step(tmp_path, monkeypatch, record_of):
    earlier = record.RunRecord(tmp_path, record_of())
    earlier.write()
    before = (tmp_path / "metrics.json").read_bytes()

    def stop(*paths):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "replace", stop)
    later = record.RunRecord(tmp_path, record_of(seed=1))
    with pytest.raises(ConfigError, match=r"cannot write the run record to .*no space left"):
        later.write()
    assert (tmp_path / "metrics.json").read_bytes() == before


def test_nothing_global_is_left_changed(registry, tmp_path):
    threads = torch.get_num_threads()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    run(tiny(tmp_path / "a", num_threads=2), registry=registry)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_in_python_prints_nothing(registry, tmp_path, capsys, recwarn):
    config = tiny(tmp_path / "a", plugins=[{"name": "replay", "mem_size": 4}])
    run(config, registry=registry)
    assert capsys.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []


def test_a_file_without_a_terminal_gets_plain_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(record.dump_settings(tiny("out").model_dump(mode="json")))
    console = Console(file=io.StringIO(), width=120)
    run_from_file(path, ["seed=3"], False, console)
    shown = console.file.getvalue()
    assert "\x1b" not in shown
    assert "\r" not in shown
    assert "naive on digits (class, 5 experiences), backbone timm_vit, seed 3, device cpu" in shown
    assert "branch.adapters.*.up.weight  1 of 24x16" in shown
    line = r"experience 2/5  classes \d, \d  trained \d+\.\d s  accuracy on seen \d+\.\d %  "
    assert re.search(line + r"\[\d+\.\d \d+\.\d\]\n", shown)
    for words in ("average accuracy", "last accuracy", "forgetting", "run record: out\n"):
        assert words in shown


def test_a_terminal_gets_bars(registry, tmp_path):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    run(tiny(tmp_path / "a"), registry=registry, reporter=RunProgress(console))
    shown = console.file.getvalue()
    assert "━" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is visible again


def test_metrics_of_other_packages_are_recorded(registry, tmp_path):
    config = tiny(tmp_path / "a", metrics=[{"name": "top1"}])
    metrics = run(config, registry=registry).metrics
    key = next(k for k in metrics["further_metrics"] if k.startswith("Top1_Acc_Stream/eval_phase"))
    values = metrics["further_metrics"][key]
    assert values == pytest.approx(metrics["accuracy"]["accuracy_curve"])  # of every experience
    assert not any("Training_Seconds" in name for name in metrics["further_metrics"])  # our own
    assert key in (config.output / "summary.md").read_text().split("## Further metrics")[1]


class Watches(RunProgress):
    """Notes what trains when an experience begins."""

    def before_training_exp(self, strategy, *args):
        named = strategy.model.named_parameters()
        self.seen = [(name, list(p.shape)) for name, p in named if p.requires_grad]


@pytest.mark.parametrize(
    "strategy", [{"name": "naive"}, {"name": "ntk_cl"}, {"name": "pegp", "head_epochs": 1}]
)
def test_the_record_lists_what_trained_whoever_shows_the_run(registry, tmp_path, strategy):
    strategy |= {"train_epochs": 2, "train_mb_size": 4}
    benchmark = {"name": "digits", "n_experiences": 2, "train_per_class": 2}
    config = tiny(tmp_path / "a", strategy=strategy, benchmark=benchmark)
    watching = Watches()
    record = run(config, registry=registry, reporter=watching).record
    assert [(each.name, each.shape) for each in record.trainable] == watching.seen
    sizes = [int(np.prod(each.shape)) for each in record.trainable]
    assert sum(sizes) == record.cost.trainable_parameters > 0


def digits_after_drawing(*, draws: int = 0, input_config, seed: int = 0):
    random.random(), np.random.rand(draws), torch.rand(draws)
    return digits(n_experiences=2, train_per_class=2, input_config=input_config, seed=seed)


@pytest.mark.parametrize("again", [True, False], ids=["seeded again", "violator"])
def test_what_a_benchmark_draws_changes_no_number(registry, tmp_path, monkeypatch, again):
    if not again:
        monkeypatch.setattr(run_module, "seed_all", lambda seed: None)
    drawing = Component("drawing", digits_after_drawing, source="test")
    entries = [*registry.entries(), Entry("benchmark", drawing, Provider("a", "1"))]
    networks = []
    for draws in (0, 3):
        benchmark = {"name": "drawing", "draws": draws}
        config = tiny(tmp_path / str(draws), benchmark=benchmark)
        run(config, registry=Registry(entries))
        networks.append(load_file(config.output / "model.safetensors"))
    one, other = networks
    same = all(torch.equal(one[name], other[name]) for name in one)
    assert same is again


def test_a_part_that_the_strategy_does_not_take_is_refused(registry, tmp_path):
    nothing, plugins = {"name": "takes_nothing"}, [{"name": "stop_at_third"}]
    with pytest.raises(ConfigError, match="takes no module; leave out the key 'module'"):
        run(tiny(tmp_path / "a", strategy=nothing, module="adapter"), registry=registry)
    with pytest.raises(ConfigError, match="takes no evaluator"):
        run(tiny(tmp_path / "a", strategy=nothing), registry=registry)
    with pytest.raises(ConfigError, match="takes no plugins"):
        run(tiny(tmp_path / "a", strategy=nothing, plugins=plugins), registry=registry)


def test_a_backbone_must_say_what_images_it_expects(registry, tmp_path):
    with pytest.raises(ConfigError, match="backbone 'no_input' has no input_config"):
        run(tiny(tmp_path / "a", backbone={"name": "no_input"}), registry=registry)


def test_devices_that_are_not_there_are_refused():
    assert check_device("cpu") == torch.device("cpu")
    for name in ("gpu", "", "meta", "cuda:999", "cpu:7"):
        with pytest.raises(ConfigError, match=f"there is no device {name!r} here; there is: cpu"):
            check_device(name)


def test_the_hash_of_weights_follows_names_and_values():
    one, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    assert weights_sha256(one) != weights_sha256(other)
    other.load_state_dict(one.state_dict())
    assert weights_sha256(one) == weights_sha256(other)
    assert weights_sha256(one.bfloat16()) != weights_sha256(other)
    assert weights_sha256(torch.nn.BatchNorm1d(2)) != weights_sha256(one)


def test_the_last_accuracy_on_each_domain_is_recorded_by_name(registry, tmp_path):
    benchmark = {"name": "digits", "scenario": "domain", "n_experiences": 2, "train_per_class": 2}
    metrics = run(tiny(tmp_path / "run", benchmark=benchmark), registry=registry).metrics
    assert list(metrics["per_domain"]) == metrics["protocol"]["domains"]
    assert list(metrics["per_domain"].values()) == metrics["accuracy"]["per_task"]


def test_a_module_and_plugins_of_the_package_by_name(registry, tmp_path):
    config = tiny(
        tmp_path / "run",
        module={"name": "patch_prompt", "length": 2},
        plugins=[{"name": "retention", "weight": 0.1}, {"name": "replay", "mem_size": 5}],
    )
    metrics = run(config, registry=registry).metrics
    assert any("branch.prompts" in p["name"] for p in metrics["trainable"])
    assert {"patch_prompt", "retention", "replay"} <= {c["name"] for c in metrics["components"]}
