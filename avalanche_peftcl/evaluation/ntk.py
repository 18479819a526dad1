"""The tangent kernel of a run, experience by experience, and forgetting predicted from it."""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import stream_type
from pydantic import Field
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation.accuracy_matrix import full_stream, trained_experience
from avalanche_peftcl.evaluation.ntk_kernels import (
    HeadKernel,
    KernelOptions,
    Parameters,
    TrainedKernel,
)
from avalanche_peftcl.evaluation.ntk_probes import (
    Probes,
    held_out_experience,
    network_of,
    read_probes,
    targets_by_row,
)
from avalanche_peftcl.evaluation.ntk_readings import (
    drift_between,
    finite,
    measured_forgetting,
    squared_errors,
)
from avalanche_peftcl.functional.kernel_measures import (
    kernel_alignment,
    kernel_map,
    kernel_size,
    task_complexity,
)
from avalanche_peftcl.functional.ntk import OutputForm
from avalanche_peftcl.models.counting import uncounted_passes
from avalanche_peftcl.registry.offers import ExperienceOffers, StrategyOffers
from avalanche_peftcl.registry.ranges import MinibatchSize, Penalty, Seed

Summary = dict[str, Any]
ProbeImages = Annotated[int, Field(ge=2, le=4096)]

_LISTS = (
    *("inter_task", "trace", "smallest_eigenvalue", "condition", "alignment", "complexity"),
    *("drift_from_first", "drift_across_switch", "drift_within", "train_test_gap"),
)
_TOLD = ("inter_task", "alignment", "drift_from_first", "drift_across_switch")


class NTKMetric(PluginMetric[Summary]):
    r"""Measure the empirical tangent kernel between experiences, and predict forgetting from it.

    Of every training experience some images are set aside for diagnosis, with the transforms of
    the test images; those of earlier experiences are read again later. **No method sees them**: a
    run is the same to the bit with this metric and without.

    The function :math:`f` is the logits by head row as they train, in eval mode: of NTK-CL the
    proxies on the fused view, elsewhere the trained head, or the proxies of one that is fitted. Its
    kernel over all parameters that train (those of the head and of proxies among them, unless
    ``parameters="module"``) is measured

    - as an experience ``k`` begins, its rows there: trace, smallest eigenvalue, condition,
      alignment with the targets, and complexity, of its own images :math:`X_k`;
    - as it ends: the map between all experiences so far, its mean off the diagonal (``inter_task``)
      and three drifts: of :math:`X_k` since it began (``drift_within``), of the experience before
      since that ended (``drift_across_switch``), and of the first since it began
      (``drift_from_first``); at last the gap between test and training images of ``k`` in squared
      loss, :math:`\lVert y - f(x) \rVert^2 / 2`.

    **Forgetting** of an earlier experience ``s`` by ``k`` is how far its logits move,

    .. math:: \sqrt{\tfrac 1 n \textstyle\sum_{x \in X_s} \lVert \Delta f(x) \rVert^2}

    over the rows that there are as ``k`` begins (with task labels: those of the image's).
    Predicted, before a step is taken,

    .. math:: \Delta f(X_s) = \Phi(X_s, X_k)(\Phi(X_k, X_k) + \lambda I)^{-1} (Y - f(X_k))

    with one-hot targets over all rows, from the probes alone; measured, what it was. The kernel of
    the sum of logits stands for that of each. ``predicted_loss`` and ``measured_loss`` are the mean
    increase of the squared loss, which has a sign.

    Where nothing trains and the head is a ridge regression, the kernel is that of its features,
    and the prediction is the change of a fit to all images of ``k`` beside those before, from
    their features in the run's precision, before it is fitted: exact where the penalty is given.

    A step of most strategies here minimises a cross-entropy, of some over the experience's own
    rows alone, a few epochs long: the prediction is not of that training but of the theory's. How
    well it holds is what the page of ``peftcl compare --html`` shows over all pairs ``s < k``.

    Cost: at the ``t``-th experience the Jacobians of ``probe_images`` and ``(t - 1) old_images``
    images, twice, each about one and a half training steps of one image; at most 1 GiB of them at a
    time (beyond that they are computed again). With the defaults a run of
    ``examples/quickstart.yaml`` takes 14 % more processor time (6 to 25 in three pairs of runs).

    Args:
        probe_images: Images of each experience; at most all it has.
        old_images: How many of them, from the first, are read again in later experiences: for
            forgetting, for drift and for the map.
        form: ``"pseudo"`` (the sum of all logits), ``"logit"`` (every logit: ``R`` times the cost,
            and a kernel of ``(m t R)²`` numbers) or ``"sketch"`` (random directions).
        n_directions: Of a sketch.
        ridge: :math:`\lambda`, relative to the mean eigenvalue of the kernel.
        chunk_size: Images that are differentiated at a time, which bounds the memory for their
            activations; numbers depend on it by rounding alone.
        parameters: ``"trainable"``, or ``"module"`` for those outside of heads.
        seed: Of the draw of images and directions; no global generator is touched.

    Raises:
        ConfigError: In training, if there is no function to differentiate: nothing trains and the
            head is no ridge regression, the network is one of the host's multi-task modules, or
            computes what cannot be differentiated image by image. If images of earlier experiences
            cannot be found again where a run goes on.

    Source:
        Liu et al., arXiv 2407.17120, whose release computes no kernel; predictions: Bennani et al.,
        arXiv 2006.11942, Doan et al., AISTATS 2021, and arXiv 2606.18024. Differs: measured, and
        beside what it predicts.

    Example:
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> from avalanche.logging import BaseLogger
        >>> from avalanche_peftcl.testing import toy_backbone, toy_benchmark
        >>> from avalanche_peftcl.training.naive import build_naive
        >>> metric = ntk_metrics(probe_images=4)
        >>> evaluator = EvaluationPlugin(metric, loggers=[BaseLogger()])
        >>> strategy = build_naive(backbone=toy_backbone(), train_epochs=1, evaluator=evaluator)
        >>> for experience in list(toy_benchmark().train_stream)[:2]:
        ...     _ = strategy.train(experience)
        >>> [(f["experience"], f["after"]) for f in metric.summary()["forgetting"]]
        [(0, 1)]
    """

    remembers = ("_images", "_lists", "_forgetting", "_map", "_first", "_last", "_begun", "_size")

    def __init__(
        self,
        *,
        probe_images: int = 64,
        old_images: int = 16,
        form: OutputForm = "pseudo",
        n_directions: int = 4,
        ridge: float = 0.01,
        chunk_size: int = 64,
        parameters: Parameters = "trainable",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.probe_images, self.seed = probe_images, seed
        self.old_images = min(old_images, probe_images)
        self.options = KernelOptions(
            form=form,
            n_directions=n_directions,
            ridge=ridge,
            chunk_size=chunk_size,
            parameters=parameters,
        )
        self.reset()

    def reset(self) -> None:
        """Forget the run."""
        self._images: dict[int, list[int]] = {}  # of each experience, by its number, in order
        self._lists: dict[str, list[float | None]] = {name: [] for name in _LISTS}
        self._forgetting: list[dict[str, Any]] = []
        self._map: list[list[float]] = []  # between the experiences in order
        self._first: dict[int, dict[str, Any]] = {}  # kernel of the first experience as it began
        self._last: dict[int, dict[str, Any]] = {}  # and of the last one as it ended
        self._begun: dict[str, Any] = {}  # what was read as the present one began
        self._size = 0  # of the stream
        self._experiences: dict[int, Any] = {}

    # --- what is told --------------------------------------------------------------------------

    def summary(self) -> Summary:
        """Return all that was measured.

        Returns:
            ``probe_images``, ``form``, ``parameters`` and ``ridge``; ``kernel_map``, ``(T, T)`` as
            the last experience ended, ``None`` where one was not yet seen; one value an experience
            of each list that the class names; ``forgetting``, a dict a pair of experiences.
        """
        size = max([self._size, *(number + 1 for number in self._images)])
        table: list[list[float | None]] = [[None] * size for _ in range(size)]
        for i, row in zip(self._images, self._map, strict=False):
            for j, value in zip(self._images, row, strict=False):
                table[i][j] = finite(value)
        return {
            "probe_images": self.probe_images,
            "form": self.options.form,
            "parameters": self.options.parameters,
            "ridge": self.options.ridge,
            "kernel_map": table,
            **{name: list(values) for name, values in self._lists.items()},
            "forgetting": [dict(each) for each in self._forgetting],
        }

    def result(self) -> Summary:
        """Return :meth:`summary`."""
        return self.summary()

    def __str__(self) -> str:
        return "NTK"

    # --- an experience -------------------------------------------------------------------------

    @uncounted_passes()
    def before_training_exp(self, strategy: Any) -> None:
        """Read the kernel, and predict what the experience will do to earlier ones."""
        experience = trained_experience(strategy)
        number = int(experience.current_experience)
        self._experiences[number] = experience
        first_part = ExperienceOffers.of(strategy.experience).is_first_subexp
        if not first_part or self._begun.get("experience") == number:  # a run goes on inside it
            return
        stream = full_stream(experience)
        self._size = len(stream) if hasattr(stream, "__len__") else 0
        self._images.setdefault(number, self._draw(len(experience.dataset), number))
        old = [each for each in self._images if each != number]
        probes = [self._probes(strategy, each, self.old_images) for each in old]
        new = self._probes(strategy, number)
        kernel = self._kernel(strategy)
        reading = kernel.read(torch.cat([each.images for each in [*probes, new]]))
        n_old = len(reading.outputs) - len(new.images)
        own = reading.split([n_old, len(new.images)])[1]
        targets = targets_by_row(strategy, new, own.outputs.shape[1])
        residual = targets - own.outputs
        ridge = kernel.ridge(own.kernel)
        values = {
            **kernel_size(own.kernel)._asdict(),
            "alignment": kernel_alignment(own.kernel, own.targets(targets)),
            "complexity": task_complexity(
                own.kernel, own.targets(residual), ridge, n=len(residual)
            ),
        }
        self._begun = {
            "experience": number,
            "values": {name: finite(value) for name, value in values.items()},
            "start": own.plain(),
            "old": old,
            "outputs": reading.outputs[:n_old].clone(),
        }
        if old and isinstance(kernel, HeadKernel):
            images = torch.cat([each.images for each in probes])
            batches = self._whole(strategy, experience, reading.outputs.shape[1])
            self._begun["change"] = kernel.change(images, batches)
        elif old and isinstance(kernel, TrainedKernel):
            self._begun["change"] = kernel.change(reading, n_old, residual)

    @uncounted_passes()
    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Read the kernel again, and measure what the experience did; tell what can be compared."""
        if ExperienceOffers.of(strategy.experience).is_last_subexp is False or not self._begun:
            return []
        begun, self._begun = self._begun, {}
        number, few = begun["experience"], self.old_images
        probes = {
            each: self._probes(strategy, each, None if each == number else few)
            for each in self._images
        }
        reading = self._kernel(strategy).read(torch.cat([each.images for each in probes.values()]))
        sizes = [len(each.images) for each in probes.values()]
        self._map = kernel_map(reading.kernel, [n * reading.per_image for n in sizes]).tolist()
        ends = dict(zip(probes, reading.split(sizes), strict=True))
        start = begun["start"]
        self._first = self._first or {number: start}
        ((first, at_first),) = self._first.items()
        off = [v for i, row in enumerate(self._map) for j, v in enumerate(row) if i != j]
        values: dict[str, float | None] = {
            **begun["values"],
            "inter_task": finite(sum(off) / len(off)) if off else None,
            "drift_within": drift_between(ends[number], start),
            "drift_from_first": drift_between(ends[first], at_first),
            "drift_across_switch": None,
            "train_test_gap": self._gap(strategy, number, probes[number], ends[number].outputs),
        }
        for last, at_last in self._last.items():
            if last != number:
                values["drift_across_switch"] = drift_between(ends[last], at_last)
        for name in _LISTS:
            self._lists[name].append(values[name])
        self._last = {number: ends[number].plain()}
        done = measured_forgetting(strategy, begun, probes, ends)
        self._forgetting += done
        told = {name: values[name] for name in _TOLD}
        for name in ("predicted", "measured"):
            told[name] = sum(each[name] for each in done) / len(done) if done else None
        suffix = f"train_phase/{stream_type(strategy.experience)}_stream"
        return [
            MetricValue(
                self, f"NTK_{name.title()}/{suffix}", value, strategy.clock.train_iterations
            )
            for name, value in told.items()
            if value is not None
        ]

    def _gap(self, strategy: Any, number: int, trained: Probes, outputs: Tensor) -> float | None:
        """Return the squared loss on test images less that on training images, if there are any."""
        tested = held_out_experience(strategy, self._experiences[number], number)
        if tested is None:
            return None
        images = self._draw(len(tested.dataset), number)[: self.old_images]
        held_out = read_probes(tested, images, strategy.device)
        theirs = self._kernel(strategy).outputs(held_out.images)
        losses = [
            squared_errors(strategy, some, there).mean() / 2
            for some, there in ((held_out, theirs), (trained, outputs))
        ]
        return finite(float(losses[0] - losses[1]))

    # --- what is read --------------------------------------------------------------------------

    def _kernel(self, strategy: Any) -> TrainedKernel | HeadKernel:
        network = network_of(strategy)
        trains = any(p.requires_grad for p in network.parameters())
        if trains:
            return TrainedKernel(network, self.options)
        return HeadKernel(network, self.options, StrategyOffers.of(strategy).mixed_precision)

    def _draw(self, size: int, number: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + number)
        order: list[int] = torch.randperm(size, generator=generator).tolist()
        return order[: self.probe_images]

    def _probes(self, strategy: Any, number: int, n: int | None = None) -> Probes:
        """Return the images of an experience, which may be one of long ago."""
        if number not in self._experiences:
            stream = full_stream(trained_experience(strategy))
            try:
                self._experiences[number] = stream[number]
            except TypeError:
                raise ConfigError(
                    f"metric 'ntk' reads images of experience {number + 1} again, and this stream "
                    "cannot be asked for one by its number; leave ntk out where a run goes on"
                ) from None
        return read_probes(self._experiences[number], self._images[number][:n], strategy.device)

    def _whole(
        self, strategy: Any, experience: Any, n_rows: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images of an experience, and their targets by row."""
        numbers = torch.arange(len(experience.dataset))
        for part in torch.split(numbers, max(1, strategy.eval_mb_size)):
            some = read_probes(experience, part.tolist(), strategy.device)
            yield some.images, targets_by_row(strategy, some, n_rows)


def ntk_metrics(
    *,
    probe_images: ProbeImages = 64,
    old_images: ProbeImages = 16,
    form: OutputForm = "pseudo",
    n_directions: Annotated[int, Field(ge=1, le=1024)] = 4,
    ridge: Penalty = 0.01,
    chunk_size: MinibatchSize = 64,
    parameters: Parameters = "trainable",
    seed: Seed = 0,
) -> NTKMetric:
    """Build :class:`NTKMetric`.

    Args:
        probe_images: Images of each experience.
        old_images: How many of them later experiences read again.
        form: ``pseudo``, ``logit`` or ``sketch``.
        n_directions: Of a sketch.
        ridge: Relative to the mean eigenvalue.
        chunk_size: Images that are differentiated at a time.
        parameters: ``trainable``, or ``module`` without heads.
        seed: Of the draw of images.
    """
    return NTKMetric(
        probe_images=probe_images,
        old_images=old_images,
        form=form,
        n_directions=n_directions,
        ridge=ridge,
        chunk_size=chunk_size,
        parameters=parameters,
        seed=seed,
    )
