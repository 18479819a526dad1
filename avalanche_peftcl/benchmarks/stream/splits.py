"""Which class or domain comes when, and which images are held out: integers only."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from avalanche_peftcl.errors import ConfigError, DataError

ClassOrder = list[int] | Literal["natural", "hardest", "easiest"]


def order_classes(
    n_classes: int, *, seed: int, class_order: Sequence[int] | Literal["natural"] | None
) -> list[int]:
    """Return the classes in order of arrival.

    Args:
        n_classes: Number ``C`` of classes.
        seed: Seed of the permutation; no global generator is touched.
        class_order: The order itself; ``"natural"`` for that of the labels; ``None`` to draw it.

    Returns:
        A permutation of ``0 .. C - 1``. A drawn one is what ``numpy.random.seed(seed)`` followed
        by ``numpy.random.permutation(C)`` gives, as in the papers' code.

    Raises:
        ConfigError: If ``class_order`` is not a permutation of ``0 .. C - 1``.

    Example:
        >>> order_classes(5, seed=0, class_order=None)
        [2, 0, 1, 3, 4]
    """
    if class_order is None:
        return [int(c) for c in np.random.RandomState(seed).permutation(n_classes)]
    if class_order == "natural":
        return list(range(n_classes))
    if sorted(class_order) != list(range(n_classes)):
        missing = sorted(set(range(n_classes)) - set(class_order))
        raise ConfigError(
            f"class_order has {len(class_order)} entries ({len(set(class_order))} distinct) and "
            f"lacks {missing}; give each of the classes 0 to {n_classes - 1} once"
        )
    return list(class_order)


def experience_sizes(
    n_classes: int,
    *,
    n_experiences: int | None,
    classes_per_experience: Sequence[int] | None,
) -> list[int]:
    """Return the number of classes in each experience.

    Args:
        n_classes: Number ``C`` of classes.
        n_experiences: Number of experiences of equal size.
        classes_per_experience: The sizes themselves, instead.

    Returns:
        Positive sizes that add up to ``C``.

    Raises:
        ConfigError: If both or neither are given, or a number is not positive.
        DataError: If the classes do not divide, or the sizes do not add up.

    Example:
        >>> experience_sizes(10, n_experiences=5, classes_per_experience=None)
        [2, 2, 2, 2, 2]
    """
    if (n_experiences is None) == (classes_per_experience is None):
        given = "both" if n_experiences is not None else "neither"
        raise ConfigError(
            f"{given} of n_experiences and classes_per_experience given; give one of them"
        )
    if classes_per_experience is not None:
        sizes = list(classes_per_experience)
        if not sizes or min(sizes) < 1:
            raise ConfigError(f"classes_per_experience={sizes} is not a list of positive numbers")
        if sum(sizes) != n_classes:
            raise DataError(
                f"classes_per_experience={sizes} adds up to {sum(sizes)}, "
                f"but there are {n_classes} classes"
            )
        return sizes
    if n_experiences is None or n_experiences < 1:
        raise ConfigError(f"n_experiences={n_experiences} is not a positive number")
    quotient, remainder = divmod(n_classes, n_experiences)
    if remainder:
        divisors = [n for n in range(1, n_classes + 1) if n_classes % n == 0]
        way_out = ""
        if quotient:  # otherwise there may be billions of experiences
            uneven = [quotient + (i < remainder) for i in range(n_experiences)]
            way_out = f" or the sizes yourself, for example classes_per_experience={uneven}"
        raise DataError(
            f"{n_classes} classes do not divide into {n_experiences} experiences; "
            f"give n_experiences one of {divisors}{way_out}"
        )
    return [quotient] * n_experiences


def hold_out(
    groups: np.ndarray,
    names: Sequence[str],
    *,
    seed: int,
    train_per_class: int | None,
    validation_per_class: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the images to train on and those to hold out, group by group.

    The held-out images of a group depend on the seed and the group only, not on
    ``train_per_class``.

    Args:
        groups: Group (class, or class within a domain) of each image, ``(n,)`` of integers.
        names: Name of each group, for messages.
        seed: Seed of the choice; no global generator is touched.
        train_per_class: At most that many images of a group remain for training; ``None``, all.
        validation_per_class: That many images of a group are held out.

    Returns:
        Two masks ``(n,)``: train on these, validate on those.

    Raises:
        ConfigError: If ``train_per_class`` is not positive or ``validation_per_class`` negative.
        DataError: If holding out leaves a group without an image.

    Example:
        >>> train, held = hold_out(
        ...     np.array([0, 0, 0, 1, 1]),
        ...     ["cat", "dog"],
        ...     seed=0,
        ...     train_per_class=1,
        ...     validation_per_class=1,
        ... )
        >>> int(train.sum()), int(held.sum())
        (2, 2)
    """
    if train_per_class is not None and train_per_class < 1:
        raise ConfigError(f"train_per_class={train_per_class} is not a positive number or None")
    if validation_per_class < 0:
        raise ConfigError(f"validation_per_class={validation_per_class} is negative")
    train, held = np.zeros(len(groups), bool), np.zeros(len(groups), bool)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        if len(members) <= validation_per_class:
            raise DataError(
                f"validation_per_class={validation_per_class} leaves nothing to train on: "
                f"{names[group]} has {len(members)} training images in all"
            )
        shuffled = np.random.default_rng((seed, int(group))).permutation(members)
        rest = shuffled[validation_per_class:]
        held[shuffled[:validation_per_class]] = True
        train[rest[:train_per_class]] = True
    return train, held
