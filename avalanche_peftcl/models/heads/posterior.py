"""Scores of Gaussians as log probabilities, within what the host's mask allows."""

import torch
from torch import Tensor

from avalanche_peftcl.models.heads.rows import MASK_VALUE

_LOWEST = 900.0  # above the mask: a class that may be predicted never scores below one that may not


def log_posterior(scores: Tensor, known: Tensor) -> Tensor:
    r"""Return log probabilities of classes, the small ones bent so that all are above -900.

    .. math:: f(s) = \frac{s}{1 - s / 900}, \qquad s = \log p_r \le 0

    The order of the classes stays; likely ones hardly change. Scores of many dimensions lie
    thousands apart, below the -1000 that stands for a class of another task.

    Args:
        scores: Log likelihoods, ``(B, R)``.
        known: Which rows have an image, ``(R,)``; others get -1000.

    Example:
        >>> log_posterior(torch.tensor([[0.0, -9e4, 5.0]]), torch.tensor([True, True, False]))
        tensor([[    0.0000,  -891.0891, -1000.0000]])
    """
    s = torch.log_softmax(scores.masked_fill(~known, -torch.inf), dim=1)
    s = s / (1 - s / _LOWEST)
    return s.masked_fill(~known, MASK_VALUE)
