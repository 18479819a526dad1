"""PEGP: what projection keeps, scenarios, options, and what a run records."""

import copy
import io
import json

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import SimpleMLP
from avalanche.training.plugins import ReplayPlugin
from rich.console import Console

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Branch
from avalanche_peftcl.models.modules.prompt import build_prompt
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import NTKCL, PEGP
from avalanche_peftcl.training.pegp import build_pegp

KINDS = ("adapter", "lora", "prefix", "prompt")


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


# --- projection ----------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("mixed_precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_old_features_stay_on_a_gpu(sharp, small_benchmark, make_pegp, kind, mixed_precision):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    options = {"device": "cuda", "mixed_precision": mixed_precision}
    strategy = make_pegp(sharp, kind, lr=0.05, **options)
    first, second, _ = small_benchmark().train_stream
    x = images(first).cuda()
    strategy.train(first)
    with torch.no_grad():
        old, start = strategy.model.eval().embed(x), values(strategy.model.branch)
    strategy.train(second)
    with torch.no_grad():
        torch.testing.assert_close(strategy.model.eval().embed(x), old, atol=1e-4, rtol=0)
    assert not equal(start, values(strategy.model.branch))


@pytest.mark.parametrize("projection", [True, False], ids=["projected", "free"])
@pytest.mark.parametrize("kind", KINDS)
def test_old_features_stay_and_new_ones_change(sharp, small_benchmark, make_pegp, kind, projection):
    strategy = make_pegp(sharp, kind, lr=0.05, projection=projection)
    first, second, third = small_benchmark().train_stream
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


@pytest.mark.parametrize(
    ("branch", "merge_epochs"),
    [("adapter", 1), ("lora", 1), (lambda b: build_prompt(backbone=b, init_bound=0.5), 0)],
    ids=["adapter-merged", "lora-merged", "default-prompts"],
)
def test_what_moves_old_features_in_spite_of_projection(
    sharp, small_benchmark, make_pegp, branch, merge_epochs
):
    """The second stage is not projected; prompts have the paper's condition, which is not exact."""
    strategy = make_pegp(sharp, branch, lr=0.05, merge_epochs=merge_epochs)
    first, second, _ = small_benchmark().train_stream
    strategy.train(first)
    old = features(strategy, first)
    strategy.train(second)
    assert (features(strategy, first) - old).abs().max() > 1e-3


def test_prompts_keep_the_products_of_the_paper(sharp, small_benchmark, make_pegp):
    strategy = make_pegp(sharp, lambda b: build_prompt(backbone=b, length=8, init_bound=0.5))
    tokens, block = strategy.model.branch.extensions["0"].tokens, sharp.blocks[0]
    old, seen, prompts = [], [], []
    for experience in small_benchmark().train_stream:
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
def test_old_logits_stay_where_the_head_is_projected_too(
    sharp, small_benchmark, make_pegp, project_head
):
    """Of one head for all domains, which each of them trains anew."""
    strategy = make_pegp(sharp, project_head=project_head, head_epochs=2)
    options = {"train_domains": [0, 1, 2] * 6, "test_domains": [0, 1, 2] * 6}
    train = small_benchmark("domain", per_class=3, **options).train_stream
    strategy.train(train[0])
    old, start = images(train[0]), strategy.model.head.weight.detach().clone()
    logits = strategy.model.eval()(old).detach()
    strategy.train(train[1])
    drift = (strategy.model.eval()(old).detach() - logits).abs().max()
    assert drift < 1e-4 if project_head else drift > 1e-3
    assert (strategy.model.head.weight.detach() - start).abs().max() > 1e-3
    assert strategy.projection.unprotected == ([] if project_head else ["head.weight", "head.bias"])


def test_replay_and_clipping_beside_it(sharp, small_benchmark, make_pegp):
    strategy = make_pegp(sharp, plugins=[ReplayPlugin(mem_size=2)], max_grad_norm=0.5)
    first, second, _ = small_benchmark().train_stream
    strategy.train(first)
    old = features(strategy, first)
    strategy.train(second)
    assert (features(strategy, first) - old).abs().max() < 1e-4


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["class", "task", "domain", "online"])
def test_what_is_used_of_task_labels(backbone, make_pegp, scenario):
    benchmark = toy_benchmark(scenario)
    options = {"train_mb_size": 8, "merge_epochs": 1, "threshold": 0.9}
    strategy = make_pegp(backbone, **options)
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


def test_predictions_lean_on_neither_order_nor_company_nor_labels(backbone, make_pegp):
    """A release let the task labels of a batch decide which classes compete."""
    strategy = make_pegp(backbone, train_mb_size=4, merge_epochs=1, threshold=0.9, lr=0.001)
    benchmark = toy_benchmark()
    strategy.train(benchmark.train_stream)

    class Collect(SupervisedPlugin):
        def after_eval_forward(self, strategy, **kwargs):
            seen.append(strategy.mb_output)

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
            results.append(torch.empty(len(whole), len(targets.unique())))
            results[-1][indices] = torch.cat(seen)
    # minibatches of other sizes sum in another order: logits of order 1, sums of some hundred terms
    for result in results:
        torch.testing.assert_close(result, results[0], atol=1e-3, rtol=0)
    highest = results[0].topk(2).values
    assert (highest[:, 0] - highest[:, 1] > 0.01).float().mean() > 0.5  # so that leaning would show
    predictions = results[0].argmax(dim=1)
    assert len(set(predictions.tolist())) > 1
    seen, unpack = [], strategy._unpack_minibatch

    def relabel():
        unpack()
        strategy.mbatch[1] = strategy.mbatch[1].roll(1)
        strategy.mbatch[-1] = torch.zeros_like(strategy.mbatch[-1])

    strategy._unpack_minibatch = relabel
    strategy.eval([experience])
    torch.testing.assert_close(torch.cat(seen), results[0][order], atol=1e-3, rtol=0)


# --- recipes and options -------------------------------------------------------------------------


def test_recipes_choose_the_projection(sharp, make_pegp):
    corrected, released = make_pegp(sharp), make_pegp(sharp, recipe="released", threshold=0.999)
    assert type(corrected.projection).__name__ == "GradientProjectionPlugin"
    assert corrected.projection.where == "step"
    assert make_pegp(sharp, where="gradient").projection.where == "gradient"
    assert type(released.projection).__name__ == "ReleasedProjectionPlugin"
    assert build_pegp(backbone=sharp, peft="lora", recipe="released").projection.threshold == 0.99
    assert released.projection.where == "gradient"
    assert make_pegp(sharp, projection=False).projection is None


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_nothing_was_released_for_prefix_and_prompts_of_other_conditions(sharp, make_pegp, kind):
    words = (
        r"adapters, LoRA and prompts .*, not for branch\.extensions.*; take recipe=\"corrected\""
    )
    with pytest.raises(ConfigError, match=words):
        make_pegp(sharp, kind, recipe="released")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"recipe": "released", "where": "step"},
            'projects gradients, and of modules alone; leave out where="step"',
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
        ({"recipe": "released", "rule": "ratio"}, "leave out rule='ratio', centred=False"),
        ({"recipe": "released", "centred": True}, "centred=True and strength=1.0, or take recipe"),
        ({"recipe": "released", "strength": 0.5}, "removes the whole component along a mask"),
        ({"projection": False, "watch": 4}, "which is switched off; for none that acts take stren"),
        ({"rule": "ratio", "centred": True}, "leave centred out"),
        ({"strength": 2.0}, r"strength must be in \[0, 1\]"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(sharp, make_pegp, options, words):
    with pytest.raises(ConfigError, match=words):
        make_pegp(sharp, **options)


@pytest.mark.parametrize(("train_epochs", "head_epochs"), [(1, 0), (2, 1), (4, 3), (50, 3)])
def test_epochs_of_the_head_alone_follow_those_of_an_experience(train_epochs, head_epochs):
    options = {"backbone": toy_backbone(), "train_epochs": train_epochs}
    assert build_pegp(**options).head_only.epochs == head_epochs


@pytest.mark.parametrize("recipe", ["corrected", "released"])
def test_a_model_with_nothing_to_project_is_refused_when_it_is_built(recipe):
    nothing = {"backbone": toy_backbone(), "module": Branch(), "recipe": recipe}
    with pytest.raises(ConfigError, match=r"nothing to project: .*give model= one with adapters"):
        build_pegp(**nothing)
    assert build_pegp(**nothing, projection=False).projection is None


def test_another_network_is_refused():
    model = SimpleMLP()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="PEGP trains a PEFTModel, not a SimpleMLP"):
        PEGP(model=model, optimizer=optimizer)
    with pytest.raises(ConfigError, match="NTKCL trains an NTKCLModel, not a SimpleMLP"):
        NTKCL(model=model, optimizer=optimizer)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"centred": True, "strength": 0.5}, {"rule": "energy", "centred": True, "strength": 0.5}),
        ({"rule": "ratio", "kept": 0.25}, {"rule": "ratio", "kept": 0.25, "strength": 1.0}),
        ({"recipe": "released"}, {"rule": "energy", "where": "gradient"}),
    ],
)
def test_how_it_projects_can_be_chosen(options, told):
    further = {"r": 2, "n_samples": 4, "watch": 2, "train_epochs": 3, "head_epochs": 1}
    strategy = build_pegp(backbone=toy_backbone(depth=1), **further, **options)
    for experience in toy_benchmark(per_class=4).train_stream[:2]:
        strategy.train(experience)
    summary = strategy.projection.summary()
    assert {key: summary[key] for key in told} == told
    assert [len(drift["old"]) for drift in summary["watched_drift"]] == [0, 1]
    assert summary["watched_drift"][1]["learnt"] > 0
    assert max(site["removed_share"] for site in summary["experiences"][1]) > 0


@pytest.mark.parametrize(
    ("kind", "site"),
    [
        ("adapter", "branch.adapters.0.down.weight"),  # its earlier name
        ("attention_adapter", "branch.adapters.0.down.weight"),
        ("lora", "branch.tuners.blocks_0_attn_qkv.lora_A.default.weight"),
        ("prefix", "branch.extensions.0.keys"),
        ("prompt", "branch.extensions.0.tokens"),
    ],
)
def test_the_kind_chooses_the_module(sharp, kind, site):
    strategy = build_pegp(backbone=sharp, peft=kind, r=3, length=4, blocks=[0])
    assert strategy.projection.threshold == 0.99
    sites = strategy.projection.sites(strategy.model)
    assert sites[0].name == site
    assert sites[0].parameter.shape == ((3, 64) if "adapter" in kind or kind == "lora" else (4, 64))
    assert all(".0." in each.name or "blocks_0" in each.name for each in sites)
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
