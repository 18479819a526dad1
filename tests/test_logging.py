"""Loggers by name: what they write, and that nothing else changes by them."""

import json
import random
import re
from pathlib import Path
from typing import Any

import avalanche.logging as host
import numpy as np
import pytest
import torch
from avalanche.logging import BaseLogger
from avalanche.training.plugins import SupervisedPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from avalanche_peftcl import Component
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation.host import accuracy, loss
from avalanche_peftcl.logging import WandBLogger
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.run import run

BACKBONE = {"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16}
BACKBONE |= {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}
TENSORBOARD, OFFLINE = {"name": "tensorboard"}, {"name": "wandb", "mode": "offline"}


class StopAtThird(SupervisedPlugin):
    def before_training_exp(self, strategy, *args, **kwargs):
        if strategy.experience.current_experience == 2:
            raise KeyboardInterrupt


class Noisy(BaseLogger):
    """Draws random numbers when it is built, and notes what it is given and told."""

    made: list["Noisy"] = []  # noqa: RUF012 (shared on purpose)

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.given, self.names, self.closed = given, [], 0
        random.random(), np.random.rand(), torch.rand(())
        Noisy.made.append(self)

    def log_single_metric(self, name, value, x_plot):
        self.names.append(name)

    def close(self):
        self.closed += 1


def noisy(*, output, resume, settings, level: int = 1):
    return Noisy(output=output, resume=resume, settings=settings, level=level)


def fails(*, output):
    raise ConfigError("no log today")


@pytest.fixture(scope="module")
def registry():
    provider = Provider("test-package", "1.2")
    offered = [
        ("logger", Component("noisy", noisy, source="test")),
        ("logger", Component("fails", fails, source="test")),
    ]
    more = [Entry(kind, component, provider) for kind, component in offered]
    stop = Entry("strategy_plugin", Component("stop", StopAtThird, source="test"), provider)
    return Registry([*discover().entries(), *more, stop])


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    Noisy.made.clear()


def tiny(output, **changed) -> RunConfig:
    settings = {
        "output": output,
        "seed": 3,
        "backbone": BACKBONE,
        "benchmark": {"name": "digits", "n_experiences": 5, "train_per_class": 4},
        "strategy": {"name": "naive", "train_epochs": 1, "train_mb_size": 4},
    }
    return RunConfig.model_validate(settings | changed)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory, registry):
    return run(tiny(tmp_path_factory.mktemp("plain")), registry=registry)


def test_tensorboard_gets_every_metric_and_the_steps(tmp_path, registry, plain):
    config = tiny(tmp_path, loggers=[TENSORBOARD], metrics=[{"name": "loss"}, {"name": "accuracy"}])
    done = run(config, registry=registry)
    seen = scalars(tmp_path / "tensorboard")
    assert [step for step, _ in seen["Loss_MB/train_phase/train_stream/Task000"]] == [*range(10)]
    curve = seen["Last_Accuracy/eval_phase/test_stream"]
    assert [step for step, _ in curve] == [2, 4, 6, 8, 10]
    assert [value for _, value in curve] == pytest.approx(
        done.metrics["accuracy"]["accuracy_curve"], rel=1e-6
    )
    # a second source of the same number: Avalanche's own metric
    stream = seen["Top1_Acc_Stream/eval_phase/test_stream/Task000"]
    assert stream == pytest.approx(np.array(curve), rel=1e-6)
    assert "Top1_Acc_Epoch/train_phase/train_stream/Task000" in seen
    losses = done.record.further_metrics["Loss_Stream/eval_phase/test_stream/Task000"]
    assert len(losses) == 5
    assert min(losses) > 0
    assert done.metrics["config"]["loggers"] == [TENSORBOARD]


def test_the_loss_is_the_one_trained_on(tmp_path, registry):
    config = tiny(tmp_path, loggers=[TENSORBOARD], metrics=[{"name": "loss", "epoch": True}])
    run(config, registry=registry)
    seen = scalars(tmp_path / "tensorboard")
    each = [v for _, v in seen["Loss_MB/train_phase/train_stream/Task000"]]
    epochs = [v for _, v in seen["Loss_Epoch/train_phase/train_stream/Task000"]]
    assert epochs == pytest.approx([sum(each[i : i + 2]) / 2 for i in range(0, 10, 2)], rel=1e-5)
    assert each[0] == pytest.approx(np.log(2), rel=0.2)  # two classes, a new head


def test_nothing_else_changes(tmp_path, registry, plain):
    loggers = [TENSORBOARD, OFFLINE, {"name": "noisy"}]
    done = run(tiny(tmp_path, loggers=loggers, metrics=[{"name": "loss"}]), registry=registry)
    assert done.metrics["accuracy_matrix"] == plain.metrics["accuracy_matrix"]
    assert weights(done.folder) == weights(plain.folder)


def test_a_run_that_replaces_another_begins_its_events_anew(tmp_path, registry):
    config = tiny(tmp_path, loggers=[TENSORBOARD])
    run(config, registry=registry)
    (tmp_path / "tensorboard" / "mine.txt").write_text("kept")
    run(config, registry=registry, overwrite=True)
    assert len(scalars(tmp_path / "tensorboard")["Last_Accuracy/eval_phase/test_stream"]) == 5
    assert (tmp_path / "tensorboard" / "mine.txt").read_text() == "kept"


def test_events_that_no_record_lists_stay(tmp_path, registry):
    (tmp_path / "tensorboard").mkdir()
    mine = tmp_path / "tensorboard" / "events.out.tfevents.1.mine"
    mine.write_bytes(b"of another program")
    for listed in [], ["noisy"]:
        config = tiny(tmp_path, loggers=[TENSORBOARD] if not listed else [*listed, TENSORBOARD])
        run(config, registry=registry, overwrite=bool(listed))
        assert mine.read_bytes() == b"of another program"
        assert "tensorboard" not in output_of(tmp_path)


def output_of(folder: Path) -> list[str]:
    return json.loads((folder / "metrics.json").read_text())["files"]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_link_in_the_place_of_a_loggers_folder_is_refused(tmp_path, registry, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=rf"might be lost: {name} \(a link\)"):
        run(tiny(tmp_path / "run", loggers=[TENSORBOARD, OFFLINE]), registry=registry)
    assert not [*(tmp_path / "elsewhere").iterdir()]


@pytest.mark.slow
def test_a_run_that_goes_on_writes_on(tmp_path, registry, plain, monkeypatch):
    stopped = tiny(tmp_path, loggers=[TENSORBOARD, OFFLINE], plugins=[{"name": "stop"}])
    with pytest.raises(KeyboardInterrupt):
        run(stopped, registry=registry)
    before = scalars(tmp_path / "tensorboard")["Last_Accuracy/eval_phase/test_stream"]
    assert [step for step, _ in before] == [2, 4]
    known = (tmp_path / "wandb" / "run_id").read_text()

    monkeypatch.setattr(StopAtThird, "before_training_exp", SupervisedPlugin.before_training_exp)
    done = run(stopped, registry=registry, resume=True)
    after = scalars(tmp_path / "tensorboard")["Last_Accuracy/eval_phase/test_stream"]
    assert after[:2] == before
    assert [step for step, _ in after] == [2, 4, 6, 8, 10]
    assert weights(done.folder) == weights(plain.folder)
    assert (tmp_path / "wandb" / "run_id").read_text() == known
    assert [*(tmp_path / "wandb").glob(f"offline-run-*-{known}")]
    assert len([*(tmp_path / "wandb").glob("offline-run-*-*")]) <= 2  # wandb names them by second


@pytest.mark.parametrize("later", [[], [{"name": "noisy", "level": 2}]])
def test_loggers_may_change_when_a_run_goes_on(tmp_path, registry, monkeypatch, later):
    stopped = tiny(tmp_path, loggers=[{"name": "noisy"}], plugins=[{"name": "stop"}])
    with pytest.raises(KeyboardInterrupt):
        run(stopped, registry=registry)
    assert Noisy.made[0].given["resume"] is False
    assert Noisy.made[0].closed == 1  # though the run was stopped
    monkeypatch.setattr(StopAtThird, "before_training_exp", SupervisedPlugin.before_training_exp)
    changed = tiny(tmp_path, loggers=later, plugins=[{"name": "stop"}])
    assert run(changed, registry=registry, resume=True).metrics["complete"]
    assert len(Noisy.made) == 1 + len(later)
    if later:
        given = Noisy.made[1].given
        assert (given["resume"], given["level"], given["output"]) == (True, 2, tmp_path)


def test_a_logger_of_another_package_is_given_what_it_names(tmp_path, registry):
    run(tiny(tmp_path, loggers=[{"name": "test-package/noisy"}]), registry=registry)
    (logger,) = Noisy.made
    assert logger.given["settings"]["strategy"]["lr"] == 0.025  # a default, filled in
    assert "Average_Accuracy/eval_phase/test_stream" in logger.names
    assert logger.closed == 1


def test_a_logger_that_cannot_start_costs_no_earlier_run(tmp_path, registry, plain):
    run(tiny(tmp_path), registry=registry)
    before = weights(tmp_path)
    loggers = [{"name": "noisy"}, {"name": "fails"}]
    with pytest.raises(ConfigError, match="no log today"):
        run(tiny(tmp_path, loggers=loggers), registry=registry, overwrite=True)
    assert weights(tmp_path) == before
    assert Noisy.made[0].closed == 1


def test_a_wrong_option_is_told_before_anything_is_built(tmp_path, registry):
    with pytest.raises(ConfigError, match=r"logger 'tensorboard'.*\n.*unknown option 'dir'"):
        run(tiny(tmp_path / "new", loggers=[TENSORBOARD | {"dir": "x"}]), registry=registry)
    assert not (tmp_path / "new").exists()


def test_wandb_without_an_account_says_what_to_do(tmp_path, registry, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ConfigError, match=r"logger 'wandb' cannot be started: .*mode: offline"):
        run(tiny(tmp_path / "new", loggers=[{"name": "wandb", "mode": "online"}]))
    assert not (tmp_path / "new" / "metrics.json").exists()


def test_wandb_says_which_argument_it_does_not_know(tmp_path, registry):
    with pytest.raises(ConfigError, match=r"'wandb' cannot be started: .*'wrong'"):
        run(tiny(tmp_path / "new", loggers=[OFFLINE | {"params": {"wrong": 1}}]))


def test_avalanche_still_asks_for_what_wandb_no_longer_has(monkeypatch, tmp_path):
    import wandb

    logger = WandBLogger(project_name="p", run_name="r", dir=tmp_path, params={"mode": "disabled"})
    logger.log_single_metric("x", 1.0, 0)
    upstream = host.WandBLogger.__new__(host.WandBLogger)
    upstream.wandb = wandb
    with pytest.raises(AttributeError, match="viz"):  # once this passes, our class can go
        host.WandBLogger.log_single_metric(
            upstream, "x", host.wandb_logger.AlternativeValues(1.0), 0
        )


@pytest.mark.parametrize("build", [loss, accuracy])
def test_metrics_that_emit_nothing_are_refused(build):
    none = dict.fromkeys(("minibatch", "epoch", "epoch_running", "experience", "stream"), False)
    with pytest.raises(ConfigError, match="emits nothing; set one of minibatch, epoch, "):
        build(**none)
    for name in none:
        assert len(build(**none | {name: True})) == 1


def test_tensorboard_calls_experiences_by_their_domain(tmp_path, registry):
    benchmark = {"name": "digits", "scenario": "domain", "n_experiences": 2, "train_per_class": 2}
    metrics = [{"name": "accuracy", "experience": True}]
    config = tiny(tmp_path, loggers=[TENSORBOARD], metrics=metrics, benchmark=benchmark)
    domains = run(config, registry=registry).record.protocol.domains
    called = [tag.rpartition("/")[2] for tag in scalars(tmp_path / "tensorboard") if "/Exp" in tag]
    wanted = [re.sub(r"[^\w.-]+", "_", domain) for domain in domains]
    assert sorted(called) == [f"Exp00{i}_{name}" for i, name in enumerate(wanted)]
    assert len(set(wanted)) == 2
