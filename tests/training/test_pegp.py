import copy
import io
import json
from itertools import pairwise

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
from rich.console import Console
from torch.nn import functional as F

from avalanche_peftcl.benchmarks import make_benchmark
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import InputConfig, PEFTModel, forward_tokens
from avalanche_peftcl.models.attention_adapter import build_attention_adapters
from avalanche_peftcl.models.lora import build_lora
from avalanche_peftcl.models.prefix import build_prefix
from avalanche_peftcl.models.prompt_tokens import build_prompt
from avalanche_peftcl.progress import RunProgress
from avalanche_peftcl.run import run
from avalanche_peftcl.testing import toy_backbone, toy_benchmark, toy_images
from avalanche_peftcl.training import PEGP
from avalanche_peftcl.training.pegp import build_pegp

# wide enough that some images leave room to learn
ROOMY = {
    "adapter": lambda b: build_attention_adapters(backbone=b, r=32),
    "lora": lambda b: build_lora(backbone=b, r=32),
    "prefix": lambda b: build_prefix(backbone=b, length=32),
    "prompt": lambda b: build_prompt(
        backbone=b, length=48, init_bound=1.0, against="queries", project_values=True
    ),
}


@pytest.fixture
def sharp():
    """A ViT of 5 tokens, 64 dimensions and 2 heads whose attention is far from uniform."""
    backbone = toy_backbone(img_size=8, embed_dim=64, num_heads=2)
    with torch.no_grad():
        for block in backbone.blocks:
            block.attn.qkv.weight.mul_(8)
            block.attn.proj.weight.mul_(8)
    return backbone


def small(scenario="class", *, per_class=1, **options):
    """Three experiences of images of 8 pixels, 5 tokens each."""
    train, test = toy_images(6, per_class), toy_images(6, 3, seed=1)
    defaults = {"classes_per_experience": (2, 2, 2)} if scenario != "domain" else {}
    return make_benchmark(
        train,
        test,
        input_config=InputConfig(img_size=8),
        scenario=scenario,
        **(defaults | {"augment": "none", "class_order": list(range(6))} | options),
    )


def make(backbone, branch=None, *, seed=0, lr=0.01, optimizer=torch.optim.Adam, **options):
    torch.manual_seed(seed)
    branch = branch or ROOMY["adapter"]
    model = PEFTModel(backbone, branch(backbone))
    defaults = {"train_mb_size": 2, "train_epochs": 3, "head_epochs": 1, "merge_epochs": 0}
    defaults |= {"threshold": 1.0, "n_samples": None, "evaluator": EvaluationPlugin()}
    return PEGP(model=model, optimizer=optimizer(model.parameters(), lr=lr), **(defaults | options))


def images(experience):
    data = experience.dataset.eval()
    return torch.stack([data[i][0] for i in range(len(data))])


@torch.no_grad()
def features(strategy, experience):
    return strategy.model.eval().embed(images(experience))


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


# --- projection ----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ROOMY)
def test_old_features_stay_on_a_gpu(sharp, kind, mixed_precision):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    options = {"device": "cuda", "mixed_precision": mixed_precision}
    strategy = make(sharp, ROOMY[kind], lr=0.05, **options)
    first, second, _ = small().train_stream
    x = images(first).cuda()
    strategy.train(first)
    with torch.no_grad():
        old, start = strategy.model.eval().embed(x), values(strategy.model.branch)
    strategy.train(second)
    with torch.no_grad():
        torch.testing.assert_close(strategy.model.eval().embed(x), old, atol=1e-4, rtol=0)
    assert not equal(start, values(strategy.model.branch))


@pytest.mark.parametrize("projection", [True, False], ids=["projected", "free"])
@pytest.mark.parametrize("kind", ROOMY)
def test_old_features_stay_and_new_ones_change(sharp, kind, projection):
    strategy = make(sharp, ROOMY[kind], lr=0.05, projection=projection)
    first, second, third = small().train_stream
    strategy.train(first)
    old, new = features(strategy, first), features(strategy, third)
    strategy.train(second)
    newer = features(strategy, second)
    strategy.train(third)
    drift = [(features(strategy, first) - old), (features(strategy, second) - newer)]
    drift = [difference.abs().max().item() for difference in drift]
    assert max(drift) < 1e-4 if projection else min(drift) > 0.1
    assert (features(strategy, third) - new).abs().max() > 1e-3
    if projection:
        sites = strategy.projection.summary()["experiences"][-1]
        assert all(site["captured_energy"] == pytest.approx(1) for site in sites)
        assert any(site["size"] < site["dim"] for site in sites)


def test_prompts_keep_the_products_of_the_paper(sharp):
    strategy = make(sharp, lambda b: build_prompt(backbone=b, length=8, init_bound=0.5))
    tokens, block = strategy.model.branch.extensions["0"].tokens, sharp.blocks[0]
    old, seen, prompts = [], [], []
    for experience in small().train_stream:
        start = tokens.detach().clone()
        strategy.train(experience)
        change = tokens.detach() - start
        assert change.norm() > 0.1
        for x, product in zip(old, seen, strict=True):
            torch.testing.assert_close(x @ tokens.detach().T, product, atol=1e-5, rtol=1e-4)
        for p in prompts:
            assert (p @ change.T).abs().max() < 1e-5
        with torch.no_grad():
            old.append(block.norm1(sharp.embed(images(experience))).flatten(0, 1))
        seen.append(old[-1] @ tokens.detach().T)
        prompts.append(tokens.detach().clone())


@pytest.mark.parametrize("project_head", [True, False])
def test_old_logits_stay_where_the_head_is_projected_too(sharp, project_head):
    """Of one head for all domains, which each of them trains anew."""
    strategy = make(sharp, project_head=project_head, head_epochs=2)
    options = {"train_domains": [0, 1, 2] * 6, "test_domains": [0, 1, 2] * 6}
    train = small("domain", per_class=3, **options).train_stream
    strategy.train(train[0])
    old, start = images(train[0]), strategy.model.head.weight.detach().clone()
    logits = strategy.model.eval()(old).detach()
    strategy.train(train[1])
    drift = (strategy.model.eval()(old).detach() - logits).abs().max()
    assert drift < 1e-4 if project_head else drift > 1e-3
    assert (strategy.model.head.weight.detach() - start).abs().max() > 1e-3
    assert strategy.projection.unprotected == ([] if project_head else ["head.weight", "head.bias"])


def test_replay_and_clipping_beside_it(sharp):
    strategy = make(sharp, plugins=[ReplayPlugin(mem_size=2)], max_grad_norm=0.5)
    first, second, _ = small().train_stream
    strategy.train(first)
    old = features(strategy, first)
    strategy.train(second)
    assert (features(strategy, first) - old).abs().max() < 1e-4


def test_the_loss_is_over_the_classes_of_the_experience(sharp):
    epochs = Epochs()
    strategy = make(sharp, plugins=[epochs])
    for t, experience in enumerate(small().train_stream):
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
def test_the_head_trains_alone_first_in_all_experiences_but_the_first(sharp, head_epochs):
    epochs = Epochs()
    options = {"train_mb_size": 1, "projection": False, "head_epochs": head_epochs}
    strategy = make(sharp, plugins=[epochs], **options)
    for experience in small().train_stream:
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
    ("kind", "offset", "projection"), [*((kind, 1.0, True) for kind in ROOMY), ("lora", 0.5, False)]
)
def test_both_stages_are_merged_by_the_number_of_experiences(sharp, kind, offset, projection):
    epochs = Epochs()
    options = {"merge_epochs": 2, "merge_offset": offset, "projection": projection}
    strategy = make(sharp, ROOMY[kind], plugins=[epochs], **options)
    for t, experience in enumerate(small().train_stream):
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


def test_the_second_stage_adds_how_far_the_tokens_are_from_those_of_the_first(sharp):
    epochs = Epochs()
    strategy = make(sharp, plugins=[epochs], merge_epochs=1, lr=0.05)
    first, second, _ = small().train_stream
    strategy.train(first)
    strategy.train(second)
    live = epochs.epoch_starts[1][3].eval()
    fixed = copy.deepcopy(live)
    fixed.branch.load_state_dict(epochs.epochs[1][2])
    x, y, loss = epochs.losses[1][3]  # one minibatch an epoch
    with torch.no_grad():
        tokens = [m.backbone.norm(forward_tokens(m.backbone, m.branch, x)) for m in (live, fixed)]
        away = (tokens[0] - tokens[1]).square().mean().item()
        error = F.cross_entropy(live(x)[:, 2:4], y - 2).item()
    assert away > 1e-3
    assert loss == pytest.approx(error + away, rel=1e-4)
    x, y, loss = epochs.losses[1][2]  # the first stage has no such term
    with torch.no_grad():
        error = F.cross_entropy(epochs.epoch_starts[1][2].eval()(x)[:, 2:4], y - 2).item()
    assert loss == pytest.approx(error, rel=1e-4)


def test_the_second_stage_is_not_projected(sharp):
    epochs = Epochs()
    strategy = make(sharp, plugins=[epochs], merge_epochs=1)
    first, second, _ = small().train_stream
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


def test_without_merging_the_first_stage_is_the_result(sharp):
    results = []
    for merge_epochs in (0, 1):
        epochs = Epochs()
        strategy = make(sharp, plugins=[epochs], merge_epochs=merge_epochs)
        first, second, _ = small().train_stream
        strategy.train(first)
        strategy.train(second)
        results.append((values(strategy.model.branch), epochs))
    (kept, alone), (merged, both) = results
    assert len(alone.epochs[1]) == 3
    assert equal(kept, both.epochs[1][2])
    assert not equal(kept, merged)


def test_under_autocast_too_the_second_stage_starts_away_from_the_first(sharp):
    """Autocast keeps the casts of weights: those of one stage must not serve the other."""
    losses = {}
    for mixed_precision in ("no", "bf16"):
        epochs = Epochs()
        options = {"projection": False, "merge_epochs": 2, "mixed_precision": mixed_precision}
        strategy = make(sharp, plugins=[epochs], **options)
        first, second, _ = small().train_stream
        strategy.train(first)
        strategy.train(second)
        losses[mixed_precision] = [loss for _, _, loss in epochs.losses[1]]
    assert losses["no"][3] > losses["no"][0] + 0.1  # there is something to notice
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.1)


def test_an_interrupted_second_stage_leaves_projection_on(sharp):
    class Interrupt(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            if strategy.clock.train_exp_epochs == strategy.train_epochs:
                raise KeyboardInterrupt

    strategy = make(sharp, plugins=[Interrupt()], merge_epochs=1)
    first, second, _ = small().train_stream
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


def test_a_stop_in_the_second_stage_does_not_stop_the_next_experience(sharp):
    epochs = Epochs()
    strategy = make(sharp, plugins=[StopOnce(3), epochs], head_epochs=0, merge_epochs=1)
    strategy.train(small().train_stream)
    assert len(epochs.losses[2]) == 3  # a minibatch an epoch of the first stage


@pytest.mark.parametrize("merge_epochs", [0, 1])
def test_a_stop_while_the_head_trains_alone_lets_the_rest_go(sharp, merge_epochs):
    epochs = Epochs()
    options = {"head_epochs": 2, "merge_epochs": merge_epochs}
    strategy = make(sharp, plugins=[StopOnce(1), epochs], **options)
    strategy.train(small().train_stream)
    assert all(p.requires_grad for p in strategy.model.branch.parameters())
    sites = [len(each) for each in strategy.projection.summary()["experiences"]]
    assert sites == [9, 9, 9]
    moved = [not equal(epochs.starts[1], epoch) for epoch in epochs.epochs[1]]
    assert moved == [False, True][: 1 + merge_epochs]  # the second stage is not the head's alone


# --- streams -------------------------------------------------------------------------------------


def test_online_there_is_one_pass_projected_from_the_first_step_of_the_second_experience(sharp):
    epochs = Epochs()
    steps = []

    class Steps(SupervisedPlugin):
        def before_update(self, strategy, **kwargs):
            self.start = values(strategy.model.branch)

        def after_update(self, strategy, **kwargs):
            end = values(strategy.model.branch)
            steps[-1].append({name: end[name] - p for name, p in self.start.items()})

    options = {"train_epochs": 1, "train_mb_size": 1, "merge_epochs": 3}
    strategy = make(sharp, plugins=[epochs], **options)
    strategy.plugins.append(Steps())  # after the projection
    chunks = small("online", per_class=2, experience_size=2).train_stream
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


@pytest.mark.parametrize("scenario", ["class", "task", "domain", "online"])
def test_what_is_used_of_task_labels(backbone, scenario):
    benchmark = toy_benchmark(scenario)
    options = {"train_mb_size": 8, "merge_epochs": 1, "threshold": 0.9}
    strategy = make(backbone, **options)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    strategy.eval(benchmark.test_stream)
    assert strategy.task_label_at_test is (scenario == "task")
    rows = {"class": 6, "task": 6, "domain": 6, "online": 6}
    assert len(strategy.model.head.weight) == rows[scenario]
    if scenario == "task":  # only the classes of the image's experience compete
        x, _, t = benchmark.test_stream[1].dataset[0]
        logits = strategy.model.eval()(x[None], torch.tensor([t]))
        assert logits.argmax().item() in (2, 3)
        assert (logits[0, [0, 1, 4, 5]] < logits[0, [2, 3]].min() - 100).all()


def test_predictions_lean_on_neither_order_nor_company_nor_labels(backbone):
    """A release let the task labels of a batch decide which classes compete."""
    strategy = make(backbone, train_mb_size=4, merge_epochs=1, threshold=0.9, lr=0.001)
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream)

    class Collect(SupervisedPlugin):
        def after_eval_forward(self, strategy, **kwargs):
            seen.extend(strategy.mb_output.argmax(dim=1).tolist())

    strategy.plugins.append(Collect())
    tests = [experience.dataset for experience in benchmark.test_stream]
    whole = tests[0].concat(tests[1]).concat(tests[2])
    targets = torch.tensor(list(whole.targets))
    experience = copy.copy(benchmark.test_stream[0])
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    results = []
    for indices in (torch.arange(len(whole)), order):
        for size in (1, 7, len(whole)):
            seen, strategy.eval_mb_size = [], size
            experience.dataset = whole.subset(indices.tolist())
            strategy.eval([experience])
            predictions = torch.empty(len(whole), dtype=torch.long)
            predictions[indices] = torch.tensor(seen)
            results.append(predictions)
    assert all(torch.equal(result, results[0]) for result in results)
    assert len(set(results[0].tolist())) > 1
    accuracies = {(result == targets).float().mean().item() for result in results}
    assert len(accuracies) == 1
    seen, unpack = [], strategy._unpack_minibatch

    def relabel():
        unpack()
        strategy.mbatch[1] = strategy.mbatch[1].roll(1)
        strategy.mbatch[-1] = torch.zeros_like(strategy.mbatch[-1])

    strategy._unpack_minibatch = relabel
    strategy.eval([experience])
    assert torch.equal(torch.tensor(seen), results[0][order])


# --- recipes and options -------------------------------------------------------------------------


def test_recipes_choose_the_projection(sharp):
    corrected, released = make(sharp), make(sharp, recipe="released", threshold=0.999)
    assert type(corrected.projection).__name__ == "GradientProjectionPlugin"
    assert corrected.projection.where == "step"
    assert make(sharp, where="gradient").projection.where == "gradient"
    assert type(released.projection).__name__ == "ReleasedProjectionPlugin"
    assert released.projection.where == "gradient"
    assert make(sharp, projection=False).projection is None


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_nothing_was_released_for_prefix_and_prompt(sharp, kind):
    strategy = make(sharp, ROOMY[kind], recipe="released")
    words = r"for adapters and LoRA only, not for branch\.extensions.*; take recipe=\"corrected\""
    with pytest.raises(ConfigError, match=words):
        strategy.train(small().train_stream[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"recipe": "released", "where": "step"},
            'projects the gradients of adapters and LoRA; leave out where="step"',
        ),
        ({"head_epochs": 4}, "head_epochs=4 must be from 0 to train_epochs=3"),
        ({"head_epochs": -1}, "head_epochs=-1 must be from 0 to train_epochs=3"),
        ({"merge_epochs": -1}, "merge_epochs=-1 and merge_offset=1.0 must not be negative"),
        ({"merge_offset": -0.5}, "merge_epochs=0 and merge_offset=-0.5 must not be negative"),
        ({"threshold": 1.1}, r"threshold must be in \[0, 1\], not 1.1"),
        ({"where": "weights"}, "where must be gradient or step, not 'weights'"),
        ({"n_samples": 0}, "n_samples must be at least 1, or None for all, not 0"),
        ({"recipe": "relased"}, "recipe must be .* not 'relased'"),
        ({"recipe": "released", "project_head": True}, "project_head"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(sharp, options, words):
    with pytest.raises(ConfigError, match=words):
        make(sharp, **options)


@pytest.mark.parametrize(
    ("kind", "site", "released"),
    [
        ("adapter", "branch.adapters.0.down.weight", 0.999),
        ("lora", "branch.tuners.blocks_0_attn_qkv.lora_A.default.weight", 0.99),
        ("prefix", "branch.extensions.0.keys", 0.99),
        ("prompt", "branch.extensions.0.tokens", 0.99),
    ],
)
def test_the_kind_chooses_module_and_threshold(sharp, kind, site, released):
    strategy = build_pegp(backbone=sharp, peft=kind, r=3, length=4, blocks=[0])
    assert strategy.projection.threshold == 0.99
    sites = strategy.projection.sites(strategy.model)
    assert sites[0].name == site
    assert sites[0].parameter.shape == ((3, 64) if kind in ("adapter", "lora") else (4, 64))
    assert all(".0." in each.name or "blocks_0" in each.name for each in sites)
    other = build_pegp(backbone=sharp, peft=kind, recipe="released")
    assert other.projection.threshold == released
    assert build_pegp(backbone=sharp, peft=kind, threshold=0.5).projection.threshold == 0.5


def test_any_module_with_sites_will_do(sharp):
    module = build_prompt(backbone=sharp, length=2, blocks=[1])
    strategy = build_pegp(backbone=sharp, module=module, train_epochs=3)
    assert strategy.model.branch is module


# --- what a run records --------------------------------------------------------------------------


def test_a_run_records_and_shows_the_projection(tmp_path):
    config = RunConfig.model_validate(
        {
            "output": tmp_path / "run",
            "backbone": {"name": "vit_glyph"},
            "benchmark": {"name": "digits", "n_experiences": 2, "train_per_class": 1},
            "strategy": {
                "name": "pegp",
                "train_epochs": 2,
                "head_epochs": 1,
                "n_samples": 4,
                "blocks": [0],
            },
        }
    )
    console = Console(file=io.StringIO(), width=200)
    record = run(config, reporter=RunProgress(console))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    summary = metrics["plugins"]["GradientProjectionPlugin"]
    assert summary == json.loads(json.dumps(record.metrics["plugins"]["GradientProjectionPlugin"]))
    assert summary["threshold"] == 0.99
    assert summary["where"] == "step"
    assert summary["unprotected"] == ["head.weight", "head.bias"]
    first, second = summary["experiences"]
    names = [f"branch.adapters.0.{name}" for name in ("down.weight", "up.weight", "scale")]
    for experience in (first, second):
        assert [site["site"] for site in experience] == names
        assert all(0 < site["size"] <= site["dim"] for site in experience)
        assert all(site["captured_energy"] > 0.98 for site in experience)
    assert [site["removed_share"] for site in first] == [0.0] * 3
    assert all(0 < site["removed_share"] <= 1 for site in second)
    lines = [line for line in console.file.getvalue().splitlines() if "projection: " in line]
    assert len(lines) == 2
    size, dim = (sum(site[key] for site in second) for key in ("size", "dim"))
    assert lines[1].startswith(f"  projection: {size} of {dim} directions at 3 sites, ")
