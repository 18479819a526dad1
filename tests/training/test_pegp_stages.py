"""The epochs of PEGP: losses, the head alone, the merged second stage, stops, one pass online."""

import copy
from itertools import pairwise

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch.nn import functional as F

from avalanche_peftcl.models import forward_tokens
from avalanche_peftcl.training.pegp import build_pegp

KINDS = ("adapter", "lora", "prefix", "prompt")


def values(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


class Epochs(SupervisedPlugin):
    """Keeps the PEFT module and the head around each experience and at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.starts, self.epochs, self.heads, self.losses, self.epoch_starts = [], [], [], [], []
        self.active = []

    def before_training_exp(self, strategy, **kwargs):
        self.starts.append(values(strategy.model.branch))
        for kept in (self.epochs, self.heads, self.losses, self.epoch_starts, self.active):
            kept.append([])

    def before_training_epoch(self, strategy, **kwargs):
        self.epoch_starts[-1].append(copy.deepcopy(strategy.model))
        self.active[-1].append(strategy.projection is None or strategy.projection.active)

    def before_backward(self, strategy, **kwargs):
        minibatch = strategy.mb_x.clone(), strategy.mb_y.clone(), strategy.loss.item()
        self.losses[-1].append(minibatch)

    def after_training_epoch(self, strategy, **kwargs):
        self.epochs[-1].append(values(strategy.model.branch))
        self.heads[-1].append(values(strategy.model.head))


# --- losses --------------------------------------------------------------------------------------


def test_the_loss_is_over_the_classes_of_the_experience(sharp, small_benchmark, make_pegp):
    epochs = Epochs()
    strategy = make_pegp(sharp, plugins=[epochs])
    for t, experience in enumerate(small_benchmark().train_stream):
        strategy.train(experience)
        x, y, loss = epochs.losses[t][0]
        model = epochs.epoch_starts[t][0].eval()
        logits = model(x)[:, 2 * t : 2 * t + 2]
        assert loss == pytest.approx(F.cross_entropy(logits, y - 2 * t).item(), abs=1e-5)
        if t:
            before, after = epochs.heads[t - 1][-1], epochs.heads[t][-1]
            assert equal(before, {n: p[: 2 * t] for n, p in after.items()})


# --- head-only epochs ----------------------------------------------------------------------------


@pytest.mark.parametrize("head_epochs", [0, 2, 3])
def test_the_head_trains_alone_first_in_all_experiences_but_the_first(
    sharp, small_benchmark, make_pegp, head_epochs
):
    epochs = Epochs()
    options = {"train_mb_size": 1, "projection": False, "head_epochs": head_epochs}
    strategy = make_pegp(sharp, plugins=[epochs], **options)
    for experience in small_benchmark().train_stream:
        strategy.train(experience)
    for t in range(3):
        branch = [epochs.starts[t], *epochs.epochs[t]]
        still = [equal(a, b) for a, b in pairwise(branch)]
        assert still == [t > 0 and epoch < head_epochs for epoch in range(3)]
        heads = epochs.heads[t]
        assert not any(equal(a, b) for a, b in pairwise(heads))
    assert all(p.requires_grad for p in strategy.model.branch.parameters())


# --- the second stage ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "offset", "projection"), [*((kind, 1.0, True) for kind in KINDS), ("lora", 0.5, False)]
)
def test_both_stages_are_merged_by_the_number_of_experiences(
    sharp, small_benchmark, make_pegp, kind, offset, projection
):
    epochs = Epochs()
    options = {"merge_epochs": 2, "merge_offset": offset, "projection": projection}
    strategy = make_pegp(sharp, kind, plugins=[epochs], **options)
    for t, experience in enumerate(small_benchmark().train_stream):
        strategy.train(experience)
        merged = values(strategy.model.branch)
        if t == 0:
            assert len(epochs.epochs[t]) == 3
            assert equal(merged, epochs.epochs[t][-1])
            continue
        assert len(epochs.epochs[t]) == 5
        p, q, b = epochs.epochs[t][2], epochs.epochs[t][4], 1 / (t + offset)
        assert not equal(p, q)
        assert equal(epochs.starts[t], values(epochs.epoch_starts[t][3].branch))  # from the old one
        for name, value in merged.items():
            expected = (1 - b) * p[name] + b * q[name]
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
        assert equal(values(strategy.model.head), epochs.heads[t][-1])
        assert not equal(epochs.heads[t][2], epochs.heads[t][4])


def test_the_second_stage_adds_how_far_the_tokens_are_from_those_of_the_first(
    sharp, small_benchmark, make_pegp
):
    epochs = Epochs()
    strategy = make_pegp(sharp, plugins=[epochs], merge_epochs=1, lr=0.05)
    first, second, _ = small_benchmark().train_stream
    strategy.train(first)
    strategy.train(second)
    live = epochs.epoch_starts[1][3].eval()
    fixed = copy.deepcopy(live)
    fixed.branch.load_state_dict(epochs.epochs[1][2])
    x, y, loss = epochs.losses[1][3]  # one minibatch an epoch
    with torch.no_grad():
        tokens = [
            m.backbone.norm(forward_tokens(m.backbone, m.branch, x)[1]) for m in (live, fixed)
        ]
        away = (tokens[0] - tokens[1]).square().mean().item()
        error = F.cross_entropy(live(x)[:, 2:4], y - 2).item()
    assert away > 1e-3
    assert loss == pytest.approx(error + away, rel=1e-4)
    x, y, loss = epochs.losses[1][2]  # the first stage has no such term
    with torch.no_grad():
        error = F.cross_entropy(epochs.epoch_starts[1][2].eval()(x)[:, 2:4], y - 2).item()
    assert loss == pytest.approx(error, rel=1e-4)


def test_the_learning_rate_falls_and_rises_again_as_on_clip(sharp, small_benchmark):
    rates = []

    class Rates(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            rates.append(strategy.optimizer.param_groups[0]["lr"])

    options = {"train_epochs": 2, "head_epochs": 0, "merge_epochs": 3, "merge_share": 0.5}
    strategy = build_pegp(
        backbone=sharp, optimizer="sgd", lr=0.01, anneal=True, plugins=[Rates()], **options
    )
    for experience in small_benchmark().train_stream[:2]:
        strategy.train(experience)
    expected = [0.01, 0.005, *[0.01, 0.005], *[0, 0.005, 0.01]]
    assert rates == pytest.approx(expected, abs=1e-9)


def test_the_second_stage_is_not_projected(sharp, small_benchmark, make_pegp):
    epochs = Epochs()
    strategy = make_pegp(sharp, plugins=[epochs], merge_epochs=1)
    first, second, _ = small_benchmark().train_stream
    strategy.train(first)
    bases = {name: groups[0].float() for name, groups in strategy.projection.bases.items()}
    strategy.train(second)
    assert epochs.active == [[True] * 3, [True, True, True, False]]
    assert strategy.projection.active
    for name in ("adapters.0.down.weight", "adapters.0.up.weight"):
        for end, leaks in ((2, False), (3, True)):
            change = epochs.epochs[1][end][name] - epochs.starts[1][name]
            inside = (change @ bases[f"branch.{name}"]).square().sum() / change.square().sum()
            assert inside > 0.01 if leaks else inside < 1e-8


@pytest.mark.parametrize("recipe", ["released", "corrected"])
def test_one_optimizer_steps_both_stages_of_the_release(sharp, small_benchmark, make_pegp, recipe):
    """The first step of the second stage is Adam's, from the moments of the first or from none."""
    betas, lr, eps = (0.9, 0.999), 0.01, 1e-8
    seen = {}

    class Moments(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter == 1 and strategy.clock.train_exp_epochs == 3:
                seen["before"] = values(strategy.model)
                seen["gradient"] = {
                    n: p.grad.clone()
                    for n, p in strategy.model.named_parameters()
                    if p.grad is not None
                }

        def after_update(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter == 1:
                state = strategy.optimizer.state
                names = {n: state[p] for n, p in strategy.model.named_parameters() if p in state}
                seen["after" if strategy.clock.train_exp_epochs == 3 else "moments"] = (
                    values(strategy.model),
                    copy.deepcopy(names),
                )

    strategy = make_pegp(sharp, "lora", recipe=recipe, plugins=[Moments()], merge_epochs=1)
    first, second, _ = small_benchmark(per_class=2).train_stream
    strategy.train_mb_size = 4  # a step an epoch
    strategy.train(first)
    strategy.train(second)
    moments, after = seen["moments"][1], seen["after"][0]
    assert len(seen["gradient"]) > 10
    for name, gradient in seen["gradient"].items():
        fresh = recipe == "corrected"
        mean, square, step = (
            (torch.zeros_like(gradient), torch.zeros_like(gradient), 0)
            if fresh
            else (moments[name][key] for key in ("exp_avg", "exp_avg_sq", "step"))
        )
        step = int(step) + 1
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient.square()
        size = (square / (1 - betas[1] ** step)).sqrt() + eps
        expected = seen["before"][name] - lr * mean / (1 - betas[0] ** step) / size
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-6, msg=name)
    assert {int(state["step"]) for state in moments.values()} == {2, 3}  # a head-only epoch


def test_without_merging_the_first_stage_is_the_result(sharp, small_benchmark, make_pegp):
    results = []
    for merge_epochs in (0, 1):
        epochs = Epochs()
        strategy = make_pegp(sharp, plugins=[epochs], merge_epochs=merge_epochs)
        first, second, _ = small_benchmark().train_stream
        strategy.train(first)
        strategy.train(second)
        results.append((values(strategy.model.branch), epochs))
    (kept, alone), (merged, both) = results
    assert len(alone.epochs[1]) == 3
    assert equal(kept, both.epochs[1][2])
    assert not equal(kept, merged)


def test_under_autocast_too_the_second_stage_starts_away_from_the_first(
    sharp, small_benchmark, make_pegp
):
    """Autocast keeps the casts of weights: those of one stage must not serve the other."""
    losses = {}
    for mixed_precision in ("no", "bf16"):
        epochs = Epochs()
        options = {"projection": False, "merge_epochs": 2, "mixed_precision": mixed_precision}
        strategy = make_pegp(sharp, plugins=[epochs], **options)
        first, second, _ = small_benchmark().train_stream
        strategy.train(first)
        strategy.train(second)
        losses[mixed_precision] = [loss for _, _, loss in epochs.losses[1]]
    assert losses["no"][3] > losses["no"][0] + 0.1  # there is something to notice
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.1)


def test_an_interrupted_second_stage_leaves_projection_on(sharp, small_benchmark, make_pegp):
    class Interrupt(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            if strategy.clock.train_exp_epochs == strategy.train_epochs:
                raise KeyboardInterrupt

    strategy = make_pegp(sharp, plugins=[Interrupt()], merge_epochs=1)
    first, second, _ = small_benchmark().train_stream
    strategy.train(first)
    with pytest.raises(KeyboardInterrupt):
        strategy.train(second)
    assert strategy.projection.active


class StopOnce(SupervisedPlugin):
    """Stops each experience but the first before this epoch, as early stopping does."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def before_training_exp(self, strategy, **kwargs):
        self.armed = strategy.clock.train_exp_counter > 0

    def before_training_epoch(self, strategy, **kwargs):
        if self.armed and strategy.clock.train_exp_epochs == self.epoch:
            strategy.stop_training()
            self.armed = False


def test_a_stop_in_the_second_stage_does_not_stop_the_next_experience(
    sharp, small_benchmark, make_pegp
):
    epochs = Epochs()
    strategy = make_pegp(sharp, plugins=[StopOnce(3), epochs], head_epochs=0, merge_epochs=1)
    strategy.train(small_benchmark().train_stream)
    assert len(epochs.losses[2]) == 3  # a minibatch an epoch of the first stage


@pytest.mark.parametrize("merge_epochs", [0, 1])
def test_a_stop_while_the_head_trains_alone_lets_the_rest_go(
    sharp, small_benchmark, make_pegp, merge_epochs
):
    epochs = Epochs()
    options = {"head_epochs": 2, "merge_epochs": merge_epochs}
    strategy = make_pegp(sharp, plugins=[StopOnce(1), epochs], **options)
    strategy.train(small_benchmark().train_stream)
    assert all(p.requires_grad for p in strategy.model.branch.parameters())
    sites = [len(each) for each in strategy.projection.summary()["experiences"]]
    assert sites == [9, 9, 9]
    moved = [not equal(epochs.starts[1], epoch) for epoch in epochs.epochs[1]]
    assert moved == [False, True][: 1 + merge_epochs]  # the second stage is not the head's alone


# --- streams -------------------------------------------------------------------------------------


def test_online_there_is_one_pass_projected_from_the_first_step_of_the_second_experience(
    sharp, small_benchmark, make_pegp
):
    epochs = Epochs()
    steps = []

    class Steps(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            self.start = values(strategy.model.branch)

        def after_update(self, strategy, **kwargs):
            end = values(strategy.model.branch)
            steps[-1].append({name: end[name] - p for name, p in self.start.items()})

    options = {"train_epochs": 1, "train_mb_size": 1, "merge_epochs": 3}
    strategy = make_pegp(sharp, plugins=[epochs], **options)
    strategy.plugins.append(Steps())  # after the projection
    chunks = small_benchmark("online", per_class=2, experience_size=2).train_stream
    bases = {}
    for i, chunk in enumerate(chunks):  # two of two images an experience
        steps.append([])
        strategy.train(chunk)
        assert len(epochs.epochs[i]) == 1
        assert not equal(epochs.starts[i], epochs.epochs[i][0])  # not the head alone
        if i == 1:
            bases = {name: groups[0].float() for name, groups in strategy.projection.bases.items()}
        elif i == 0:
            assert not strategy.projection.bases
    assert len(strategy.projection.summary()["experiences"]) == strategy.n_experiences_done == 3
    for name in ("adapters.0.down.weight", "adapters.0.up.weight"):
        shares = []
        for change in (step[name] for chunk in steps[:4] for step in chunk):
            inside = (change @ bases[f"branch.{name}"]).square().sum()
            shares.append((inside / change.square().sum().clamp(min=1e-30)).item())
        assert max(shares[:4]) > 0.1  # the first experience
        assert max(shares[4:]) < 1e-8
