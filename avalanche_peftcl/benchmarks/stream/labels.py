"""The labels and domains of two sets of images, checked against each other."""

from collections.abc import Collection, Sequence

import numpy as np

from avalanche_peftcl.benchmarks.images.datasets import LabelledImages
from avalanche_peftcl.errors import ConfigError, DataError


def labels_of(dataset: LabelledImages, kind: str) -> np.ndarray:
    """Return the label of each image.

    Args:
        dataset: The images.
        kind: ``"training"`` or ``"test"``, for messages.

    Raises:
        DataError: If there are no images, or not as many labels.
    """
    labels = np.asarray(dataset.targets).astype(int)
    if len(labels) == 0:
        raise DataError(f"there are no {kind} images")
    if len(labels) != len(dataset):
        raise DataError(f"{len(dataset)} {kind} images have {len(labels)} labels in .targets")
    return labels


def count_classes(train: np.ndarray, test: np.ndarray, names: Sequence[str] | None) -> int:
    """Return the number of classes.

    Args:
        train: Label of each training image.
        test: Label of each test image.
        names: Name of each class, or ``None``.

    Raises:
        DataError: If labels are out of range or a class has no training images.
    """
    n_classes = int(train.max()) + 1 if names is None else len(names)
    labels = np.union1d(train, test)
    if labels[0] < 0 or labels[-1] >= n_classes:
        raise DataError(
            f"labels go from {labels[0]} to {labels[-1]}; number the {n_classes} classes of the "
            f"training images from 0 to {n_classes - 1}"
        )
    missing = sorted(set(range(n_classes)) - set(train.tolist()))
    if missing:
        told = missing if names is None else [names[c] for c in missing]
        raise DataError(f"classes without training images: {told[:10]} ({len(told)} in all)")
    return n_classes


def domains_of(
    train: LabelledImages,
    test: LabelledImages,
    train_domains: Sequence[int] | None,
    test_domains: Sequence[int] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the domain of each training and of each test image, 0 where test has no domains.

    Raises:
        ConfigError: If there are no domains.
        DataError: If they are not as many as images, or not numbered from 0 without gaps.
    """
    if train_domains is None:
        raise ConfigError(
            "scenario='domain' needs the domain of each image, which this data does not have; "
            "use scenario 'class', 'task' or 'online', or give train_domains and test_domains"
        )
    train_at = np.asarray(train_domains, int)
    test_at = np.zeros(len(test), int) if test_domains is None else np.asarray(test_domains, int)
    if len(train_at) != len(train) or len(test_at) != len(test):
        raise DataError("train_domains and test_domains must have one entry for each image")
    seen, tested = sorted(set(train_at.tolist())), sorted(set(test_at.tolist()))
    if seen != list(range(len(seen))) or not set(tested) <= set(seen):
        raise DataError(
            f"training images of the domains {seen} and test images of the domains {tested}; "
            "number them from 0 without gaps, the same in both"
        )
    return train_at, test_at


def by_arrival(labels: np.ndarray, domains: np.ndarray) -> list[int]:
    """Return the classes in the order in which the domains bring them, then by label."""
    first = {c: int(domains[labels == c].min()) for c in np.unique(labels).tolist()}
    return sorted(first, key=lambda c: (first[c], c))


def check_experience(
    experience: int,
    train: np.ndarray,
    test: np.ndarray,
    names: Sequence[str],
    *,
    earlier: Collection[int] | None = None,
) -> None:
    """Refuse an experience whose training and test images do not go together.

    Args:
        experience: Its number.
        train: Label of each of its training images.
        test: Label of each of its test images.
        names: Name of each class.
        earlier: Of a domain, the classes that earlier domains trained: it may be tested on those
            too, and a class that it trains may lack test images. ``None``: both have the same
            classes.

    Raises:
        DataError: If a class, or the whole test, is missing.
    """
    seen, tested = set(train.tolist()), set(test.tolist())
    lacking = {"test": seen - tested, "training": tested - seen}
    if earlier is not None:
        lacking = {"test": set() if tested else seen, "training": tested - seen - set(earlier)}
    for kind, classes in lacking.items():
        if classes:
            told = [names[c] for c in sorted(classes)]
            raise DataError(
                f"experience {experience}: classes without {kind} images: {told[:10]} "
                f"({len(told)} in all); add images or take the classes out"
            )


def check_tested(train: np.ndarray, test: np.ndarray, names: Sequence[str]) -> None:
    """Refuse a stream that trains a class which no domain tests.

    Raises:
        DataError: If a class has no test images.
    """
    told = [names[c] for c in sorted(set(train.tolist()) - set(test.tolist()))]
    if told:
        raise DataError(
            f"classes without test images in any domain: {told[:10]} ({len(told)} in all); "
            "add images or take the classes out"
        )
