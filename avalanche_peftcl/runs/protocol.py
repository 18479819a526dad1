"""What an evaluation depends on besides the method, for the run record."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from avalanche_peftcl.benchmarks.images.manifest import split_sha256
from avalanche_peftcl.models.precision import WORDS

_OWN = "avalanche-peftcl"


def describe_protocol(benchmark: Any, input_config: Any) -> dict[str, Any]:
    """Return what an evaluation depends on besides the method.

    Args:
        benchmark: Any Avalanche benchmark; ``class_order``, ``class_names``, ``scenario``,
            ``domains``, ``tested_on``, ``contents`` and ``manifest_sha256`` are recorded where it
            has them.
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
    names = getattr(benchmark, "class_names", None)
    tests = list(benchmark.test_stream)
    experiences = []
    for index, experience in enumerate(training_experiences(benchmark)):
        classes = sorted({int(label) for label in experience.dataset.targets})
        experiences.append(
            {
                "classes": classes,
                "class_names": [str(names[c]) if names else str(c) for c in classes],
                "train_images": len(experience.dataset),
                "test_images": len(tests[index].dataset) if index < len(tests) else 0,
            }
        )
    order = getattr(benchmark, "class_order", None)
    contents = getattr(benchmark, "contents", None)
    return {
        "scenario": getattr(benchmark, "scenario", None),
        "split_sha256": contents and split_sha256(contents.entries(hashed=False)),
        "manifest_sha256": getattr(benchmark, "manifest_sha256", None),
        "domains": getattr(benchmark, "domains", None),
        "class_order": None if order is None else [int(label) for label in order],
        "normalisation": {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(input_config).items()
        },
        "tested_on": getattr(benchmark, "tested_on", None),
        "test_images": sum(len(experience.dataset) for experience in tests),
        "experiences": experiences,
    }


def describe_prediction(
    strategy: Any, benchmark: Any, components: Iterable[Mapping[str, str]]
) -> dict[str, bool | str | None]:
    """Return what a prediction leans on besides the image, and the precision of the run.

    Args:
        strategy: It may state ``task_label_at_test`` and ``batch_independent_at_test``, both bool,
            and ``mixed_precision``.
        benchmark: Any Avalanche benchmark.
        components: What :func:`.record.describe_components` returns.

    Returns:
        ``task_label_at_test`` as stated; if not, whether the test images have different labels that
        the strategy could have used. ``batch_independence`` as stated, ``"stated"`` or
        ``"dependent"``; if not, ``"tested"`` where all that predicts (backbone, module, strategy
        and its plugins) comes with this package, whose tests check that an image is predicted
        alike alone and among others, and ``"not stated"`` elsewhere. ``precision`` in words,
        ``None`` of a strategy that does not state it.

    Example:
        >>> from types import SimpleNamespace
        >>> mine = {"kind": "strategy", "provider": "mine"}
        >>> strategy = SimpleNamespace(batch_independent_at_test=False)
        >>> describe_prediction(strategy, SimpleNamespace(test_stream=[]), [mine])
        {'task_label_at_test': False, 'batch_independence': 'dependent', 'precision': None}
    """
    labelled = getattr(strategy, "task_label_at_test", None)
    if labelled is None:
        tests = benchmark.test_stream
        labelled = len({t for test in tests for t in getattr(test, "task_labels", ())}) > 1
    stated = getattr(strategy, "batch_independent_at_test", None)
    ours = all(
        component["provider"] == _OWN
        for component in components
        if component["kind"] not in ("benchmark", "metric", "logger")
    )
    words = {None: "tested" if ours else "not stated", True: "stated", False: "dependent"}
    return {
        "task_label_at_test": bool(labelled),
        "batch_independence": words[stated],
        "precision": WORDS.get(getattr(strategy, "mixed_precision", "")),
    }


def training_experiences(benchmark: Any) -> list[Any]:
    """Return the training experiences; of an online stream those that it was cut from."""
    return list(getattr(benchmark, "original_train_stream", benchmark.train_stream))


def per_domain(protocol: Mapping[str, Any], per_task: Any) -> dict[str, float | None] | None:
    """Return the last accuracy on each domain by name; ``None`` of a stream without their tests.

    Args:
        protocol: What :func:`describe_protocol` returns.
        per_task: Final row of the accuracy matrix, so far.

    Example:
        >>> experiences = [{"test_images": 5}, {"test_images": 5}]
        >>> protocol = {"scenario": "domain", "domains": ["photo", "sketch"]}
        >>> per_domain(protocol | {"experiences": experiences}, [0.9])
        {'photo': 0.9}
    """
    if protocol["scenario"] != "domain" or not protocol["domains"]:
        return None
    if not all(experience["test_images"] for experience in protocol["experiences"]):
        return None  # one test for all domains
    return dict(zip(protocol["domains"], per_task, strict=False))
