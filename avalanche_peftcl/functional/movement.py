"""How far features moved."""

import torch
from torch import Tensor

from avalanche_peftcl.functional.precision import in_double


def relative_movement(before: Tensor, after: Tensor) -> float:
    r"""Return the length of the change of features relative to what they were.

    .. math:: \lVert F' - F \rVert_F \,/\, \lVert F \rVert_F

    Args:
        before: ``F``, rows ``(N, D)``; there may be none.
        after: ``F'``, the same rows later.

    Returns:
        At least 0; 1 where all features were zero and moved.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> relative_movement(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 3.0]]))
        0.2
    """
    if before.shape != after.shape:
        raise ValueError(
            f"features must be of one shape, not {tuple(before.shape)} and {tuple(after.shape)}"
        )
    old = in_double(before)
    moved = float(torch.linalg.vector_norm(in_double(after) - old))
    size = float(torch.linalg.vector_norm(old))
    return moved / size if size else float(moved > 0)
