import copy

import pytest
import torch
from avalanche.benchmarks import tensors_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.models import SimpleMLP
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import AdapterBranch, PEFTModel
from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.training import PEFTTemplate


def make_benchmark(n=12, size=16, classes=((0, 1), (2, 3), (4,)), task_labels=(0, 0, 0)):
    generator = torch.Generator().manual_seed(0)

    def images(pair):
        y = torch.tensor(pair).repeat(n)[:n]
        return torch.randn(n, 3, size, size, generator=generator) + y[:, None, None, None], y

    parts = [images(pair) for pair in classes]
    return tensors_benchmark(train_tensors=parts, test_tensors=parts, task_labels=list(task_labels))


def make_strategy(backbone, **options):
    torch.manual_seed(0)
    model = PEFTModel(backbone, AdapterBranch(backbone.embed_dim, backbone.depth, dropout=0.0))
    return PEFTTemplate(
        **{
            "model": model,
            "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            "train_mb_size": 5,
            "evaluator": EvaluationPlugin(),
        }
        | options
    )


def trainable(strategy):
    return {n: p for n, p in strategy.model.named_parameters() if p.requires_grad}


def in_optimizer(strategy):
    return {id(p) for g in strategy.optimizer.param_groups for p in g["params"]}


def test_only_parameters_that_train_are_in_the_optimizer(backbone):
    strategy = make_strategy(backbone)
    frozen = copy.deepcopy(backbone.state_dict())
    for experience in make_benchmark().train_stream:
        strategy.train(experience)
        assert in_optimizer(strategy) == set(map(id, trainable(strategy).values()))
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, frozen[name])
    assert strategy.model.head.weight.shape == (5, 32)


def test_two_groups_and_a_growing_head(backbone):
    model = PEFTModel(backbone, AdapterBranch(32, 3))
    groups = [{"params": model.branch.parameters()}, {"params": model.head.parameters(), "lr": 0.3}]
    strategy = make_strategy(backbone, model=model, optimizer=torch.optim.AdamW(groups, lr=0.01))
    for experience in make_benchmark().train_stream:
        strategy.train(experience)
    assert in_optimizer(strategy) == set(map(id, trainable(strategy).values()))
    assert strategy.optimizer.param_groups[1]["params"][0] is model.head.weight


def test_a_parameter_of_no_clear_group_is_a_config_error(backbone):
    model = PEFTModel(backbone, AdapterBranch(32, 3))
    groups = [{"params": [model.head.weight]}, {"params": [model.head.bias]}]
    strategy = make_strategy(backbone, model=model, optimizer=torch.optim.SGD(groups, lr=0.1))
    with pytest.raises(ConfigError, match="parameter groups"):
        strategy.train(make_benchmark().train_stream[0])


def test_upstream_still_puts_everything_in_the_optimizer():
    """Notice when the host no longer does: make_optimizer can then go."""
    from avalanche.training import Naive

    model = SimpleMLP(input_size=3 * 16 * 16, num_classes=5)
    model.features.requires_grad_(False)
    optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
    strategy = Naive(model=model, optimizer=optimizer, train_mb_size=5, evaluator=None)
    strategy.train(make_benchmark().train_stream[0])
    assert len(in_optimizer(strategy)) == len(list(model.parameters()))


def test_a_backbone_stays_in_eval_mode(make_backbone):
    seen = []

    strategy = make_strategy(make_backbone())
    dropouts = [m for m in strategy.model.backbone.modules() if isinstance(m, nn.Dropout)]
    for each in dropouts:
        each.p = 0.5
    dropouts[0].register_forward_hook(lambda module, *_: seen.append(module.training))
    strategy.train(make_benchmark().train_stream[0])
    assert seen
    assert not any(seen)
    assert strategy.model.branch.adapters[0].dropout.training


def test_any_other_model_is_adapted_as_avalanche_does():
    model = SimpleMLP(input_size=3 * 16 * 16, num_classes=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    strategy = PEFTTemplate(model=model, optimizer=optimizer, train_mb_size=5, evaluator=None)
    before = copy.deepcopy(model.state_dict())
    benchmark = make_benchmark()
    strategy.train(benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])


def test_accumulation_equals_one_large_minibatch(backbone):
    experience = make_benchmark(classes=((0, 1),), task_labels=(0,)).train_stream[0]
    states = []
    for options in ({"train_mb_size": 12}, {"train_mb_size": 4, "accumulation_steps": 3}):
        strategy = make_strategy(copy.deepcopy(backbone), **options)
        strategy.train(experience)
        states.append({n: p.detach() for n, p in trainable(strategy).items()})
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-5, rtol=1e-4)


def test_the_last_smaller_accumulation_step_is_a_mean_of_its_own(backbone):
    shares, gradients = [], []

    class Kept(torch.optim.SGD):
        def step(self, *args, **kwargs):
            head = self.param_groups[0]["params"][-1]  # its bias: no feature is in its gradient
            gradients.append(head.grad.clone())
            return super().step(*args, **kwargs)

    class Shares(SupervisedPlugin):
        def after_backward(self, strategy, **kwargs):
            shares.append((len(strategy.mb_y), strategy.loss_share, strategy.mb_output.detach()))

    model = PEFTModel(backbone, AdapterBranch(32, 3, dropout=0.0))
    strategy = make_strategy(
        backbone,
        model=model,
        optimizer=Kept(model.parameters(), lr=0.0),
        train_mb_size=5,
        accumulation_steps=2,
        plugins=[Shares()],
    )
    strategy.train(make_benchmark().train_stream[0])
    assert [(n, share) for n, share, _ in shares] == [(5, 0.5), (5, 0.5), (2, 1.0)]
    assert len(gradients) == 2
    # of the last minibatch alone: mean of softmax minus one-hot, which sum to 0 over its images
    last = shares[-1][2].softmax(1)
    one_hot = last.mean(0) - gradients[-1]
    assert one_hot.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert set(one_hot.mul(2).round(decimals=4).tolist()) <= {0.0, 1.0, 2.0}


def test_gradients_are_clipped(backbone):
    norms = []

    class Norm(torch.optim.SGD):
        def step(self, *args, **kwargs):
            grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
            norms.append(torch.cat([g.flatten() for g in grads]).norm().item())
            return super().step(*args, **kwargs)

    model = PEFTModel(backbone, AdapterBranch(32, 3))
    strategy = make_strategy(
        backbone, model=model, optimizer=Norm(model.parameters(), lr=0.1), max_grad_norm=0.01
    )
    strategy.train(make_benchmark().train_stream[0])
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_bfloat16_forward_gives_float32_logits_and_trains(backbone):
    strategy = make_strategy(backbone, mixed_precision="bf16")
    seen = []
    layer = strategy.model.branch.adapters[1].down
    layer.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    outputs = []

    original = strategy.forward
    strategy.forward = lambda: outputs.append(original()) or outputs[-1]
    strategy.train(make_benchmark().train_stream[0])
    assert set(seen) == {torch.bfloat16}
    assert {o.dtype for o in outputs} == {torch.float32}
    assert all(p.dtype == torch.float32 for p in trainable(strategy).values())


def test_task_labels_of_the_benchmark_make_heads_of_their_own(backbone):
    strategy = make_strategy(backbone, train_epochs=3)
    benchmark = make_benchmark(classes=((0, 1), (0, 1)), task_labels=(0, 1))
    strategy.train(benchmark.train_stream)
    assert strategy.task_label_at_test
    assert strategy.model.classes.keys.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    images = torch.randn(2, 3, 16, 16)
    logits = strategy.model.eval()(images, torch.tensor([0, 1]))
    assert logits.shape == (2, 2)
    assert (logits > -1000).all()


@pytest.mark.parametrize(
    ("option", "value"),
    [("mixed_precision", "fp8"), ("accumulation_steps", 0), ("max_grad_norm", 0.0)],
)
def test_bad_options_are_config_errors(backbone, option, value):
    with pytest.raises(ConfigError, match=option):
        make_strategy(backbone, **{option: value})


@pytest.mark.parametrize("build", ["build_naive", "build_ntk_cl", "build_nearest_class_mean"])
def test_evaluates_before_it_has_learned_anything(backbone, build):
    from avalanche_peftcl.training import naive, nearest_class_mean, ntk_cl

    make = {**vars(naive), **vars(nearest_class_mean), **vars(ntk_cl)}[build]
    strategy = make(backbone=backbone, evaluator=EvaluationPlugin())
    benchmark = make_benchmark()
    strategy.eval(benchmark.test_stream)
    images = torch.zeros(1, 3, 16, 16)
    assert strategy.model.eval()(images).tolist() == [[-1000.0] * 5]


def test_heads_know_all_classes_of_a_known_experience_from_its_first_chunk(backbone):
    """So the first chunk, of one class, is learnt against the others: its loss is not 0."""
    stream = toy_benchmark("online", experience_size=1).train_stream
    losses = []

    class Losses(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            losses.append(float(strategy.loss))

    strategy = make_strategy(backbone, plugins=[Losses()])
    for chunk, n_rows in ((stream[0], 2), (stream[12], 4)):  # the first of the first two
        assert len(chunk.classes_in_this_experience) == 1
        strategy.train(chunk)
        assert len(strategy.model.head.weight) == n_rows
        assert strategy.current_rows == [n_rows - 2, n_rows - 1]
    assert min(losses) > 0.01


@pytest.mark.filterwarnings("ignore:device=mps")
def test_doubles_are_refused_where_the_device_has_none(backbone, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    model = PEFTModel(backbone, AdapterBranch(backbone.embed_dim, backbone.depth))
    model.register_buffer("sums", torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ConfigError, match="no float64, in which PEFTModel keeps sums; choose"):
        make_strategy(backbone, device="mps", model=model)
