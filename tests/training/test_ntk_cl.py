import copy

import pytest
import torch
from avalanche.benchmarks import nc_benchmark, tensors_benchmark
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin, ReplayPlugin
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import NTKCLModel
from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.training import NTKCL


def make(backbone, *, recipe="corrected", seed=0, lr=0.1, model_options=None, **options):
    torch.manual_seed(seed)
    model = NTKCLModel(backbone, recipe=recipe, **(model_options or {}))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    defaults = {"train_mb_size": 8, "train_epochs": 2, "evaluator": EvaluationPlugin()}
    return NTKCL(model=model, optimizer=optimizer, **(defaults | options))


class Record(SupervisedPlugin):
    """Keep each minibatch, and the network as each experience begins."""

    def __init__(self):
        super().__init__()
        self.batches, self.start, self.rates = [], [], []

    def before_training_exp(self, strategy, **kwargs):
        self.start.append(copy.deepcopy(strategy.model))
        self.batches.append([])

    def before_forward(self, strategy, **kwargs):
        self.batches[-1].append((strategy.mb_x.clone(), strategy.mb_y.clone()))
        self.rates.append(strategy.optimizer.param_groups[0]["lr"])


def released_loss(model, prototypes, reference, x, y, current):
    """The loss of the release, written out from its description."""
    c, p, m = model.views(x)
    weight = F.normalize(model.proxies.weight[current], dim=1)
    target = y - current[0]
    loss = sum(
        F.cross_entropy(model.proxies.sigma * F.normalize(z, dim=1) @ weight.T, target)
        for z in (c, p, m)
    )
    old = prototypes[: len(prototypes) - len(current)]
    z = F.normalize(torch.cat([m, old]), dim=1)
    labels = torch.cat([y, torch.arange(len(old))])
    s = z @ z.T / 0.1
    n, positive, negative = len(z), [], []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        negative.append(s[i, others].exp().sum().log())
        positive += [s[i, j].exp() for j in others if labels[j] == labels[i]]
    nce = -torch.stack(positive).sum().log() + torch.stack(negative).mean()
    basis = torch.linalg.svd(F.normalize(prototypes.T, dim=0), full_matrices=True)[0][:, :40]
    outside = torch.eye(len(basis)) - basis @ basis.T
    orth = sum((outside @ F.normalize(z, dim=1).T).sum() for z in (c, p))
    reg = sum(
        (w - reference[name]).square().sum()
        for name, w in model.named_parameters()
        if name.startswith(("channel.", "patch.", "fusion.")) and name.endswith("weight")
    )
    return loss + 0.03 * -nce + 1e-4 * orth + 1e-3 * reg


def test_released_recipe_is_the_released_training(backbone):
    """Every parameter after three experiences equals that of the release, to float32 rounding.

    All old prototypes, four in the third, are contrasted in its last minibatch of three images too.
    """
    record = Record()
    options = {"model_options": {"dropout": 0.0}, "plugins": [record], "train_mb_size": 7}
    strategy = make(backbone, recipe="released", **options)
    benchmark = toy_benchmark(classes_per_experience=(2, 2, 2), per_class=5)
    compared = 0
    for t in range(3):
        strategy.train(benchmark.train_stream[t])
        model = record.start[t]
        prototypes = model.prototypes.prototypes.clone()
        reference = {n: p.detach().clone() for n, p in model.named_parameters()}
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=0.1, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)
        current = list(range(2 * t, 2 * t + 2))
        for i, (x, y) in enumerate(record.batches[t]):
            optimizer.zero_grad()
            released_loss(model, prototypes, reference, x, y, current).backward()
            optimizer.step()
            if i % 2 == 1:
                schedule.step()
        ours = dict(strategy.model.named_parameters())
        for name, p in model.named_parameters():
            if not name.startswith(("channel_copies", "patch_copies", "backbone")):
                # a dozen steps of at most 0.1, each with a gradient of order 1 that is a sum of
                # some hundred float32 terms in another order
                atol = 12 * 0.1 * 100 * torch.finfo(torch.float32).eps
                torch.testing.assert_close(ours[name], p, atol=atol, rtol=1e-4, msg=name)
                compared += 1
    assert [len(x) for x, _ in record.batches[2]] == [7, 3] * 2
    assert compared > 90
    assert record.rates == pytest.approx([0.1, 0.1, 0.05, 0.05] * 3)


@pytest.mark.parametrize(("recipe", "experiences"), [("released", 2), ("corrected", 3)])
def test_older_copy_is_the_arithmetic_mean(backbone, recipe, experiences):
    ends = []

    class Ends(SupervisedPlugin):
        def after_training_exp(self, strategy, **kwargs):
            ends.append(copy.deepcopy(strategy.model.channel.state_dict()))

    strategy = make(backbone, recipe=recipe, plugins=[Ends()])
    strategy.train(toy_benchmark().train_stream)
    kept = strategy.model.channel_copies[0].state_dict()
    for name, value in kept.items():
        mean = torch.stack([end[name] for end in ends[:experiences]]).mean(0)
        torch.testing.assert_close(value, mean, atol=1e-6, rtol=1e-5)


def test_released_start_with_seven_then_five_classes(backbone):
    """Two empty rows of the first experience are drawn as zero vectors with labels 0 and 1."""
    drawn = []

    class Look(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            contrast = next(p for p in strategy.plugins if hasattr(p, "candidates"))
            drawn.append(contrast.candidates(strategy).tolist())

    options = {"plugins": [Look()], "train_epochs": 1, "train_mb_size": 50}
    benchmark = toy_benchmark(classes_per_experience=(7, 5, 5), per_class=2)
    strategy = make(backbone, recipe="released", **options)
    strategy.train(benchmark.train_stream[:2])
    assert drawn == [[0, 1], list(range(7))]
    drawn.clear()
    strategy = make(backbone, recipe="corrected", **options)
    strategy.train(benchmark.train_stream[:2])
    assert drawn == [[], list(range(7))]


def test_corrected_terms_have_their_sign_and_basis(backbone):
    strategy = make(backbone)
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream[:2])
    contrast, orthogonality, retention = strategy.plugins[:3]
    assert contrast.weight > 0
    assert orthogonality.basis.shape == (64, 2)  # of the two classes of the first experience
    biases = [n for n in retention.reference if n.endswith("bias")]
    assert any(n.startswith("channel") for n in biases)
    assert any(n.startswith("patch") for n in biases)


def test_basis_is_computed_once_an_experience_and_never_in_evaluation(backbone, monkeypatch):
    calls = []
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: calls.append(1) or svd(*a, **k))
    benchmark = toy_benchmark()
    for recipe, expected in (("released", 3), ("corrected", 2)):  # no old classes: no SVD
        calls.clear()
        strategy = make(backbone, recipe=recipe)
        strategy.train(benchmark.train_stream)
        strategy.eval(benchmark.test_stream)
        assert len(calls) == expected


def accuracy(strategy, experiences):
    strategy.evaluator = None
    right = total = 0
    model = strategy.model.eval()
    for experience in experiences:
        for x, y, t in experience.dataset:
            label = torch.tensor([t])
            with torch.no_grad():
                right += int(model(x[None], label).argmax() == y)
            total += 1
    return right / total


@pytest.mark.parametrize("recipe", ["released", "corrected"])
@pytest.mark.parametrize("scenario", ["class", "task", "domain", "online"])
def test_every_scenario_is_learned(backbone, scenario, recipe):
    benchmark = toy_benchmark(scenario)
    frozen = copy.deepcopy(backbone.state_dict())
    strategy = make(backbone, recipe=recipe, lr=0.01, train_epochs=1)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    assert accuracy(strategy, benchmark.test_stream) > 0.8
    assert strategy.task_label_at_test is (scenario == "task")
    assert all(torch.equal(v, frozen[k]) for k, v in backbone.state_dict().items())
    counts = strategy.model.prototypes.counts
    assert counts.tolist() == [6] * 6  # accumulated where classes repeat, never twice


def test_prototypes_are_class_means_of_the_fused_view(backbone):
    strategy = make(backbone, train_epochs=1)
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream[0])
    model = strategy.model.eval()
    data = benchmark.train_stream[0].dataset.eval()
    x = torch.stack([data[i][0] for i in range(len(data))])
    y = torch.tensor([data[i][1] for i in range(len(data))])
    with torch.no_grad():
        fused = model.views(x).fused
    for c in (0, 1):
        torch.testing.assert_close(
            model.prototypes.prototypes[c], fused[y == c].mean(0), atol=1e-5, rtol=1e-5
        )


def test_a_class_with_one_image_and_a_last_minibatch_of_one(backbone):
    benchmark = toy_benchmark(classes_per_experience=(3, 1), per_class=1)
    strategy = make(backbone, train_mb_size=2)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert all(p.isfinite().all() for p in strategy.model.parameters())
    assert strategy.model.prototypes.counts.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("recipe", ["released", "corrected"])
@pytest.mark.parametrize("n_copies", [2, 3])
def test_several_copies(backbone, recipe, n_copies):
    strategy = make(
        backbone, recipe=recipe, model_options={"n_copies": n_copies, "use_pretrained": True}
    )
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    oldest = strategy.model.channel_copies[n_copies - 1].adapters[0].up.weight
    assert oldest.abs().max() > 0


def test_more_copies_than_experiences_is_a_config_error(backbone):
    strategy = make(backbone, model_options={"n_copies": 3})
    with pytest.raises(ConfigError, match="use n_copies=1"):
        strategy.train(toy_benchmark(classes_per_experience=(3, 3)).train_stream)


def run(backbone, seed):
    torch.manual_seed(seed)
    strategy = make(copy.deepcopy(backbone), seed=seed)
    strategy.train(toy_benchmark().train_stream)
    return strategy.model.state_dict()


def test_same_seed_same_numbers(backbone):
    one, two, other = run(backbone, 3), run(backbone, 3), run(backbone, 4)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("recipe", ["released", "corrected"])
def test_prediction_does_not_depend_on_the_minibatch_around_it(backbone, recipe):
    strategy = make(backbone, recipe=recipe)
    strategy.train(toy_benchmark().train_stream)
    model = strategy.model.eval()
    x = torch.randn(9, 3, 16, 16)
    whole = model(x)
    order = torch.randperm(9)
    torch.testing.assert_close(model(x[order]), whole[order], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(x[:1]), whole[:1], atol=1e-5, rtol=1e-5)


def test_works_with_avalanches_replay_metrics_and_periodic_evaluation(backbone):
    benchmark = toy_benchmark()
    evaluator = EvaluationPlugin(accuracy_metrics(minibatch=True, experience=True, stream=True))
    strategy = make(
        backbone, plugins=[ReplayPlugin(mem_size=12)], evaluator=evaluator, eval_every=1, lr=0.01
    )
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[benchmark.test_stream[: t + 1]])
    results = strategy.eval(benchmark.test_stream)
    assert results["Top1_Acc_Stream/eval_phase/test_stream/Task000"] > 0.8


def test_works_with_early_stopping(backbone):
    benchmark = toy_benchmark()
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True))
    stop = EarlyStoppingPlugin(patience=1, val_stream_name="test_stream")
    strategy = make(backbone, plugins=[stop], evaluator=evaluator, eval_every=1, train_epochs=9)
    strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream[:1]])
    assert strategy.clock.train_iterations < 9 * 2


def test_any_avalanche_benchmark(backbone):
    class Data(TensorDataset):
        targets = [0, 1, 2, 3] * 6

    x = torch.randn(24, 3, 16, 16)
    data = Data(x, torch.tensor(Data.targets))
    for task_labels in (False, True):
        benchmark = nc_benchmark(data, data, 2, task_labels, seed=1)
        strategy = make(backbone)
        strategy.train(benchmark.train_stream)
        strategy.eval(benchmark.test_stream)
        assert strategy.task_label_at_test is task_labels
    parts = [(x[:8], torch.zeros(8, dtype=torch.long)), (x[8:], torch.ones(16, dtype=torch.long))]
    benchmark = tensors_benchmark(train_tensors=parts, test_tensors=parts, task_labels=[0, 0])
    strategy = make(backbone)
    strategy.train(benchmark.train_stream)
    assert strategy.model.prototypes.counts.tolist() == [8, 16]


def test_bfloat16_learns_too(backbone):
    benchmark = toy_benchmark()
    strategy = make(backbone, lr=0.01, mixed_precision="bf16")
    strategy.train(benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    assert accuracy(strategy, benchmark.test_stream) > 0.8


@pytest.mark.gpu
@pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
def test_trains_on_a_gpu(backbone, mixed_precision):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    benchmark = toy_benchmark()
    strategy = make(backbone, lr=0.01, device="cuda", mixed_precision=mixed_precision)
    strategy.train(benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    strategy.model.cpu()
    assert accuracy(strategy, benchmark.test_stream) > 0.8
