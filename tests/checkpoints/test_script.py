"""A script that is stopped and started again ends like one that never was, bit for bit."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import IncrementalClassifier, as_multitask
from avalanche.training import EWC, Cumulative, Naive
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, ReplayPlugin
from torch import nn

from avalanche_peftcl.checkpoints import maybe_load_checkpoint, save_checkpoint
from avalanche_peftcl.checkpoints.strategy_state import StrategyState
from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.evaluation import AccuracyMatrix
from avalanche_peftcl.models import NTKCLModel, PEFTModel
from avalanche_peftcl.models.modules.lora import build_lora
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import NTKCL, PEGP
from avalanche_peftcl.training.naive import build_naive


def evaluator():
    return EvaluationPlugin(AccuracyMatrix(), *accuracy_metrics(epoch=True), loggers=[])


def ntk_cl():
    model = NTKCLModel(toy_backbone(depth=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sizes = {"train_mb_size": 8, "train_epochs": 1, "eval_mb_size": 16}
    return NTKCL(model=model, optimizer=optimizer, evaluator=evaluator(), **sizes)


def pegp():
    backbone = toy_backbone(depth=2)
    model = PEFTModel(backbone, build_lora(backbone=backbone, r=2))
    return PEGP(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        threshold=0.9,
        train_mb_size=8,
        train_epochs=2,
        head_epochs=1,
        evaluator=evaluator(),
    )


def naive_and_replay():
    return build_naive(
        backbone=toy_backbone(depth=2),
        train_epochs=2,
        train_mb_size=8,
        plugins=[ReplayPlugin(mem_size=7)],
        evaluator=evaluator(),
    )


def network():
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(768, 8)).requires_grad_(False)
    return nn.Sequential(backbone, nn.Dropout(0.2), IncrementalClassifier(8))


def host(kind=Naive, model=None, **options):
    model = model or network()
    return kind(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        train_epochs=2,
        evaluator=evaluator(),
        **options,
    )


def scheduled():
    built = host()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(built.optimizer, patience=0)
    built.plugins.insert(0, LRSchedulerPlugin(plateau, metric="train_loss", reset_lr=False))
    return built


KINDS = {
    "ntk_cl": (ntk_cl, "class"),
    "ntk_cl online": (ntk_cl, "online"),
    "pegp": (pegp, "class"),
    "pegp domain": (pegp, "domain"),
    "naive and replay": (naive_and_replay, "class"),
    "host": (host, "class"),
    "host scheduled": (scheduled, "class"),
    "host ewc": (lambda: host(EWC, ewc_lambda=1.0), "class"),
    "host cumulative": (lambda: host(Cumulative), "class"),
    "host multitask": (lambda: host(model=as_multitask(plain(), "classifier")), "task"),
}


class plain(nn.Module):  # noqa: N801 - as_multitask wants the attribute of an object
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(768, 8))
        self.classifier = nn.Linear(8, 2)

    def forward(self, x):
        return self.classifier(self.features(x))


def disturb(seed):
    """Let a process begin with generators in a state of its own."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def end_of(strategy, benchmark):
    """Return the bits of all that a strategy remembers, its evaluator's numbers apart."""
    n = strategy.clock.train_exp_counter
    state = StrategyState(strategy).save(trained=list(benchmark.train_stream)[:n])
    numbers = {k: v for k, v in strategy.evaluator.get_last_metrics().items() if "Time" not in k}
    return dict(leaves(state)), numbers


def leaves(value, path=""):
    """Yield where in a nested state a plain value or the bits of a tensor stand."""
    if isinstance(value, torch.Tensor):
        yield path, (value.dtype, value.shape, value.detach().numpy().tobytes())
    elif isinstance(value, dict | list | tuple):
        yield path, (type(value), len(value))
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from leaves(inner, f"{path}.{key}")
    else:
        yield path, value


@pytest.mark.parametrize("kind", KINDS)
def test_a_script_that_starts_again_ends_the_same(kind, tmp_path):
    build, scenario = KINDS[kind]
    options = {"experience_size": 8} if scenario == "online" else {}
    path, ends = tmp_path / "a.checkpoint", []
    for starts_again in (False, True):
        disturb(0)
        benchmark, strategy = toy_benchmark(scenario, **options), build()
        for t in range(len(benchmark.train_stream)):
            if starts_again and t:
                disturb(1000 + t)  # other initial values, other draws
                benchmark, strategy = toy_benchmark(scenario, **options), build()
                strategy, start = maybe_load_checkpoint(strategy, path, benchmark=benchmark)
                assert start == t
            strategy.train(benchmark.train_stream[t], eval_streams=[])
            strategy.eval(benchmark.test_stream)
            if starts_again:
                save_checkpoint(strategy, path, benchmark=benchmark)
        ends.append(end_of(strategy, benchmark))
    (bits, numbers), (other_bits, other_numbers) = ends
    assert bits.keys() == other_bits.keys()
    assert [name for name in bits if bits[name] != other_bits[name]] == []
    assert numbers == other_numbers
    assert any("Last_Accuracy" in name for name in numbers)


def test_the_frozen_backbone_is_left_out_until_it_changes(tmp_path):
    path, benchmark = tmp_path / "a", toy_benchmark()
    strategy = ntk_cl()
    save_checkpoint(strategy, path, benchmark=benchmark)
    small = path.stat().st_size
    with torch.no_grad():
        strategy.model.backbone.blocks[0].mlp.fc1.weight.mul_(2)
    save_checkpoint(strategy, path, benchmark=benchmark)
    assert path.stat().st_size > small + strategy.model.backbone.blocks[0].mlp.fc1.weight.nbytes
    new, _ = maybe_load_checkpoint(ntk_cl(), path, benchmark=benchmark)
    changed = new.model.backbone.blocks[0].mlp.fc1.weight
    assert torch.equal(changed, strategy.model.backbone.blocks[0].mlp.fc1.weight)


def test_auto_does_not_go_on_in_another_precision(tmp_path, monkeypatch):
    native, path = "avalanche_peftcl.models.precision.native_bfloat16", tmp_path / "checkpoint"
    benchmark = toy_benchmark()
    monkeypatch.setattr(native, lambda device: True)
    save_checkpoint(ntk_cl(), path, benchmark=benchmark)
    assert maybe_load_checkpoint(ntk_cl(), path, benchmark=benchmark)[1] == 0
    monkeypatch.setattr(native, lambda device: False)
    words = "was saved with mixed_precision='bf16', this strategy has 'no'; build it with"
    with pytest.raises(CheckpointError, match=words):
        maybe_load_checkpoint(ntk_cl(), path, benchmark=benchmark)


SCRIPT = """
import sys
import torch
sys.path.insert(0, {here!r})
import test_script as t
torch.set_num_threads(1)
t.disturb(int(sys.argv[2]))
benchmark, strategy = t.toy_benchmark(), t.pegp()
strategy, start = t.maybe_load_checkpoint(strategy, sys.argv[1], benchmark=benchmark)
for experience in benchmark.train_stream[start : int(sys.argv[3])]:
    strategy.train(experience, eval_streams=[])
    strategy.eval(benchmark.test_stream)
    t.save_checkpoint(strategy, sys.argv[1], benchmark=benchmark)
state = strategy.model.state_dict()
print(t.torch.cat([v.flatten().double() for v in state.values()]).numpy().tobytes().hex())
print(strategy.evaluator.metrics[0].matrix.numpy().tobytes().hex())
"""


@pytest.mark.slow
def test_processes_take_turns(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(here=str(Path(__file__).parent)))

    def go(name, seed, until):
        words = [sys.executable, str(script), str(tmp_path / name), str(seed), str(until)]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    straight = go("one", 0, 3)
    go("two", 0, 1)
    assert go("two", 77, 3) == straight
