"""What a run would do: everything is built, a few minibatches are timed, nothing is kept."""

import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from rich.console import Console
from torch.utils.data import DataLoader

from avalanche_peftcl.config import RunConfig
from avalanche_peftcl.config.plan import make_plan
from avalanche_peftcl.config.resources import (
    check_open_files,
    check_processors,
    plain_resource_errors,
)
from avalanche_peftcl.console import plain
from avalanche_peftcl.models.device import check_device
from avalanche_peftcl.registry import Registry, discover
from avalanche_peftcl.registry.offers import ModelOffers
from avalanche_peftcl.runs.build import Backbone, build_backbone, build_method
from avalanche_peftcl.runs.folder import check_output
from avalanche_peftcl.runs.identity import Identity
from avalanche_peftcl.runs.journal import Journal
from avalanche_peftcl.runs.names import full_names
from avalanche_peftcl.runs.precision import settle_precision
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.runs.report import spread
from avalanche_peftcl.runs.schema import Stream
from avalanche_peftcl.runs.surroundings import controlled, plain_data_errors, seed_all
from avalanche_peftcl.runs.tables import Sheet, terminal_table
from avalanche_peftcl.runs.units import duration

_TIMED = 3  # minibatches, behind one that is not
_LONGEST = 30.0  # seconds after which no further minibatch is timed
_MOST = 20  # experiences that the table shows
_WIDE = 40  # letters of the classes in the table


class _EnoughError(Exception):
    """Ends the training of a dry run."""


class Stopwatch(SupervisedPlugin[Any]):
    """Times the first minibatches of a training and ends it; of what does not train, at once.

    Attributes:
        trains: Whether a parameter trains; ``None`` before it is known.
        seconds: Of each minibatch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trains: bool | None = None
        self.seconds: list[float] = []
        self._began = self._mark = time.perf_counter()

    @property
    def a_minibatch(self) -> float | None:
        """Seconds of a minibatch: the mean without the first; ``None`` if none was timed."""
        timed = self.seconds[1:] or self.seconds
        return sum(timed) / len(timed) if timed else None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """See whether anything trains."""
        self.trains = any(p.requires_grad for p in strategy.model.parameters())
        if not self.trains:
            raise _EnoughError
        self._began = self._mark = time.perf_counter()

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._mark = time.perf_counter()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Stop it, and the training if that was enough."""
        float(strategy.loss.detach())  # waits for the device
        now = time.perf_counter()
        self.seconds.append(now - self._mark)
        self._mark = now
        if len(self.seconds) > _TIMED or now - self._began > _LONGEST:
            raise _EnoughError


@dataclass(frozen=True)
class Workload:
    """What a run has to do, in images and minibatches.

    Args:
        epochs: Passes over the training images of an experience.
        minibatches: Of training, all experiences and epochs.
        train_images: Of all experiences.
        evaluations: How often there is one.
        evaluated_images: In all evaluations together.
    """

    epochs: int
    minibatches: int
    train_images: int
    evaluations: int
    evaluated_images: int

    @classmethod
    def of(
        cls, stream: Stream, *, epochs: int, mb_size: int, evaluate_all: bool, joint: bool
    ) -> "Workload":
        """Count it.

        Args:
            stream: What there is to learn.
            epochs: Passes over the training images.
            mb_size: Images of a training minibatch.
            evaluate_all: Whether every evaluation is on all test images, with one before training.
            joint: Whether all experiences are trained on at once.

        Example:
            >>> part = {"classes": [0], "class_names": ["a"], "train_images": 10, "test_images": 4}
            >>> stream = Stream(
            ...     scenario="class", class_order=None, normalisation={}, experiences=[part, part]
            ... )
            >>> Workload.of(stream, epochs=3, mb_size=8, evaluate_all=False, joint=False)
            Workload(epochs=3, minibatches=12, train_images=20, evaluations=2, evaluated_images=12)
        """
        train = [part.train_images for part in stream.experiences]
        tests = [part.test_images for part in stream.experiences]
        visits = [sum(train)] if joint else train
        seen = [sum(tests)] * len(visits)
        if evaluate_all:
            seen.append(sum(tests))
        elif not joint:
            seen = [sum(tests[: t + 1]) for t in range(len(tests))]
        return cls(
            epochs,
            epochs * sum(-(-images // mb_size) for images in visits),
            sum(train),
            len(seen),
            sum(seen),
        )


def dry_run(
    config: RunConfig,
    *,
    console: Console,
    registry: Registry | None = None,
    overwrite: bool = False,
) -> None:
    """Build a run as :func:`.run` does and show what it would do; no file is written.

    What trains is known once the model is adapted to the first experience, and how long that takes
    once a few minibatches of it were trained on: both happen to a network that is thrown away.

    Args:
        config: What to run; of several seeds the first is built.
        console: Where the plan is shown.
        registry: Components to choose from; ``None`` discovers the installed ones.
        overwrite: Whether an earlier run in the output folder would be replaced.

    Raises:
        PEFTCLError: Whatever the run would raise up to there.
    """
    seeds = config.seeds or [config.seed]
    one = config if config.seeds is None else config.for_seed(seeds[0])
    registry = discover() if registry is None else registry
    check_output(one.output, overwrite=overwrite)
    device = check_device(one.device)
    plan = settle_precision(make_plan(one, registry), device=device, resume=False)
    check_processors(one.num_threads, one.num_workers)
    check_open_files(one.num_workers)
    reporter, stopwatch = RunProgress(console), Stopwatch()
    with (
        controlled(one.seed, device, one.num_threads),
        plain_data_errors(),
        plain_resource_errors(plan.settings),
    ):
        backbone = build_backbone(plan)
        given = {"input_config": backbone.input_config, "backbone": backbone.network}
        benchmark = plan.build("benchmark", **given)
        seed_all(one.seed)
        method = build_method(plan, backbone, device=str(device), reporter=reporter)
        strategy = method.strategy
        journal = Journal(plan, backbone, benchmark, method, Identity.of(plan))
        reporter.say(f"dry run: {journal.headline(device)}")
        strategy.plugins.append(stopwatch)
        with suppress(_EnoughError):
            strategy.train(journal.visits[0], eval_streams=[], num_workers=one.num_workers)
        a_pass = _seconds_a_pass(backbone, benchmark.test_stream, strategy)
    passes = ModelOffers.of(strategy.model.eval()).forward_passes  # of a test image
    work = Workload.of(
        journal.stream,
        epochs=strategy.train_epochs,
        mb_size=strategy.train_mb_size,
        evaluate_all=one.evaluate == "all",
        joint=journal.joint,
    )
    console.print(plain(""))
    console.print(terminal_table(_sheet(journal.stream), title=False))
    for line in _lines(work, stopwatch, a_pass, passes):
        reporter.say(line)
    if one.budget is not None:
        reporter.say(f"budget: {one.budget.said()}; the estimate is of a run without it")
    if len(seeds) > 1:
        reporter.say(f"{len(seeds)} seeds, each as long: {', '.join(map(str, seeds))}")
    folder = config.output if len(seeds) > 1 else one.output
    reporter.say(f"output: {folder}; nothing was written, loggers were not started")


def _lines(work: Workload, timed: Stopwatch, a_pass: float, passes: int) -> list[str]:
    """Return what there is to do and how long that takes, in words."""
    per_image = a_pass * passes
    several = f", {passes} passes of the backbone each" if passes > 1 else ""
    evaluation = work.evaluated_images * per_image
    if timed.trains:
        each = timed.a_minibatch or 0.0
        training = work.minibatches * each
        first = (
            f"training: {work.train_images:,} images, {work.epochs} epochs, {work.minibatches:,} "
            f"minibatches of {duration(each)}"
        )
        measured = f"{len(timed.seconds)} minibatches of training and a pass, all thrown away"
    else:
        training = work.train_images * per_image
        first = f"nothing trains: {work.train_images:,} training images are seen once{several}"
        measured = "a pass of the backbone"
    return [
        first,
        f"evaluation: {work.evaluations} times, {work.evaluated_images:,} images in all{several}, "
        f"{duration(a_pass)} a pass",
        f"estimate: {duration(training + evaluation)} (training {duration(training)}, evaluation "
        f"{duration(evaluation)}), from {measured}; what plugins and heads do between the "
        "experiences is not in it",
    ]


def _sheet(stream: Stream) -> Sheet:
    parts, names = stream.experiences, full_names(stream)
    rows = []
    for t in spread(len(parts), _MOST):
        classes = ", ".join(parts[t].class_names)
        what = classes if names[t] == classes else f"{names[t]}: {classes}"
        what = what if len(what) <= _WIDE else f"{what[: _WIDE - 1]}…"
        counts = len(parts[t].classes), parts[t].train_images, parts[t].test_images
        rows.append((f"{t + 1} {what}", *(f"{count:,}" for count in counts)))
    return Sheet("", ("experience", "classes", "train images", "test images"), tuple(rows))


def _seconds_a_pass(backbone: Backbone, tests: Any, strategy: Any) -> float:
    """Return the time that one test image takes, loaded and passed through the backbone."""
    network, device = backbone.network, strategy.device
    dataset, best = tests[0].dataset, float("inf")
    loader = DataLoader(
        dataset,
        batch_size=min(strategy.eval_mb_size, len(dataset)),
        collate_fn=getattr(dataset, "collate_fn", None),
    )
    network.eval()
    with torch.no_grad():
        mark = began = time.perf_counter()
        for minibatch in islice(loader, 2):
            images = minibatch[0].to(device)
            float(network(images).sum())  # waits for the device
            now = time.perf_counter()
            best, mark = min(best, (now - mark) / len(images)), now
            if now - began > _LONGEST:
                break
    return best
