from types import SimpleNamespace

import pytest
import torch
from avalanche.benchmarks import nc_benchmark, tensors_benchmark

from avalanche_peftcl import Component
from avalanche_peftcl.benchmarks import digits, make_benchmark
from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.models import InputConfig
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.packages import Entry, Provider
from avalanche_peftcl.runs.protocol import describe_prediction, describe_protocol, per_domain
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.testing.toys import toy_images

OURS = [{"kind": kind, "provider": "avalanche-peftcl"} for kind in ("backbone", "strategy")]
THEIRS = [*OURS, {"kind": "module", "provider": "mine"}]


def test_hashes_do_not_depend_on_seed_scenario_or_subset():
    config = InputConfig(img_size=16)
    hashes = {
        describe_protocol(digits(input_config=config, **options), config)["split_sha256"]
        for options in (
            {},
            {"seed": 1},
            {"scenario": "task", "n_experiences": 2},
            {"scenario": "online", "experience_size": 100},
            {"train_per_class": 3, "validation_per_class": 2},
        )
    }
    assert len(hashes) == 1


def test_held_out_images_are_told():
    config = InputConfig(img_size=16)
    protocol = describe_protocol(digits(input_config=config, validation_per_class=2), config)
    assert (protocol["tested_on"], protocol["test_images"]) == ("held-out training images", 20)


def test_any_benchmark_of_avalanche_is_described():
    data = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    benchmark = tensors_benchmark([data], [data], task_labels=[0])
    protocol = describe_protocol(benchmark, InputConfig(img_size=8))
    assert protocol["split_sha256"] is protocol["manifest_sha256"] is None
    assert protocol["tested_on"] is protocol["class_order"] is None
    assert protocol["test_images"] == 4
    assert protocol["normalisation"]["mean"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("stated", "components", "said"),
    [
        (None, OURS, "tested"),
        (None, THEIRS, "not stated"),
        (True, THEIRS, "stated"),
        (False, THEIRS, "dependent"),
        (False, OURS, "dependent"),
        (None, [*OURS, {"kind": "benchmark", "provider": "mine"}], "tested"),
        (None, [*OURS, {"kind": "logger", "provider": "mine"}], "tested"),
    ],
)
def test_batch_independence(stated, components, said):
    strategy = SimpleNamespace(batch_independent_at_test=stated, mixed_precision="fp16")
    told = describe_prediction(strategy, toy_benchmark(), components)
    rest = {"task_label_at_test": False, "precision": "fp16 autocast"}
    assert told == {"batch_independence": said} | rest


@pytest.mark.parametrize("scenario", ["class", "task", "domain", "online"])
def test_labels_that_a_strategy_may_have_used(scenario):
    benchmark = toy_benchmark(scenario)
    told = describe_prediction(object(), benchmark, THEIRS)
    assert told["task_label_at_test"] is (scenario == "task")
    for stated in (True, False):
        strategy = SimpleNamespace(task_label_at_test=stated)
        assert describe_prediction(strategy, benchmark, [])["task_label_at_test"] is stated


def test_labels_of_any_benchmark():
    data = SimpleNamespace(targets=[0, 1, 0, 1])
    images = torch.utils.data.TensorDataset(torch.zeros(4, 1), torch.tensor(data.targets))
    images.targets = data.targets
    benchmark = nc_benchmark(images, images, 2, task_labels=True)
    assert describe_prediction(object(), benchmark, [])["task_label_at_test"] is True


def test_one_test_for_all_domains_is_nobodys_accuracy():
    protocol = {"scenario": "domain", "domains": ["a", "b"]}
    one = [{"test_images": 5}, {"test_images": 0}]
    assert per_domain(protocol | {"experiences": one}, [0.5, None]) is None
    assert per_domain({"scenario": "class", "domains": None}, [0.5]) is None


def test_a_run_with_one_test_for_all_domains(tmp_path):
    def build(*, input_config: InputConfig):
        domains = [i % 3 for i in range(36)]
        return make_benchmark(
            toy_images(),
            toy_images(per_class=3, seed=1),
            input_config=input_config,
            scenario="domain",
            train_domains=domains,
        )

    toy = Component("toy", build, source="test")
    entry = Entry("benchmark", toy, Provider("a", "1"))
    config = RunConfig(
        output=tmp_path / "run",
        backbone={
            **{"name": "timm_vit", "model_name": "vit_tiny_patch16_224", "img_size": 16},
            **{"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2},
        },
        benchmark={"name": "toy"},
        strategy={"name": "nearest_class_mean"},
    )
    metrics = run(config, registry=Registry([*discover().entries(), entry])).metrics
    protocol, accuracy = metrics["protocol"], metrics["accuracy"]
    assert [e["train_images"] for e in protocol["experiences"]] == [12, 12, 12]
    assert [e["test_images"] for e in protocol["experiences"]] == [18, 0, 0]
    assert protocol["domains"] == ["0", "1", "2"]
    assert [row[0] for row in metrics["accuracy_matrix"]] == accuracy["accuracy_curve"]
    assert all(value is not None for value in accuracy["accuracy_curve"])
    assert accuracy["forgetting"] is metrics["per_domain"] is None
