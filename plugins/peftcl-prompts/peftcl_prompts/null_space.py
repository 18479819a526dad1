"""Where a step may go: the directions that second moments hold least of."""

import math

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from avalanche_peftcl.functional import in_double

_MANY = 128  # singular values from which on they are smoothed
_SIGMA = 10.0
_OUTER = 0.03  # share of them at either end at which no bend is looked for


def first_small(values: np.ndarray) -> int:
    """Return the number of the first singular value that counts as small.

    It is the one behind the sharpest bend, the largest second difference, of the falling curve;
    of 128 values or more the curve is smoothed by a Gaussian of 10 values.

    Args:
        values: In falling order, ``(D,)``, at least one.

    Returns:
        From 0; at least one value counts as small.

    Source:
        VPT-NSP, released code 0d9c547. Differs: nothing that is known here; which of both ends the
        outer 3 % are was read as either.

    Example:
        >>> first_small(np.array([9.0, 8.0, 7.0, 0.2, 0.1, 0.0]))
        4
    """
    size = len(values)
    if size < 3:
        return size - 1
    curve = gaussian_filter1d(values, _SIGMA) if size >= _MANY else values
    bend = np.diff(curve, 2)  # that of values 1 to D - 2
    outer = int(_OUTER * size)
    first, last = max(0, outer - 1), min(len(bend), size - outer - 1)
    return 2 + first + int(bend[first:last].argmax())


def null_space_projector(gram: Tensor, *, strength: float) -> Tensor:
    r"""Return :math:`\eta\, U_0 U_0^\top / \lVert U_0 U_0^\top \rVert_F + (1 - \eta)\, I`.

    Args:
        gram: Second moments ``(D, D)``; :math:`U_0` are its singular vectors from
            :func:`first_small` on.
        strength: :math:`\eta` in [0, 1].

    Returns:
        ``(D, D)`` in float32, on the device of ``gram``.

    Source:
        Lu et al., NeurIPS 2024, arXiv 2406.05658; released code 0d9c547. Differs: in float64.

    Example:
        >>> gram = torch.diag(torch.tensor([9.0, 8.0, 0.2, 0.1]))
        >>> null_space_projector(gram, strength=1.0).diagonal()
        tensor([0., 0., 0., 1.])
    """
    vectors, values, _ = torch.linalg.svd(in_double(gram))
    small = vectors[:, first_small(values.cpu().numpy()) :]
    eye = torch.eye(len(gram), dtype=vectors.dtype, device=vectors.device)
    inside = small @ small.T / math.sqrt(small.shape[1])
    projector: Tensor = (strength * inside + (1 - strength) * eye).float()
    return projector.to(gram.device)
