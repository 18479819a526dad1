import io
import re
from types import SimpleNamespace

import torch
from rich.console import Console

from avalanche_peftcl.runs import bar_file, progress
from avalanche_peftcl.runs.bar_file import Bar, read_bar
from avalanche_peftcl.runs.pace import Pace
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.training.plugins import BudgetPlugin


def told(record):
    console = Console(file=io.StringIO(), width=80)
    RunProgress(console).tell(record)
    return console.file.getvalue()


def test_an_experience_has_its_domain_or_its_classes(record_of):
    record = record_of(2, 2, notes=[[], ["done"]])
    assert told(record).startswith("experience 2/2  classes a|b, c  trained 1.0 s  accuracy on")
    domains = {"scenario": "domain", "domains": ["photo", "art"]}
    protocol = record.protocol.model_copy(update=domains)
    by_domain = record.model_copy(update={"protocol": protocol})
    assert told(by_domain).startswith("experience 2/2  art  trained 1.0 s  accuracy on seen")
    joint = by_domain.model_copy(update={"joint": True})
    assert told(joint).startswith("all experiences  classes a|b, c  trained")


class Slowly:
    """A strategy as a logger sees it."""

    train_epochs, train_mb_size, dataloader = 2, 16, range(5)
    model, experience = torch.nn.Linear(2, 2), SimpleNamespace(current_experience=0)
    clock = SimpleNamespace(train_exp_epochs=1)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.03}])
    loss, mb_x = torch.tensor(0.25), torch.zeros(16, 2)
    plugins = ()


def test_the_bar_tells_epoch_loss_rate_speed_and_time_left(monkeypatch):
    monkeypatch.setattr(progress, "_REFRESH", -1.0)
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    times = iter([0.0, 0.05])
    with RunProgress(console) as shown:
        shown._pace = Pace(now=lambda: next(times))
        shown.begin(0, 3, later=100, tests=(0, 0))
        shown.before_training_exp(Slowly())
        shown.after_training_iteration(Slowly())
        (task,) = shown._bars.tasks
        assert (task.completed, task.total) == (1, 10)
        assert task.description == "experience 1/3 epoch 2/2"
        told = task.fields["pace"]
        assert re.fullmatch(r"loss 0\.250 lr 0\.03 320 img/s, 0 s of 1 s left", told)
        assert len(f"{task.description} {'━' * progress.BAR_WIDTH} {told}") <= 80
        shown.before_eval_exp(Slowly())
        assert task.fields["pace"] == "evaluating on 1"


def test_a_budget_shortens_the_bar(monkeypatch):
    class Half(BudgetPlugin):
        def share(self, *names):
            return 0.5

    monkeypatch.setattr(progress, "_REFRESH", -1.0)
    strategy = Slowly()
    strategy.plugins = [Half(passes=1)]
    with RunProgress(Console(file=io.StringIO(), width=80, force_terminal=True)) as shown:
        shown.begin(0, 3)
        shown.before_training_exp(strategy)
        shown.after_training_iteration(strategy)
        (task,) = shown._bars.tasks
        assert (task.completed, task.total) == (1, 2)


def test_in_a_sweep_the_bar_goes_to_the_file_that_the_sweep_reads(monkeypatch, tmp_path):
    monkeypatch.setenv(bar_file.BAR, str(tmp_path / "bar"))
    monkeypatch.setattr(progress, "_REFRESH", -1.0)
    monkeypatch.setattr(bar_file, "_SELDOM", -1.0)
    with RunProgress(Console(file=io.StringIO(), width=80)) as shown:
        shown.begin(1, 3)
        shown.before_training_exp(Slowly())
        shown.after_training_iteration(Slowly())
        bar = read_bar(tmp_path / "bar")
        assert (bar.description, bar.completed) == ("experience 2/3 epoch 2/2", 1)
        assert bar.total == 10
        assert bar.pace.startswith("loss 0.250")
        shown.end(2, 3, classes=["a"], seconds=1.0, seen=0.5, row=[0.5])
    assert read_bar(tmp_path / "bar") == Bar()
    (tmp_path / "bar").write_text("[1")
    assert read_bar(tmp_path / "bar") is None
