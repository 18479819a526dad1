"""Evaluations inside training, of which training notices nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
from avalanche.training.plugins.clock import Clock
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor, nn
from torch.utils.data import Dataset

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation.accuracy_matrix import streams_beside
from avalanche_peftcl.functional.finite import check_decided, undecided
from avalanche_peftcl.models import DynamicModel
from avalanche_peftcl.models.meter import measured_as_evaluation
from avalanche_peftcl.models.rng import random_state, set_random_state
from avalanche_peftcl.registry.offers import ModelOffers, StrategyOffers

_LISTEN = (EvaluationPlugin, PeriodicEval, LRSchedulerPlugin, Clock)
"""The host's plugins that hear of evaluations and have no part in what is predicted."""
_KEPT = ("mbatch", "mb_output", "loss")  # the host puts all else back


class Probe(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Predicts test images in the midst of training, as the strategy's own evaluation does.

    A choice of each test experience's images is made once. They run through the strategy's
    ``eval()``: in eval mode, with the test transforms, with task labels where the strategy uses
    them, and with its plugins, but those of the host that only listen. Metrics and loggers hear
    nothing of it, but a :class:`.CostMetric` and a :class:`.BudgetPlugin` count it as an
    evaluation; modes, minibatch, counters and random generators are as before. Where a strategy
    says that its features never change (:class:`.StrategyOffers`), they are computed once.

    Args:
        images_per_experience: At most so many of each; ``None``, all.
        seed: Of the choice; no global generator is touched.
    """

    def __init__(self, *, images_per_experience: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self._most, self._seed = images_per_experience, seed
        self._images: list[Any] = []  # of each test experience, or features of them
        self._known: list[tuple[Tensor, ...]] | None = None  # minibatches to keep, if any
        self._found: list[float] = []
        self._right = self._undecided = torch.tensor(0)
        self._total = 0

    def accuracies(self, strategy: Any, tests: Sequence[Any]) -> list[float]:
        """Return the accuracy on each of some test experiences.

        Args:
            strategy: Any Avalanche strategy, inside ``train()``.
            tests: The first experiences of the test stream, the same each time or more.

        Raises:
            NotFiniteError: If the outputs for an image are not finite numbers.
        """
        kept = {name: value for name, value in vars(strategy).items() if name in _KEPT}
        plugins, self._found = strategy.plugins, []
        generators = random_state(strategy.device)
        with measured_as_evaluation(strategy.device):
            strategy.plugins = [p for p in plugins if not isinstance(p, _LISTEN)] + [self]
            try:
                strategy.eval(tests)
            finally:
                strategy.plugins = plugins
                vars(strategy).update(kept)
                set_random_state(generators, strategy.device)
        return self._found

    # --- what the strategy calls ---------------------------------------------------------------

    def after_eval_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Put the chosen images in the place of all, and start counting."""
        number = len(self._found)
        self._known = None
        if number == len(self._images):
            self._images.append(self._choose(strategy.adapted_dataset))
            self._known = [] if StrategyOffers.of(strategy).reads_features else None
        strategy.adapted_dataset = self._images[number]
        self._right, self._undecided, self._total = torch.tensor(0), torch.tensor(0), 0

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Count a minibatch; the sum stays on the device."""
        right = (strategy.mb_output.argmax(1) == strategy.mb_y).sum()
        self._right = right + self._right.to(right.device)
        self._undecided = undecided(strategy.mb_output) + self._undecided
        self._total += len(strategy.mb_y)
        if self._known is not None:
            parts = (strategy.mb_features[-1], *strategy.mbatch[1:])
            self._known.append(tuple(part.detach().cpu() for part in parts))

    def after_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take the accuracy down."""
        number = len(self._found)
        check_decided(self._undecided, self._total, f"experience {number + 1}")
        self._found.append(int(self._right) / self._total)
        if self._known is not None:
            self._images[number] = _features(self._known)
            self._known = None

    def _choose(self, dataset: Any) -> Any:
        size = len(dataset)
        if self._most is None or self._most >= size:
            return dataset
        drawn = torch.randperm(size, generator=torch.Generator().manual_seed(self._seed))
        return dataset.subset(sorted(drawn[: self._most].tolist()))


class _Rows(Dataset[tuple[Tensor, int]]):
    """Features and targets."""

    def __init__(self, features: Tensor, targets: list[int]) -> None:
        self.features, self.targets = features, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.features[index], self.targets[index]


def _features(minibatches: list[tuple[Tensor, ...]]) -> Any:
    """Return a dataset of features, targets and, where there are any, task labels."""
    features, targets, *labels = (torch.cat(parts) for parts in zip(*minibatches, strict=True))
    rows = _Rows(features, targets.tolist())
    attributes = [DataAttribute(rows.targets, "targets")]
    for tasks in labels[-1:]:
        attributes.append(DataAttribute(tasks.tolist(), "targets_task_labels", use_in_getitem=True))
    return AvalancheDataset([rows], data_attributes=attributes).eval()


@contextmanager
def undisturbed(
    network: nn.Module, device: torch.device, *, trains: bool = True
) -> Iterator[nn.Module]:
    """Put modules in eval mode, the network's choice of its head but with what trains; then back.

    Args:
        network: The network.
        device: Of the generators that are set back.
        trains: Whether it is asked for the head that trains, as in training, or for the other.
    """
    modes = {module: module.training for module in network.modules()}
    random = random_state(device)
    network.eval()
    # its own flag says which head it takes; dropout and the like are modules below it
    network.training = trains and isinstance(network, DynamicModel)
    try:
        yield network
    finally:
        for module, mode in modes.items():
            module.training = mode
        for branch in ModelOffers.of(network).branches:
            branch.terms.clear()  # of images that are no minibatch
        set_random_state(random, device)


def first_tests(
    strategy: Any, experience: Any, name: str, count: int, *, what: str
) -> Sequence[Any]:
    """Return the first experiences of a stream to test on.

    Args:
        strategy: Any Avalanche strategy, inside ``train()``.
        experience: The training experience.
        name: Of the stream: of the benchmark that the experience is of, or where it does not know
            it, among the ``eval_streams`` of ``train()``.
        count: How many.
        what: What is measured on them, for the message.

    Raises:
        ConfigError: If there is no such stream.
    """
    streams = streams_beside(experience.origin_stream)
    if name in streams:
        return list(islice(streams[name], count))
    handed = [each for stream in strategy._eval_streams or () for each in stream]
    ours = {e.current_experience: e for e in handed if e.origin_stream.name == name}
    found = [ours[number] for number in sorted(ours)[:count]]
    if not found or found[-1].current_experience >= len(found):
        there = f"has the streams {', '.join(streams)}" if streams else "is not known"
        raise ConfigError(
            f"{what} is measured on stream {name!r}, and the benchmark of the training experiences "
            f"{there}; hand the stream to train(), as eval_streams, or leave the metric out"
        )
    return found
