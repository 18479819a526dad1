"""Joint training sees every image of the stream once an epoch, in one experience."""

from collections import Counter

import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_peftcl.checkpoints.script import maybe_load_checkpoint, save_checkpoint
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation import AccuracyMatrix
from avalanche_peftcl.models import PrototypeHead
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.testing.probes import differing, evaluator, pick
from avalanche_peftcl.training.joint import Joint, build_joint, joint_experience, visits
from avalanche_peftcl.training.naive import build_naive

SCENARIOS = ("class", "task", "domain", "online")
UNEVEN = {"classes_per_experience": (3, 1)}


class Seen(SupervisedPlugin, supports_distributed=False):
    def __init__(self):
        super().__init__()
        self.images, self.experiences = Counter(), []

    def before_training_exp(self, strategy, **kwargs):
        self.experiences.append(strategy.experience)

    def after_training_iteration(self, strategy, **kwargs):
        rows = zip(strategy.mb_x, strategy.mb_y, strategy.mb_task_id, strict=True)
        self.images.update((x.numpy().tobytes(), int(y), int(t)) for x, y, t in rows)


def build(*plugins, **options):
    torch.manual_seed(0)
    options = {"train_mb_size": 4, "train_epochs": 1} | options
    return build_joint(backbone=toy_backbone(), plugins=plugins, evaluator=evaluator(), **options)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_image_is_seen_once_an_epoch_with_its_labels(scenario):
    options = UNEVEN if scenario in ("class", "task") else {}  # the host would balance tasks
    benchmark, seen = toy_benchmark(scenario, **options), Seen()
    build(seen, train_epochs=2).train(benchmark.train_stream)
    expected = Counter()
    for experience in benchmark.train_stream:
        data = experience.dataset
        for i in range(len(data)):
            x, y, t = data[i]
            expected[x.numpy().tobytes(), int(y), int(t)] += 2
    assert seen.images == expected
    (experience,) = seen.experiences
    assert experience.current_experience == len(benchmark.test_stream) - 1


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_there_is_the_last_row_alone(scenario):
    benchmark, matrix = toy_benchmark(scenario), AccuracyMatrix()
    strategy = build()
    strategy.evaluator.metrics.append(matrix)
    strategy.train(benchmark.train_stream)
    strategy.eval(benchmark.test_stream)
    summary, size = matrix.summary(), len(benchmark.test_stream)
    assert matrix.matrix.shape == (size, size)
    assert matrix.matrix[:-1].isnan().all()
    assert summary["per_task"] == matrix.matrix[-1].tolist()
    assert summary["last_accuracy"] is not None
    assert summary["accuracy_curve"][:-1] == [None] * (size - 1)
    for name in ("average_incremental_accuracy", "forgetting", "backward_transfer"):
        assert summary[name] is None


def test_it_trains_as_naive_does_on_the_same_images_in_one_experience():
    benchmark = toy_benchmark("class", classes_per_experience=(2, 2))
    (whole,) = toy_benchmark("class", classes_per_experience=(4,)).train_stream
    labels = [int(y) for y in whole.dataset.targets]
    order = [i for pair in ((0, 1), (2, 3)) for i, y in enumerate(labels) if y in pair]
    torch.manual_seed(0)
    naive = build_naive(
        backbone=toy_backbone(), train_mb_size=4, train_epochs=2, evaluator=evaluator()
    )
    naive.train(pick((whole, order)))
    joint = build(train_epochs=2)
    joint.train(benchmark.train_stream)
    assert not differing(naive.model.state_dict(), joint.model.state_dict())


def test_a_fitted_head_sees_all_classes():
    benchmark = toy_benchmark("class")
    strategy = build(head=PrototypeHead)
    strategy.train(benchmark.train_stream)
    assert len(strategy.network.classes) == benchmark.n_classes
    assert int(strategy.network.head.counts.sum()) == sum(
        len(e.dataset) for e in benchmark.train_stream
    )


def test_a_second_training_is_refused():
    benchmark = toy_benchmark("class")
    strategy = build()
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(ConfigError, match="joint training trains once"):
        strategy.train(benchmark.train_stream[1])


def test_of_no_experience_nothing_is_made():
    with pytest.raises(ConfigError, match="no experience"):
        joint_experience([])


def test_visits_of_a_strategy_that_is_not_joint_are_its_experiences():
    stream = toy_benchmark("class").train_stream
    naive = build_naive(backbone=toy_backbone(), train_epochs=1)
    assert [e.current_experience for e in visits(naive, stream)] == list(range(len(stream)))
    assert len(visits(build(), stream)) == 1


def test_a_script_goes_on_with_what_was_trained(tmp_path):
    benchmark, path = toy_benchmark("class"), tmp_path / "a.checkpoint"
    strategy = build()
    strategy.train(benchmark.train_stream)
    save_checkpoint(strategy, path, benchmark=benchmark)
    again, done = maybe_load_checkpoint(build(), path, benchmark=benchmark)
    assert done == 1
    assert isinstance(again, Joint)
    assert not differing(strategy.model.state_dict(), again.model.state_dict())
