"""What all networks with growing heads share: their forward pass, and how a stream makes them grow.

Avalanche adapts what ``isinstance`` takes for one of its dynamic modules before each experience.
The networks here are taken for such, once Avalanche has been imported, and need no Avalanche
otherwise: its strategies train them, and ``predict`` runs without it.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from functools import cache
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.heads.head import Head
from avalanche_peftcl.models.heads.rows import ClassRows
from avalanche_peftcl.registry.offers import BenchmarkOffers


class DynamicModel(nn.Module):
    """A network whose heads grow with a stream.

    A subclass has ``classes`` (:class:`ClassRows`) and the three methods that raise here; any of
    Avalanche's strategies then trains it as it is. Where a stream has several task labels it is a
    ``MultiTaskModule``, which is called with the task labels of the images; elsewhere a
    ``DynamicModule``.

    Attributes:
        multi_task: Whether the stream it was adapted to has several task labels.
        last_features: What :meth:`embed` returned in the last :meth:`forward`, without gradient.

    Example:
        >>> import torch
        >>> from avalanche.models import DynamicModule
        >>> class Small(DynamicModel):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.classes, self.head = ClassRows(), nn.Linear(4, 0)
        ...
        ...     def start_experience(self, pairs, *, fresh=True):
        ...         self.classes.add(pairs)
        ...         self.head = nn.Linear(4, len(self.classes))
        ...
        ...     def embed(self, images):
        ...         return images
        ...
        ...     def classify(self, features):
        ...         return self.head(features)
        >>> model = Small()
        >>> model.start_experience([(0, 2)])
        >>> isinstance(model, DynamicModule), model(torch.zeros(5, 4)).shape
        (True, torch.Size([5, 3]))
    """

    classes: ClassRows
    multi_task = False
    last_features: Tensor | None = None
    _auto_adapt = True  # the host asks: adapted inside a larger network too

    @property  # type: ignore[misc]  # read-only; isinstance reads it where type() does not do
    def __class__(self) -> Any:
        """The class, or one that is the host's dynamic module too."""
        host = sys.modules.get("avalanche.models.dynamic_modules")
        name = "MultiTaskModule" if self.multi_task else "DynamicModule"
        base = None if host is None else vars(host).get(name)
        own: Any = type(self)
        return own if base is None else _both(own, base)

    def __reduce__(self) -> Any:
        return _blank, (type(self),), vars(self)

    # --- what a subclass says ------------------------------------------------------------------

    def start_experience(self, pairs: Iterable[tuple[int, int]], *, fresh: bool = True) -> None:
        """Make room for the ``(task label, class)`` pairs of an experience.

        Args:
            pairs: Those that are known may be among them.
            fresh: Whether rows that are learnt anew in each experience start anew.
        """
        raise NotImplementedError

    def embed(self, images: Tensor) -> Tensor:
        """Return the features that are classified: ``(B, 3, H, W)`` to ``(B, D)``."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Return a logit a row: ``(B, D)`` to ``(B, R)``."""
        raise NotImplementedError

    def head_features(self, features: Tensor) -> Tensor:
        """Return what the last head reads of what :meth:`embed` returns, ``(B, D)``; here all."""
        return features

    @property
    def heads(self) -> tuple[Head, ...]:
        """Its heads, the last of which predicts; of fitted ones call :meth:`~.Head.observe`."""
        return ()

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Its passes through the backbone."""
        return ()

    @property
    def moving(self) -> list[slice]:
        """Which columns of what :meth:`embed` returns in eval mode move in training; here all."""
        return [slice(None)]

    # --- what it gets for it -------------------------------------------------------------------

    def forward(self, images: Tensor, task_labels: Tensor | None = None) -> Any:
        """Return logits by class.

        Args:
            images: ``(B, 3, H, W)``.
            task_labels: ``(B,)``; may be left out where the stream has one.

        Returns:
            ``(B, C)``, -1000 for a class that may not be predicted. Without the task labels of a
            stream that has several, as the host's multi-task modules do, one such tensor for each
            label that was trained.
        """
        features = self.embed(images)
        self.last_features = features.detach()
        logits = self.classify(features)
        labels = self.classes.task_labels if task_labels is None else []
        if len(labels) > 1 or (labels and self.multi_task):
            keys = self.classes.keys
            return {
                t: self.classes.scatter(logits, keys.new_full((len(logits),), t)) for t in labels
            }
        return self.classes.scatter(logits, task_labels)

    @property
    def forward_passes(self) -> int:
        """Passes through the backbone that an image costs, in training and in evaluation."""
        return sum(branch.forward_passes for branch in self.branches) or 1

    def losses(self) -> dict[str, Tensor]:
        """Return by name what its branches add to the loss, weighted, of the last forward pass.

        Terms of one name, from several branches, are summed.
        """
        found: dict[str, Tensor] = {}
        for branch in self.branches:
            for name, term in branch.losses().items():
                found[name] = found[name] + term if name in found else term
        return found

    def start_rows(self, first: int, names: Sequence[str] | None) -> None:
        """Tell the heads what the classes of new rows are called.

        Args:
            first: The first row that is new.
            names: Name of each class id; ``None`` where nobody knows them.

        Raises:
            ConfigError: If a head needs names and there are none.
        """
        classes = self.classes.keys[first:, 1].tolist()
        if not classes:
            return
        if names is None:
            if needs := [type(head).__name__ for head in self.heads if head.named]:
                raise ConfigError(
                    f"a {needs[0]} begins with the names of classes, and the benchmark does not "
                    "tell them; give it class_names, a name of each class id"
                )
            return
        for head in self.heads:
            head.start([str(names[c]) for c in classes])

    def start_branches(self, experience: Any) -> None:
        """Tell the branches that an experience begins; the same again begins nothing new."""
        for branch in self.branches:
            branch.start_experience(_number(experience))

    def adaptation(self, experience: Any) -> None:
        """Make room for the classes of an experience; Avalanche calls this before each.

        In evaluation no class is added: those that were never trained cannot be predicted.
        """
        pairs = class_pairs(experience)
        if self.training:
            if not len(self.classes):
                self.multi_task = len(_task_labels(experience)) > 1
            known = set(map(tuple, self.classes.keys.tolist()))
            if new := [pair for pair in pairs if pair not in known]:
                first = len(self.classes)
                self.start_experience(new)
                self.start_rows(first, class_names(experience))
            self.start_branches(experience)
        self.classes.widen(1 + max(c for _, c in pairs))

    def pre_adapt(self, agent: Any, experience: Any) -> None:
        """Adapt; the host's newer name for it."""
        self.adaptation(experience)


def class_counts(experience: Any) -> dict[tuple[int, int], int]:
    """Return how many images of each ``(task label, class)`` pair an experience has, sorted.

    They are read from the dataset, so that streams without ``classes_in_this_experience`` or
    without task labels (then 0) work too.
    """
    dataset = experience.dataset
    targets = [int(y) for y in dataset.targets]
    labelled = isinstance(dataset, _Labelled)
    tasks = [int(t) for t in dataset.targets_task_labels] if labelled else [0] * len(targets)
    return dict(sorted(Counter(zip(tasks, targets, strict=True)).items()))


def class_pairs(experience: Any) -> list[tuple[int, int]]:
    """Return the ``(task label, class)`` pairs of an experience's images, sorted."""
    return list(class_counts(experience))


def offers_of_benchmark(experience: Any) -> BenchmarkOffers:
    """Return what the benchmark of an experience tells, if the experience knows it."""
    stream = experience.origin_stream if isinstance(experience, _Streamed) else None
    return BenchmarkOffers.of(stream.benchmark if isinstance(stream, _OfBenchmark) else None)


def class_names(experience: Any) -> Sequence[str] | None:
    """Return the name of each class id of an experience's benchmark, if that tells them."""
    return offers_of_benchmark(experience).class_names


def _number(experience: Any) -> int:
    """Return the number of an experience in its stream, from 1; 1 where nobody knows it."""
    if isinstance(experience, _Chunk):
        if not experience.access_task_boundaries:
            return 1
        experience = experience.origin_experience
    return 1 + int(experience.current_experience) if isinstance(experience, _Numbered) else 1


def _task_labels(experience: Any) -> set[int]:
    """Return the task labels of the stream that an experience is of."""
    stream: Any = experience.origin_stream if isinstance(experience, _Streamed) else None
    finite = isinstance(stream, Sized)
    whole = list(stream) if finite else [experience]
    return {int(t) for each in whole if isinstance(each, _Tasked) for t in each.task_labels}


@runtime_checkable
class _Labelled(Protocol):
    """A dataset of the host whose images have task labels."""

    targets_task_labels: Iterable[int]


@runtime_checkable
class _Streamed(Protocol):
    """An experience that knows its stream, which may be without an end."""

    origin_stream: Any


@runtime_checkable
class _Numbered(Protocol):
    """An experience that knows its place in its stream."""

    current_experience: int


@runtime_checkable
class _Chunk(Protocol):
    """A chunk of an online stream; it knows the experience that it is of, or does not tell."""

    access_task_boundaries: bool

    @property
    def origin_experience(self) -> Any:
        """The whole experience."""


@runtime_checkable
class _OfBenchmark(Protocol):
    """A stream that knows its benchmark."""

    benchmark: Any


@runtime_checkable
class _Tasked(Protocol):
    """An experience of a benchmark with task labels."""

    task_labels: Iterable[int]


@cache
def _both(own: Any, host: Any) -> Any:
    return type(own.__name__, (own, host), {"__module__": own.__module__, "__doc__": own.__doc__})


def _blank(kind: type[nn.Module]) -> Any:
    return kind.__new__(kind)
