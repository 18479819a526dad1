"""Whether tensors hold numbers only: asked on the device, answered when somebody reads it."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from avalanche_peftcl.errors import NotFiniteError


def all_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Return whether no value is not-a-number or infinite; nothing waits for the device.

    Args:
        tensors: Of any shapes and dtypes, on one device or several.

    Returns:
        A boolean, ``()``, on the device of the first tensor; true if there is none.

    Example:
        >>> all_finite([torch.ones(2), torch.tensor([1.0, float("nan")])])
        tensor(False)
    """
    parts = [_exact(t).isfinite().all() for t in map(torch.Tensor.detach, tensors)]
    return (
        torch.stack([p.to(parts[0].device) for p in parts]).all() if parts else torch.tensor(True)
    )


def not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of tensors with a value that is not a finite number; read once.

    Example:
        >>> not_finite([("a", torch.ones(2)), ("b", torch.tensor(float("inf")))])
        ['b']
    """
    pairs = list(named)
    if bool(all_finite(value for _, value in pairs)):
        return []
    return [name for name, value in pairs if not bool(all_finite([value]))]


def undecided(logits: Tensor) -> Tensor:
    """Return of how many rows the largest logit is no finite number, so that none is the largest.

    ``argmax`` calls not-a-number the largest and gives its column. Single entries may be ``-inf``,
    as some methods mask classes.

    Args:
        logits: ``(B, C)``.

    Returns:
        ``()``, int64, on the device of ``logits``.

    Example:
        >>> nan, inf = float("nan"), float("inf")
        >>> undecided(torch.tensor([[0.0, -inf], [nan, 1.0], [inf, 1.0], [-inf, -inf]]))
        tensor(3)
    """
    return (~_exact(logits.detach()).amax(dim=1).isfinite()).sum()


def check_finite(tensors: Sequence[Tensor], what: str) -> None:
    """Refuse statistics with values that are not finite; reads the device once.

    Args:
        tensors: The statistics.
        what: What they are, of what.

    Raises:
        NotFiniteError: If there is such a value.

    Example:
        >>> check_finite([torch.tensor([0.0])], "class means of experience 1")
    """
    if not bool(all_finite(tensors)):
        raise NotFiniteError(
            f"{what} are not finite numbers, for the features are none: the network has diverged "
            "or overflows, or an image holds such values; lower lr, compute without mixed "
            "precision, or look at the images"
        )


def check_decided(bad: Tensor, total: int, where: str) -> None:
    """Refuse predictions made from logits of which none is the largest; reads the device once.

    Args:
        bad: What :func:`undecided` returned, summed over minibatches.
        total: How many images that were.
        where: Which images.

    Raises:
        NotFiniteError: If there is one.
    """
    if count := int(bad):
        raise NotFiniteError(
            f"the network's outputs for {count} of {total} images of {where} are not finite "
            "numbers, so there is no prediction and no accuracy: training has diverged, or the "
            "weights or images hold such values; lower lr, compute without mixed precision, or "
            "look at weights and images"
        )


def _exact(value: Tensor) -> Tensor:
    """Return ``value`` in a dtype that every device can compare."""
    narrow = value.is_floating_point() and value.element_size() == 1  # float8
    return value.float() if narrow else value
