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
from avalanche_peftcl.runs.protocol import describe_protocol, describe_stream, per_domain
from avalanche_peftcl.runs.run import run
from avalanche_peftcl.runs.schema import Experience, Protocol, Provided, Stream
from avalanche_peftcl.testing import toy_benchmark
from avalanche_peftcl.testing.toys import toy_images


def part(kind: str, provider: str = "mine") -> Provided:
    return Provided(kind=kind, name="a", provider=provider, version="1")


OURS = [part("backbone", "avalanche-peftcl"), part("strategy", "avalanche-peftcl")]
THEIRS = [*OURS, part("module")]


def told(strategy, benchmark, components=()) -> Protocol:
    stream = describe_stream(benchmark, InputConfig(img_size=8))
    return describe_protocol(stream, strategy, benchmark, components)


def test_hashes_do_not_depend_on_seed_scenario_or_subset():
    config = InputConfig(img_size=16)
    hashes = {
        describe_stream(digits(input_config=config, **options), config).split_sha256
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
    stream = describe_stream(digits(input_config=config, validation_per_class=2), config)
    assert (stream.tested_on, stream.test_images) == ("held-out training images", 20)


def test_any_benchmark_of_avalanche_is_described():
    data = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    benchmark = tensors_benchmark([data], [data], task_labels=[0])
    stream = describe_stream(benchmark, InputConfig(img_size=8))
    assert stream.split_sha256 is stream.manifest_sha256 is None
    assert stream.tested_on is stream.class_order is None
    assert stream.test_images == 4
    assert stream.normalisation["mean"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("stated", "components", "said"),
    [
        (None, OURS, "tested"),
        (None, THEIRS, "not stated"),
        (True, THEIRS, "stated"),
        (False, THEIRS, "dependent"),
        (False, OURS, "dependent"),
        (None, [*OURS, part("benchmark")], "tested"),
        (None, [*OURS, part("logger")], "tested"),
    ],
)
def test_batch_independence(stated, components, said):
    strategy = SimpleNamespace(batch_independent_at_test=stated, mixed_precision="fp16")
    protocol = told(strategy, toy_benchmark(), components)
    assert (protocol.batch_independence, protocol.precision) == (said, "fp16 autocast")
    assert protocol.task_label_at_test is False


@pytest.mark.parametrize("scenario", ["class", "task", "domain", "online"])
def test_labels_that_a_strategy_may_have_used(scenario):
    benchmark = toy_benchmark(scenario)
    assert told(object(), benchmark).task_label_at_test is (scenario == "task")
    for stated in (True, False):
        strategy = SimpleNamespace(task_label_at_test=stated)
        assert told(strategy, benchmark).task_label_at_test is stated


def test_labels_of_any_benchmark():
    data = SimpleNamespace(targets=[0, 1, 0, 1])
    images = torch.utils.data.TensorDataset(torch.zeros(4, 1), torch.tensor(data.targets))
    images.targets = data.targets
    benchmark = nc_benchmark(images, images, 2, task_labels=True)
    assert told(object(), benchmark).task_label_at_test is True


def stream_of(scenario, domains, tests) -> Stream:
    rest = {"classes": [0], "class_names": ["a"], "train_images": 5}
    experiences = [Experience(**rest, test_images=count) for count in tests]
    return Stream(
        scenario=scenario,
        domains=domains,
        class_order=None,
        normalisation={},
        experiences=experiences,
    )


def test_the_last_accuracy_on_each_domain_has_its_name():
    stream = stream_of("domain", ["photo", "sketch"], [5, 5])
    assert per_domain(stream, [0.9]) == {"photo": 0.9}  # after the first


def test_one_test_for_all_domains_is_nobodys_accuracy():
    assert per_domain(stream_of("domain", ["a", "b"], [5, 0]), [0.5, None]) is None
    assert per_domain(stream_of("class", None, [5]), [0.5]) is None


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
