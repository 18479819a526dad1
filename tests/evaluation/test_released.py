import math
from types import SimpleNamespace

import pytest
import torch

from avalanche_peftcl.evaluation import ReleasedAccuracyMetric
from avalanche_peftcl.functional.released_accuracy import released_accuracy
from avalanche_peftcl.testing import MetricContract

TASKS, CLASSES, IMAGES = 5, 2, 20  # experiences, classes in each, test images of a class


class TestContract(MetricContract):
    def create_metric(self):
        return ReleasedAccuracyMetric(batch_size=3)


def sorted_set():
    """Return logits for a test set in order of classes, with the targets."""
    torch.manual_seed(0)
    targets = torch.arange(TASKS * CLASSES).repeat_interleave(IMAGES)
    logits = torch.randn(len(targets), TASKS * CLASSES)
    logits[torch.arange(len(targets)), targets] += 1
    return logits, targets


def by_prefix(logits):
    return torch.stack([logits[:, : CLASSES * (t + 1)].argmax(dim=1) for t in range(TASKS)], dim=1)


def as_written(logits, targets, batch_size):
    """The released evaluation, minibatch by minibatch."""
    right = 0
    for part, true in zip(logits.split(batch_size), targets.split(batch_size), strict=True):
        tasks = int((true // CLASSES).max()) + 1
        right += int((part[:, : tasks * CLASSES].argmax(dim=1) == true).sum())
    return right / len(targets)


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_it_is_the_released_loop(batch_size):
    logits, targets = sorted_set()
    found = released_accuracy(by_prefix(logits), targets, targets // 2, batch_size=batch_size)
    assert found == pytest.approx(as_written(logits, targets, batch_size), abs=1e-12)


def test_order_and_minibatch_change_it_and_not_the_accuracy():
    logits, targets = sorted_set()
    plain = (logits.argmax(dim=1) == targets).double().mean().item()
    order = torch.randperm(len(targets))

    def both(logits, targets, batch_size):
        predictions = by_prefix(logits)
        leaked = released_accuracy(predictions, targets, targets // 2, batch_size=batch_size)
        return leaked, (predictions[:, -1] == targets).double().mean().item()

    sorted_32, shuffled_32 = both(logits, targets, 32), both(logits[order], targets[order], 32)
    one, whole = both(logits, targets, 1), both(logits, targets, len(targets))
    assert sorted_32[0] > shuffled_32[0] + 0.05
    assert one[0] > sorted_32[0]  # nothing competes with a later class
    assert whole[0] == pytest.approx(plain)
    assert all(each[1] == pytest.approx(plain) for each in (sorted_32, shuffled_32, one, whole))


def evaluated(metric, logits, targets, *, size, trained):
    """Show a metric the test set, an experience after the other, in minibatches of ``size``."""
    stream = SimpleNamespace(name="test")
    experiences = [
        SimpleNamespace(
            current_experience=t,
            classes_in_this_experience=[2 * t, 2 * t + 1],
            origin_stream=stream,
        )
        for t in range(TASKS)
    ]
    stream.benchmark = SimpleNamespace(streams={"test": experiences})
    clock = SimpleNamespace(train_iterations=0)
    metric.before_training_exp(SimpleNamespace(experience=experiences[trained], clock=clock))
    metric.before_eval(None)
    for t, experience in enumerate(experiences):
        mine = targets // CLASSES == t
        for part, true in zip(logits[mine].split(size), targets[mine].split(size), strict=True):
            metric.after_eval_iteration(
                SimpleNamespace(experience=experience, mb_output=part, mb_y=true)
            )
    return metric.after_eval(SimpleNamespace(clock=clock))


@pytest.mark.parametrize("size", [1, 9, 64])
def test_the_metric_has_minibatches_of_its_own_and_only_images_that_could_be_known(size):
    logits, targets = sorted_set()
    metric = ReleasedAccuracyMetric(batch_size=32)
    (value,) = evaluated(metric, logits, targets, size=size, trained=2)
    seen = targets < 6
    expected = as_written(logits[seen], targets[seen], 32)
    assert value.value == pytest.approx(expected)
    assert value.name.startswith("Released_Accuracy_With_Leaked_Task/")
    plain = (logits[seen, :6].argmax(dim=1) == targets[seen]).double().mean().item()
    assert metric.summary()["over_all_seen"] == pytest.approx([plain])
    assert metric.summary()["with_leaked_task"] == pytest.approx([expected])
    assert expected > plain


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ValueError, match="1 predictions, 2 targets and 2 experiences in minib"):
        released_accuracy(torch.zeros(1, 1), torch.zeros(2), torch.zeros(2), batch_size=1)
    nothing = torch.zeros(0, dtype=torch.long)
    found = released_accuracy(torch.zeros(0, 1), nothing, nothing, batch_size=1)
    assert math.isnan(found)
