"""What a script's checkpoint cannot hold, and files that are not its own."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import loss_metrics
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from torch import nn

from avalanche_peftcl.checkpoints import maybe_load_checkpoint, save_checkpoint
from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.models import NTKCLModel, PEFTModel
from avalanche_peftcl.models.modules.lora import build_lora
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import NTKCL, PEGP


def replay():
    return ReplayPlugin(mem_size=4)


def pegp(*, plugins=None, optimizer=torch.optim.Adam, r=2):
    backbone = toy_backbone(depth=2)
    model = PEFTModel(backbone, build_lora(backbone=backbone, r=r))
    return PEGP(
        model=model,
        optimizer=optimizer(model.parameters(), lr=0.01),
        train_mb_size=8,
        train_epochs=2,
        head_epochs=1,
        plugins=[replay()] if plugins is None else plugins,
        evaluator=EvaluationPlugin(loggers=[]),
    )


def network():
    return nn.Sequential(nn.Flatten(), IncrementalClassifier(768))


def host(kind=Naive, plugins=()):
    model = network()
    return kind(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=8,
        plugins=list(plugins),
        evaluator=EvaluationPlugin(loggers=[]),
    )


def ntk_cl():
    model = NTKCLModel(toy_backbone(depth=2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return NTKCL(model=model, optimizer=optimizer, evaluator=EvaluationPlugin(loggers=[]))


# --- what is refused ---------------------------------------------------------------------------


class Forgetful(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.seen = object()


def test_what_cannot_be_kept_is_refused_by_name_when_saving(tmp_path):
    path, benchmark = tmp_path / "a", toy_benchmark()
    path.write_bytes(b"earlier")
    with pytest.raises(CheckpointError, match=r"Forgetful\.seen is a object, whose state"):
        save_checkpoint(host(plugins=[Forgetful()]), path, benchmark=benchmark)

    class Own(Naive):
        pass

    with pytest.raises(CheckpointError, match="Own is a Naive and does not say"):
        save_checkpoint(host(Own), path, benchmark=benchmark)
    assert path.read_bytes() == b"earlier"


def test_inside_an_experience_it_is_refused(tmp_path):
    class Save(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            save_checkpoint(strategy, tmp_path / "a", benchmark=benchmark)

    benchmark = toy_benchmark()
    strategy = host(plugins=[Save()])
    with pytest.raises(CheckpointError, match=r"inside an experience; save it after train\(\)"):
        strategy.train(benchmark.train_stream[0])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of PEGP after two experiences."""
    path, benchmark = tmp_path_factory.mktemp("saved") / "a.checkpoint", toy_benchmark()
    strategy = pegp()
    strategy.train(benchmark.train_stream[:2], eval_streams=[])
    save_checkpoint(strategy, path, benchmark=benchmark)
    return path


def another_backbone():
    built = pegp()
    with torch.no_grad():
        built.model.backbone.blocks[0].attn.qkv.bias.add_(1)
    return built


def another_metric():
    built = pegp()
    built.evaluator.metrics.extend(loss_metrics(epoch=True))
    return built


def another_model():
    built = pegp()
    built.model = network()
    return built


OTHERS = {
    "is that of strategy PEGP, not NTKCL": ntk_cl,
    "is that of model PEFTModel, not Sequential": another_model,
    "is that of optimizer Adam, not SGD": lambda: pegp(
        optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr)
    ),
    "other plugins: ReplayPlugin is missing$": lambda: pegp(plugins=[]),
    "other plugins: ReplayPlugin is missing; Forgetful is new": lambda: pegp(plugins=[Forgetful()]),
    "other metrics: EpochLoss is new": another_metric,
    "other weights of the backbone": another_backbone,
    r"does not fit: .*lora_B\S* was of shape \(96, 2\), is \(96, 3\)": lambda: pegp(r=3),
}


@pytest.mark.parametrize("message", OTHERS)
def test_a_file_of_another_strategy_is_refused(saved, message):
    with pytest.raises(CheckpointError, match=message) as error:
        maybe_load_checkpoint(OTHERS[message](), saved, benchmark=toy_benchmark())
    assert str(saved) in str(error.value)


def test_a_file_of_another_benchmark_is_refused(saved):
    def load(benchmark):
        strategy = pegp()
        maybe_load_checkpoint(strategy, saved, benchmark=benchmark)

    with pytest.raises(CheckpointError, match=r"another benchmark: 0\.images was 12, is 10"):
        load(toy_benchmark(per_class=5))
    with pytest.raises(CheckpointError, match=r"another benchmark: class_order\.0 was "):
        load(toy_benchmark(class_order=[5, 4, 3, 2, 1, 0]))
    with pytest.raises(CheckpointError, match=r"visited 2 experiences, .* stream has 1"):
        load(toy_benchmark(classes_per_experience=(6,)))


def test_a_strategy_that_has_trained_is_refused(saved):
    strategy, benchmark = pegp(), toy_benchmark()
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    with pytest.raises(CheckpointError, match="that has trained already; build a new one"):
        maybe_load_checkpoint(strategy, saved, benchmark=benchmark)


def cut(content, share):
    return content[: int(len(content) * share)]


def flipped(content, at):
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


DAMAGE = {
    "empty": lambda c: b"",
    "two bytes": lambda c: c[:2],
    "half a header": lambda c: c[:40],
    "half": lambda c: cut(c, 0.5),
    "nearly all": lambda c: c[:-1],
    "one more": lambda c: c + b"\0",
    "a bit of the header": lambda c: flipped(c, 200),
    "a bit of the length": lambda c: flipped(c, 0),
    "a bit of the middle": lambda c: flipped(c, len(c) // 2),
    "the last bit": lambda c: flipped(c, -1),
    "a picture": lambda c: b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "a format to come": lambda c: c.replace(b"checkpoint 2 ", b"checkpoint 3 ", 1),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_told(saved, tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(DAMAGE[kind](saved.read_bytes()))
    message = r"is no checkpoint: its|is damaged: it is (not what was written|cut off)|of format 3,"
    strategy = pegp()
    with pytest.raises(CheckpointError, match=message):
        maybe_load_checkpoint(strategy, path, benchmark=toy_benchmark())


def test_a_place_that_is_no_file_is_told(tmp_path):
    strategy, benchmark = host(), toy_benchmark()
    with pytest.raises(ConfigError, match="it is a folder; name a file"):
        save_checkpoint(strategy, tmp_path, benchmark=benchmark)
    with pytest.raises(ConfigError, match="there is no folder"):
        save_checkpoint(strategy, tmp_path / "no" / "a", benchmark=benchmark)
    with pytest.raises(CheckpointError, match=r"cannot read .*directory"):
        maybe_load_checkpoint(strategy, tmp_path, benchmark=benchmark)
    assert maybe_load_checkpoint(strategy, tmp_path / "a", benchmark=benchmark) == (strategy, 0)


def test_a_write_that_fails_leaves_the_earlier_file(saved, tmp_path, monkeypatch):
    from avalanche_peftcl.checkpoints import folder as checkpoint

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a"
    path.write_bytes(saved.read_bytes())
    monkeypatch.setattr(checkpoint, "replace_file", full)
    with pytest.raises(ConfigError, match=r"cannot write .*: No space left on device"):
        save_checkpoint(host(), path, benchmark=toy_benchmark())
    assert path.read_bytes() == saved.read_bytes()
