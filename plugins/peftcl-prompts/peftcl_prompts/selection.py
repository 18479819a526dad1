"""Which prompts an image gets: those whose keys its frozen feature is most similar to."""

import torch
from torch import Tensor
from torch.nn import functional as F


def similarities(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the cosine of each query to each key, in float32.

    Args:
        queries: ``(B, D)``.
        keys: ``(M, D)``.

    Returns:
        ``(B, M)``.

    Example:
        >>> similarities(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        tensor([[1., 0.]])
    """
    with torch.autocast(queries.device.type, enabled=False):
        return F.normalize(queries.float(), dim=1) @ F.normalize(keys.float(), dim=1).T


def most_similar(scores: Tensor, count: int, *, batchwise: bool = False) -> Tensor:
    """Return the numbers of the keys of the highest scores.

    Args:
        scores: ``(B, M)``.
        count: ``K``, how many keys an image gets.
        batchwise: Give all images the ``K`` keys that most of them have among their own; of keys
            that as many have, the first. What an image gets then depends on the others.

    Returns:
        ``(B, K)``.

    Example:
        >>> scores = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.8, 0.3], [0.1, 0.7, 0.2]])
        >>> most_similar(scores, 1)[:, 0], most_similar(scores, 1, batchwise=True)[:, 0]
        (tensor([0, 1, 1]), tensor([1, 1, 1]))
    """
    chosen = scores.topk(count, dim=1).indices
    if not batchwise:
        return chosen
    votes = torch.bincount(chosen.flatten(), minlength=scores.shape[1])
    return votes.argsort(descending=True, stable=True)[:count].expand(len(scores), -1)
