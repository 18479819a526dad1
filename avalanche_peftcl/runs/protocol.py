"""What an evaluation depends on besides the method, for the run record."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from avalanche_peftcl.benchmarks.images.manifest import split_sha256
from avalanche_peftcl.models.precision import WORDS
from avalanche_peftcl.registry.kinds import kind_of
from avalanche_peftcl.registry.offers import BenchmarkOffers, ExperienceOffers, StrategyOffers
from avalanche_peftcl.registry.packages import HOST
from avalanche_peftcl.runs.schema import Experience, Protocol, Provided, Stream


def describe_stream(benchmark: Any, input_config: Any) -> Stream:
    """Return what there is to learn and to be tested on.

    Args:
        benchmark: Any Avalanche benchmark; what it tells, see :class:`.BenchmarkOffers`, is
            recorded.
        input_config: What the backbone expects of an image.

    Returns:
        Scenario, class order, normalisation, classes and numbers of images of each experience, all
        test images, and two hashes of the data set that depend on neither machine nor seed:
        ``split_sha256`` of the images' names and sizes, classes, domains and splits (``None`` if
        the benchmark does not tell them), and ``manifest_sha256`` of their contents too (``None``
        unless the run was given a manifest to check).

    Raises:
        DataError: If a file of the data set is missing.
    """
    told = BenchmarkOffers.of(benchmark)
    names, contents = told.class_names, told.contents
    tests = list(benchmark.test_stream)
    experiences = []
    for index, experience in enumerate(training_experiences(benchmark)):
        classes = sorted({int(label) for label in experience.dataset.targets})
        called = [str(names[c]) if names else str(c) for c in classes]
        if told.captions is not None:  # its targets are images: an experience stands for them
            classes = [index]
            called = [str(told.domains[index] if told.domains else index)]
        experiences.append(
            Experience(
                classes=classes,
                class_names=called,
                train_images=len(experience.dataset),
                test_images=len(tests[index].dataset) if index < len(tests) else 0,
            )
        )
    return Stream(
        scenario=_text(told.scenario),
        split_sha256=None if contents is None else split_sha256(contents.entries(hashed=False)),
        manifest_sha256=_text(told.manifest_sha256),
        domains=None if told.domains is None else list(map(str, told.domains)),
        class_order=None if told.class_order is None else list(map(int, told.class_order)),
        normalisation={
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(input_config).items()
            if (name, value) != ("resize_mode", "shortest")  # as where it could be no other
        },
        tested_on=_text(told.tested_on),
        test_images=sum(len(experience.dataset) for experience in tests),
        experiences=experiences,
    )


def describe_protocol(
    stream: Stream, strategy: Any, benchmark: Any, components: Iterable[Provided]
) -> Protocol:
    """Return ``stream``, what a prediction leans on besides the image, and the precision.

    Args:
        stream: What :func:`describe_stream` returns.
        strategy: What it may tell is in :class:`.StrategyOffers`.
        benchmark: Any Avalanche benchmark.
        components: What the run is made of.

    Returns:
        ``task_label_at_test`` as stated; if not, whether the test images have different labels that
        the strategy could have used. ``batch_independence`` as stated, ``"stated"`` or
        ``"dependent"``; if not, ``"tested"`` where all that predicts (backbone, module, head,
        strategy and its plugins) comes with this package, whose tests hold each of these to a
        contract that compares logits of an image alone, among others, in another order and beside
        other classes, and ``"not stated"`` elsewhere. ``precision`` in words,
        ``None`` of a strategy that does not state it.
    """
    told = StrategyOffers.of(strategy)
    labelled = told.task_label_at_test
    if labelled is None:
        tests = map(ExperienceOffers.of, benchmark.test_stream)
        labelled = len({label for test in tests for label in test.task_labels}) > 1
    ours = all(
        component.provider == HOST
        for component in components
        if component.kind != "benchmark" and not kind_of(component.kind).watches
    )
    words = {None: "tested" if ours else "not stated", True: "stated", False: "dependent"}
    return Protocol(
        **dict(stream),
        left_out=_plain(BenchmarkOffers.of(benchmark).left_out),
        task_label_at_test=bool(labelled),
        batch_independence=words[told.batch_independent_at_test],
        precision=WORDS.get(told.mixed_precision or ""),
    )


def training_experiences(benchmark: Any) -> list[Any]:
    """Return the training experiences; of an online stream those that it was cut from."""
    whole = BenchmarkOffers.of(benchmark).original_train_stream
    return list(benchmark.train_stream if whole is None else whole)


def per_domain(stream: Stream, per_task: Sequence[float | None]) -> dict[str, float | None] | None:
    """Return the last accuracy on each domain by name; ``None`` of a stream without their tests.

    Args:
        stream: What :func:`describe_stream` returns.
        per_task: Final row of the accuracy matrix, so far.
    """
    if stream.scenario != "domain" or not stream.domains:
        return None
    if not all(experience.test_images for experience in stream.experiences):
        return None  # one test for all domains
    return dict(zip(stream.domains, per_task, strict=False))


def _plain(counts: Mapping[str, int] | None) -> dict[str, int] | None:
    return None if counts is None else {str(name): int(n) for name, n in counts.items()}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
