"""Features that were computed before are read again to the bit, where all else is the same."""

import os
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import AdapterBranch, FrozenBranch, PEFTModel, PrototypeHead
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.testing.probes import differing, evaluator, outputs
from avalanche_peftcl.training import feature_cache
from avalanche_peftcl.training.closed_form import build_closed_form
from avalanche_peftcl.training.feature_cache import VARIABLE, FeatureCache, shared_features
from avalanche_peftcl.training.feature_pass import feature_pass
from avalanche_peftcl.training.nearest_class_mean import build_nearest_class_mean


def images(n=3, seed=0):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def network(branch=None, **options):
    model = PEFTModel(toy_backbone(), branch or FrozenBranch(), PrototypeHead, **options)
    return model.requires_grad_(False).eval()


@pytest.fixture
def make(tmp_path):
    return lambda model=None, **how: FeatureCache(model or network(), tmp_path, **how)


@pytest.fixture(autouse=True)
def no_gradient():
    with torch.no_grad():
        yield


def test_a_minibatch_is_embedded_once(make):
    first, again = make(), make()
    expected = network().embed(images())
    assert torch.equal(first.embed(images()), expected)
    again._network.embed = None  # only for the probe would it be asked
    again._network.embed = lambda probe: first._network.embed(probe[:1])
    known = again.embed(images())
    assert torch.equal(known, expected)
    assert known.stride() == expected.stride()  # else a product with it might round otherwise
    assert (first.found, again.found) == (0, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_they_are_others(make, dtype):
    cache = make()
    plain = cache.embed(images())
    with torch.autocast("cpu", dtype=dtype):
        low = cache.embed(images())
        assert torch.equal(cache.embed(images()), low)
        assert low.dtype == network().embed(images()).dtype
    assert torch.equal(cache.embed(images()), plain)
    assert (cache.asked, cache.found) == (4, 2)


def changed_images():
    changed = images()
    changed[1, 2, 3, 4] = torch.nextafter(changed[1, 2, 3, 4], torch.tensor(2.0))
    return changed


@pytest.mark.parametrize(
    "other",
    [changed_images(), images()[:2], images()[[1, 0, 2]], images().double().float() * 2],
    ids=["one bit", "fewer", "another order", "brighter"],
)
def test_other_images_are_others(make, other):
    cache = make()
    cache.embed(images())
    assert torch.equal(cache.embed(other), network().embed(other))
    assert cache.found == 0


def test_other_weights_are_others_also_when_they_change_under_it(make):
    cache = make()
    cache.embed(images())
    weight = next(p for p in cache._network.backbone.parameters() if p.ndim == 2)
    weight.mul_(1.5)
    assert torch.equal(cache.embed(images()), cache._network.embed(images()))
    assert cache.found == 0


@pytest.mark.parametrize(
    "model",
    [
        lambda: network(features="blocks"),
        lambda: network(features=[1]),
        lambda: network(frozen_section="pooled"),
        lambda: network(AdapterBranch(32, 3, r=4)),
    ],
    ids=["blocks", "a block", "sections", "adapters"],
)
def test_what_reads_otherwise_is_another(make, model):
    make().embed(images())
    one = model()
    cache = make(one)
    assert torch.equal(cache.embed(images()), one.embed(images()))
    assert cache.found == 0


def test_threads_are_part_of_it(make):
    before = torch.get_num_threads()
    make().embed(images())
    try:
        torch.set_num_threads(before + 1)
        other = make()
        other.embed(images())
    finally:
        torch.set_num_threads(before)
    assert other.found == 0


def test_classes_and_heads_are_not(make):
    model = network()
    make(model).embed(images())
    model.start_experience([(0, 0), (0, 1)])
    cache = make(model)
    cache.embed(images())
    assert cache.found == 1


@pytest.mark.parametrize("content", [b"", b"not a tensor", None], ids=["empty", "broken", "cut"])
def test_a_damaged_file_is_none(make, tmp_path, content):
    cache = make()
    expected = cache.embed(images())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-4] if content is None else content)
    assert torch.equal(cache.embed(images()), expected)
    assert cache.found == 0
    assert torch.equal(cache.embed(images()), expected)
    assert cache.found == 1


def test_the_folder_has_a_bound_and_the_oldest_go_first(make, tmp_path):
    make().embed(images())
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    cache = make(most=5 * size)
    for seed in range(1, 5):
        cache.embed(images(seed=seed))
        for path in tmp_path.iterdir():  # as if time went by
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 10**9))
    cache.embed(images(seed=0))  # used again
    cache.embed(images(seed=5))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 4 * size
    cache.found = 0
    cache.embed(images(seed=0))
    cache.embed(images(seed=5))
    assert cache.found == 2
    cache.embed(images(seed=1))
    assert cache.found == 2


def test_what_others_have_in_the_folder_stays_and_what_was_begun_goes(make, tmp_path):
    model, begun = tmp_path / "model.safetensors", tmp_path / f".{40 * 'a'}.{16 * '0'}.part"
    for path in (model, begun):
        path.write_bytes(bytes(10_000))
        os.utime(path, ns=(0, 0))  # older than all
    make(most=1_000).embed(images())
    assert model.exists()
    assert not begun.exists()


def test_a_file_that_is_gone_meanwhile_does_not_keep_others(make, tmp_path, monkeypatch):
    make().embed(images(seed=1))
    (old,) = tmp_path.iterdir()
    there = Path.iterdir
    monkeypatch.setattr(
        Path, "iterdir", lambda folder: [folder / f"{64 * 'b'}.safetensors", *there(folder)]
    )
    make(most=1).embed(images(seed=2))
    assert not old.exists()


def test_many_may_write_at_once(tmp_path):
    expected = [network().embed(images(seed=s)) for s in range(4)]
    wrong = []

    def work(model):
        with torch.no_grad():
            cache = FeatureCache(model, tmp_path)
            for seed in (0, 1, 2, 3) * 3:
                if not torch.equal(cache.embed(images(seed=seed)), expected[seed]):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(network(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(list(tmp_path.iterdir())) == 4


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=VARIABLE):
        FeatureCache(network(), tmp_path / "file")


def test_a_full_disk_costs_nothing_but_time(make, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache, "replace_file", full)
    cache = make()
    assert torch.equal(cache.embed(images()), network().embed(images()))


@pytest.mark.parametrize(
    ("build", "scenario", "options"),
    [
        (build_closed_form, "class", {}),
        (build_closed_form, "online", {"features": "blocks", "frozen_section": "pooled"}),
        (build_nearest_class_mean, "task", {}),
    ],
    ids=["class", "online", "task"],
)
def test_a_strategy_ends_the_same_to_the_bit(tmp_path, monkeypatch, build, scenario, options):
    ends = []
    for folder in ("", str(tmp_path), str(tmp_path)):
        monkeypatch.setenv(VARIABLE, folder)
        benchmark = toy_benchmark(scenario)
        strategy = build(backbone=toy_backbone(), evaluator=evaluator(), eval_mb_size=5, **options)
        for experience in benchmark.train_stream:
            strategy.train(experience)
        logits = [outputs(strategy, test) for test in benchmark.test_stream]
        ends.append((strategy.model.state_dict(), logits))
    assert strategy.cache.found == strategy.cache.asked > 0
    assert "were there before" in strategy.headline()
    for state, logits in ends[1:]:
        assert not differing(state, ends[0][0])
        assert all(torch.equal(a, b) for a, b in zip(logits, ends[0][1], strict=True))


def test_hooks_see_every_image_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    benchmark = toy_benchmark("class")
    strategy = build_nearest_class_mean(backbone=toy_backbone(), evaluator=evaluator())
    strategy.train(benchmark.train_stream[0])
    seen = []
    hook = strategy.network.backbone.register_forward_pre_hook(lambda *_: seen.append(1))
    norms = [m for m in strategy.network.backbone.modules() if isinstance(m, nn.LayerNorm)]
    hook = norms[0].register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    feature_pass(strategy, dataset=benchmark.train_stream[0].dataset)
    hook.remove()
    assert sum(seen) == len(benchmark.train_stream[0].dataset)


def test_without_the_variable_there_is_no_cache(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    strategy = build_closed_form(backbone=toy_backbone(), evaluator=evaluator())
    assert strategy.cache is None
    assert strategy.headline() is None


def test_runs_share_a_folder_that_is_gone_afterwards(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    with shared_features():
        folder = Path(os.environ[VARIABLE])
        assert folder.is_dir()
    assert not folder.exists()
    assert VARIABLE not in os.environ
    for named in ("", str(tmp_path)):  # said: then that counts, and stays
        monkeypatch.setenv(VARIABLE, named)
        with shared_features():
            assert os.environ[VARIABLE] == named
    assert tmp_path.is_dir()
