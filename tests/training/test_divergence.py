"""Training and evaluation end where numbers are none, in a plain Avalanche script."""

import math
import warnings

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin, LwFPlugin
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from avalanche_peftcl.errors import DivergenceWarning, NotFiniteError
from avalanche_peftcl.models import AdapterBranch, NTKCLModel, PEFTModel
from avalanche_peftcl.training import NTKCL, PEFTTemplate
from avalanche_peftcl.training.plugins import GradientProjectionPlugin, HeadPlugin


def make_benchmark(n=12):
    generator = torch.Generator().manual_seed(0)
    parts = [
        (torch.randn(n, 3, 16, 16, generator=generator), torch.arange(n) % 2 + first)
        for first in (0, 2)
    ]
    return tensors_benchmark(train_tensors=parts, test_tensors=parts, task_labels=[0, 0])


def make_strategy(backbone, *, lr=0.1, **options):
    torch.manual_seed(0)
    model = PEFTModel(backbone, AdapterBranch(backbone.embed_dim, backbone.depth, dropout=0.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    defaults = {"train_mb_size": 4, "evaluator": EvaluationPlugin(), "train_epochs": 3}
    return PEFTTemplate(model=model, optimizer=optimizer, **(defaults | options))


class Spoil(SupervisedPlugin):
    """Multiplies the loss of one minibatch, all counted from 0."""

    def __init__(self, factor, *, experience=0, epoch=0, iteration=0):
        super().__init__()
        self.factor, self.at = factor, (experience, epoch, iteration)

    def before_backward(self, strategy, **kwargs):
        clock = strategy.clock
        now = (
            strategy.experience.current_experience,
            clock.train_exp_epochs,
            clock.train_epoch_iterations,
        )
        if now == self.at or (self.at[2] is None and now[:2] == self.at[:2]):
            strategy.loss = strategy.loss * self.factor


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e300])
def test_a_loss_that_is_no_number_ends_the_epoch(backbone, factor):
    strategy = make_strategy(backbone, plugins=[Spoil(factor, experience=1, epoch=1, iteration=2)])
    benchmark = make_benchmark()
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(NotFiniteError) as caught:
        strategy.train(benchmark.train_stream[1])
    assert str(caught.value) == (
        "training diverged in experience 2, epoch 2 (from 1): the loss is not a finite number from "
        "minibatch 3 on, nor are the weights; lower the weight of what adds to the loss (Spoil), "
        "or lower lr (now 0.1)"
    )


def test_weights_alone_end_the_epoch(backbone):
    """The last step of an epoch spoils weights after the last loss."""

    class Overflow(SupervisedPlugin):
        def after_update(self, strategy, **kwargs):
            if strategy.clock.train_exp_iterations == 5:
                strategy.model.head.weight.data[0, 0] = math.inf

    strategy = make_strategy(backbone, plugins=[Overflow()])
    with pytest.raises(NotFiniteError, match=r"epoch 2 .*: the weights are not finite numbers; lo"):
        strategy.train(make_benchmark().train_stream[0])


def test_a_loss_that_is_none_before_any_step_is_no_matter_of_lr(backbone):
    strategy = make_strategy(backbone, plugins=[Spoil(math.nan)])
    with pytest.raises(NotFiniteError, match="or look at the images") as caught:
        strategy.train(make_benchmark().train_stream[0])
    assert "lr" not in str(caught.value)
    strategy = make_strategy(backbone, plugins=[Spoil(math.nan, experience=1)])
    strategy.train(make_benchmark().train_stream[0])
    with pytest.raises(NotFiniteError, match=r"from minibatch 1 on, .*, or lower lr \(now 0.1\)$"):
        strategy.train(make_benchmark().train_stream[1])


@pytest.mark.filterwarnings("ignore::avalanche_peftcl.errors.DivergenceWarning")
def test_lr_of_a_million(backbone):
    strategy = make_strategy(backbone, lr=1e6, train_epochs=9)
    with pytest.raises(NotFiniteError, match=r"lower lr \(now 1e\+06\)"):
        strategy.train(make_benchmark().train_stream[0])


def test_a_large_loss_is_told_once_and_goes_on(backbone):
    class Offset(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            strategy.loss = strategy.loss + 1e4 * (strategy.clock.train_epoch_iterations > 0)

    strategy = make_strategy(backbone, plugins=[Offset()])
    with pytest.warns(match="far above that of its first minibatch, .*; lower the weight") as told:
        strategy.train(make_benchmark().train_stream[0])
    assert sum(warning.category is DivergenceWarning for warning in told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", DivergenceWarning)
        make_strategy(backbone).train(make_benchmark().train_stream[0])


def test_steps_that_the_scaler_leaves_out_are_no_divergence(backbone):
    """One bad minibatch in float16 costs a step; an epoch of nothing else is a divergence."""
    benchmark = make_benchmark()
    once = [Spoil(math.inf, epoch=1, iteration=1)]
    strategy = make_strategy(backbone, plugins=once, mixed_precision="fp16")
    strategy.train(benchmark.train_stream[0])
    assert all(p.isfinite().all() for p in strategy.model.parameters())
    always = [Spoil(math.inf, epoch=1, iteration=None)]
    strategy = make_strategy(backbone, plugins=always, mixed_precision="fp16")
    with pytest.raises(NotFiniteError, match="mixed_precision no instead of fp16"):
        strategy.train(benchmark.train_stream[0])


def test_the_hosts_plugins_are_watched_too(backbone):
    strategy = make_strategy(backbone, plugins=[LwFPlugin(alpha=1e300)])
    benchmark = make_benchmark()
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(NotFiniteError, match=r"experience 2, epoch 1 .*\(LwFPlugin\)"):
        strategy.train(benchmark.train_stream[1])


def test_outputs_that_are_no_numbers_end_the_evaluation(backbone):
    strategy = make_strategy(backbone)
    benchmark = make_benchmark()
    strategy.train(benchmark.train_stream[0])
    strategy.model.head.bias.data[1] = math.nan
    with pytest.raises(NotFiniteError, match="12 of 12 images of experience 1 of stream test are"):
        strategy.eval(benchmark.test_stream[:1])


@pytest.mark.parametrize("what", ["weight", "buffer"])
def test_a_network_with_one_bad_weight_is_refused(backbone, what):
    if what == "weight":
        next(backbone.parameters()).data.view(-1)[3] = math.nan
    else:
        backbone.register_buffer("statistics", torch.tensor([1.0, math.inf]))
    with pytest.raises(
        NotFiniteError, match=r"the model, PEFTModel, has weights .*, in backbone\."
    ):
        make_strategy(backbone)


def test_a_features_overflow_reaches_no_prototype(backbone):
    model = NTKCLModel(backbone)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    strategy = NTKCL(model=model, optimizer=optimizer, train_epochs=0, evaluator=EvaluationPlugin())
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1e30)
    assert any(isinstance(plugin, HeadPlugin) for plugin in strategy.plugins)
    with pytest.raises(NotFiniteError, match="experience 1: the class means are not finite"):
        strategy.train(make_benchmark().train_stream[0])
    assert not model.prototypes.counts.any()


def test_a_features_overflow_reaches_no_basis(backbone):
    strategy = make_strategy(backbone, plugins=[GradientProjectionPlugin()], train_epochs=0)
    with torch.no_grad():
        for p in strategy.model.parameters():
            p.fill_(1e30)
    with pytest.raises(NotFiniteError, match="the Gram matrices of experience 1 are not finite"):
        strategy.train(make_benchmark().train_stream[0])


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_watch_reads_the_device_once_an_epoch_whatever_its_length(backbone):
    strategy = make_strategy(backbone)
    strategy.train(make_benchmark().train_stream[0])  # builds what it needs
    watch, counts = strategy._watch, []
    strategy.experience = make_benchmark().train_stream[0]
    for length in (1, 3000):
        watch.begin_epoch()
        with Reads() as reads:
            for _ in range(length):
                watch.loss(torch.ones(1))
            before = reads.count
            watch.check_training(strategy, iteration=length)
        counts.append((before, reads.count))
    assert [before for before, _ in counts] == [0, 0]
    assert counts[0] == counts[1]


@pytest.mark.filterwarnings("ignore::avalanche_peftcl.errors.DivergenceWarning")
def test_the_model_may_be_any_module():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4))
    strategy = PEFTTemplate(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1e38),
        train_mb_size=4,
        train_epochs=3,
        evaluator=EvaluationPlugin(),
    )
    with pytest.raises(NotFiniteError, match="experience 1"):
        strategy.train(make_benchmark().train_stream[0])
