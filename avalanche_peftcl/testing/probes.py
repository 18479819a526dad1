"""What contracts look at: outputs for chosen images, gradients, weights."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import BaseLogger
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor, nn
from torch.nn.functional import normalize

from avalanche_peftcl.export.load import learning_keys, rebuild
from avalanche_peftcl.export.write import not_exported
from avalanche_peftcl.models import Backbone, export_spec
from avalanche_peftcl.training.feature_pass import network_of
from avalanche_peftcl.training.streams import whole_experience


class Watch(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Notes gradients that no step is made from, and that it was called at all."""

    def __init__(self) -> None:
        super().__init__()
        self.experiences = 0
        self.not_optimized: set[str] = set()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Count an experience."""
        self.experiences += 1

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Note the parameters that have a gradient and are not in the optimizer now."""
        held = {id(p) for group in strategy.optimizer.param_groups for p in group["params"]}
        named = network_of(strategy).named_parameters()
        self.not_optimized |= {n for n, p in named if p.grad is not None and id(p) not in held}


class _Outputs(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Keeps what a strategy puts out in evaluation, where metrics look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Tensor] = []

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.rows.append(strategy.mb_output.detach().clone())


class _Relabel(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Gives all images of an evaluation one task label."""

    def __init__(self, task_label: int) -> None:
        super().__init__()
        self.task_label = task_label

    def before_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        strategy.mbatch[-1] = torch.full_like(strategy.mbatch[-1], self.task_label)


def evaluator() -> EvaluationPlugin:
    """Return an evaluation plugin with one metric, whose logger keeps nothing."""
    return EvaluationPlugin(accuracy_metrics(stream=True), loggers=[BaseLogger()])


def pick(*parts: tuple[Any, Sequence[int]], like: Any = None) -> Any:
    """Return an experience of chosen images, which keep their classes and task labels.

    Args:
        *parts: Experiences, and which of their images, in this order.
        like: Whose number and stream it has; by default those of the first part.
    """
    made = copy.copy(parts[0][0] if like is None else like)
    chosen = [experience.dataset.subset(list(indices)) for experience, indices in parts]
    made.dataset = concat_datasets(chosen)
    made.classes_in_this_experience = sorted({int(y) for y in made.dataset.targets})
    return made


def spread(experience: Any, count: int) -> range:
    """Return so many image numbers of an experience, far apart, so that they are of all classes."""
    step = max(1, len(experience.dataset) // count)
    return range(0, step * count, step)


def outputs(strategy: Any, experience: Any, *, task_label: int | None = None) -> Tensor:
    """Return what a strategy puts out for an experience's images, in one minibatch, ``(B, C)``.

    Args:
        strategy: Any Avalanche strategy.
        experience: A test experience, or what :func:`pick` made of some.
        task_label: Given to every image; ``None`` leaves them their own.
    """
    seen = _Outputs()
    before, size = list(strategy.plugins), strategy.eval_mb_size
    first = [] if task_label is None else [_Relabel(task_label)]
    strategy.plugins, strategy.eval_mb_size = [*first, *before, seen], len(experience.dataset)
    try:
        strategy.eval([experience])
    finally:
        strategy.plugins, strategy.eval_mb_size = before, size
    return torch.cat(seen.rows)


def own_accuracy(logits: Tensor, experience: Any) -> float:
    """Return the accuracy among an experience's own classes: nothing of what came before or after.

    Args:
        logits: For all of its images, ``(B, C)``.
        experience: A test experience.
    """
    targets = torch.tensor([int(y) for y in experience.dataset.targets])
    classes = torch.tensor(sorted(set(targets.tolist())))
    return float((classes[logits[:, classes].argmax(dim=1)] == targets).double().mean())


def frozen_accuracy(backbone: Backbone, benchmark: Any) -> float:
    """Return the mean of :func:`own_accuracy` that class means of frozen features get."""
    trained = {id(e): e for e in map(whole_experience, benchmark.train_stream)}.values()
    scores = []
    for train, test in zip(trained, benchmark.test_stream, strict=True):
        (x, y), (z, _) = _features(backbone, train), _features(backbone, test)
        means = torch.zeros(int(y.max()) + 1, x.shape[1])
        for c in sorted(set(y.tolist())):
            means[c] = x[y == c].mean(dim=0)
        scores.append(own_accuracy(normalize(z) @ normalize(means).T, test))
    return sum(scores) / len(scores)


@torch.no_grad()
def _features(backbone: Backbone, experience: Any) -> tuple[Tensor, Tensor]:
    dataset = experience.dataset.eval()
    items = [dataset[i] for i in range(len(dataset))]
    features: Tensor = backbone(torch.stack([item[0] for item in items]))
    return features, torch.tensor([int(item[1]) for item in items])


def weights(module: nn.Module) -> dict[str, Any]:
    """Return a copy of the state dict."""
    return copy.deepcopy(module.state_dict())


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of entries of two state dicts that are not equal bit for bit."""
    names = sorted(one.keys() | other.keys())
    return [n for n in names if n not in one or n not in other or not _same(one[n], other[n])]


def _same(one: Any, other: Any) -> bool:
    if torch.is_tensor(one) and torch.is_tensor(other):
        return torch.equal(one, other)
    return bool(one == other)


def differs_when_rebuilt(model: nn.Module, backbone: Backbone, images: Tensor) -> str | None:
    """Build a network again as it says; say where its logits differ, ``None`` if nowhere.

    Tests are skipped where the network cannot be exported.

    Args:
        model: In eval mode.
        backbone: Its backbone, built again.
        images: ``(B, 3, H, W)``, of task label 0.
    """
    if (reason := not_exported(model)) is not None:
        pytest.skip(f"the network cannot be exported: {reason}")
    again = rebuild(export_spec(model).to_json(), backbone).eval()
    skip = learning_keys(model)
    kept = {name: value for name, value in model.state_dict().items() if name not in skip}
    again.load_state_dict(again.state_dict() | kept)
    tasks = torch.zeros(len(images), dtype=torch.long)
    with torch.no_grad():
        one, other = again(images, tasks), model(images, tasks)
    if torch.allclose(one, other, atol=1e-5, rtol=1e-5):
        return None
    return f"logits differ by up to {float((one - other).abs().max()):.2g}"
