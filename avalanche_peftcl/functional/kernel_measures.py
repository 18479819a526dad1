r"""What a tangent kernel says of tasks: sizes, overlap, alignment, drift, predicted changes.

:math:`\Phi` is a kernel between images of a task, in any form of :mod:`.functional.ntk`, and
:math:`\tilde Y = Y - f(X)` the residual, targets minus outputs. All algebra is in float64.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_peftcl.functional.precision import in_double


class KernelSize(NamedTuple):
    """How large a kernel is, and how well conditioned.

    Attributes:
        trace: Sum of the eigenvalues.
        smallest_eigenvalue: Below 0 by rounding alone.
        condition: Largest over smallest eigenvalue; ``inf`` where that is rounding.
    """

    trace: float
    smallest_eigenvalue: float
    condition: float


def kernel_size(kernel: Tensor) -> KernelSize:
    """Return trace, smallest eigenvalue and condition of a symmetric kernel.

    Args:
        kernel: ``(n, n)``.

    Example:
        >>> kernel_size(torch.diag(torch.tensor([4.0, 2.0])))
        KernelSize(trace=6.0, smallest_eigenvalue=2.0, condition=2.0)
    """
    values = torch.linalg.eigvalsh(_symmetric(kernel))  # rising
    smallest, largest = float(values[0]), float(values[-1])
    rounding = largest * len(values) * torch.finfo(values.dtype).eps
    condition = largest / smallest if smallest > rounding else math.inf
    return KernelSize(float(values.sum()), smallest, condition)


def kernel_map(kernel: Tensor, sizes: Sequence[int]) -> Tensor:
    r"""Return how much the kernels of tasks overlap, every pair of them.

    .. math:: \frac{\lVert \Phi(X_i, X_j) \rVert_F}
        {\sqrt{\lVert \Phi(X_i, X_i) \rVert_F \lVert \Phi(X_j, X_j) \rVert_F}}

    Args:
        kernel: Between the images of all tasks, ``(n, n)``.
        sizes: Rows of each task, in order.

    Returns:
        ``(T, T)``, float64, 1 on the diagonal; ``nan`` where a task's kernel is 0.

    Source:
        specs of NTK-CL, Liu et al., arXiv 2407.17120. Differs: a normalised norm, in ``[0, 1]``
        where both tasks have equal kernels.

    Example:
        >>> kernel_map(torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.5, 0.0, 2.0]]), [2, 1])
        tensor([[1.0000, 0.2973],
                [0.2973, 1.0000]], dtype=torch.float64)
    """
    parts = list(sizes)
    blocks = [torch.split(row, parts, 1) for row in torch.split(in_double(kernel), parts)]
    norms = torch.stack([torch.stack([block.norm() for block in row]) for row in blocks])
    own = norms.diagonal().sqrt()
    return norms / (own[:, None] * own[None])


def kernel_alignment(kernel: Tensor, targets: Tensor) -> float:
    r"""Return how well a kernel agrees with what is to be learnt, at most 1.

    .. math:: \frac{\langle \Phi, Y Y^\top \rangle}{\lVert \Phi \rVert_F \lVert Y Y^\top \rVert_F}

    Args:
        kernel: ``(n, n)``.
        targets: ``Y``, ``(n, C)``; of form ``"logit"`` one column of all.

    Source:
        Cristianini et al., NeurIPS 2001. Differs: nothing.

    Example:
        >>> kernel_alignment(torch.ones(2, 2), torch.tensor([[1.0], [1.0]]))
        1.0
    """
    wanted = in_double(targets)
    ideal, given = wanted @ wanted.T, in_double(kernel)
    return float((ideal * given).sum() / (ideal.norm() * given.norm()))


def kernel_drift(now: Tensor, then: Tensor) -> float:
    r"""Return how far a kernel moved.

    .. math:: \frac{\lVert \Phi - \Phi_0 \rVert_F}{\lVert \Phi_0 \rVert_F}

    It is 0 where training is lazy, which predictions by a kernel take for granted.

    Args:
        now: ``(n, m)``.
        then: The same at an earlier time.

    Example:
        >>> kernel_drift(torch.full((2, 2), 3.0), torch.full((2, 2), 2.0))
        0.5
    """
    first = in_double(then)
    return float((in_double(now).to(first) - first).norm() / first.norm())


def task_complexity(
    kernel: Tensor, residual: Tensor, ridge: float, *, n: int | None = None
) -> float:
    r"""Return the term of the bound that is a task's own.

    .. math:: \frac 1 n \sqrt{\operatorname{tr}\bigl(\tilde Y^\top (\Phi + \lambda I)^{-1}
        \tilde Y\bigr) \operatorname{tr} \Phi}

    The gap between test and training loss is at most twice this times the Lipschitz constant of
    the loss, plus a term of the confidence.

    Args:
        kernel: ``(n, n)``.
        residual: ``(n, C)``.
        ridge: :math:`\lambda`.
        n: Number of images; ``None`` is the number of rows.

    Source:
        Rademacher complexity of a ball of a kernel's space, Bartlett and Mendelson, JMLR 2002; in
        NTK-CL, Liu et al., arXiv 2407.17120. Differs: what is known of that paper is its abstract.

    Example:
        >>> task_complexity(torch.eye(2), torch.tensor([[1.0], [1.0]]), 0.0)
        1.0
    """
    error = in_double(residual)
    squared = (error * ridge_coefficients(kernel, error, ridge)).sum()
    return float((squared * in_double(kernel).trace()).clamp_min(0).sqrt()) / (n or len(error))


def ridge_coefficients(kernel: Tensor, residual: Tensor, ridge: float) -> Tensor:
    r"""Return :math:`\alpha = (\Phi + \lambda I)^{-1} \tilde Y`, ``(n, C)``, in float64.

    Args:
        kernel: ``(n, n)``.
        residual: ``(n, C)``.
        ridge: :math:`\lambda`; with 0 a kernel that is singular gives the shortest solution.
    """
    values, vectors = torch.linalg.eigh(_symmetric(kernel))
    rounding = values[-1] * len(values) * torch.finfo(values.dtype).eps
    shifted = values + ridge
    inverse = torch.where(shifted > rounding, 1 / shifted, 0.0)
    projected = vectors.T @ in_double(residual).to(vectors)
    alpha: Tensor = vectors @ (inverse[:, None] * projected)
    return alpha


def predicted_change(cross: Tensor, kernel: Tensor, residual: Tensor, ridge: float) -> Tensor:
    r"""Return how training on new images will change the outputs of old ones, before a step.

    .. math:: \Phi(X_{old}, X_{new})\,(\Phi(X_{new}, X_{new}) + \lambda I)^{-1}\,\tilde Y_{new}

    It is the minimum of the squared loss plus :math:`\lambda` times the squared way of the
    parameters, of the function linearised at the present ones. It is exact for a linear map of
    features that do not train; elsewhere it holds as long as the kernel does, see
    :func:`kernel_drift`.

    Args:
        cross: ``(m, n)``.
        kernel: ``(n, n)``.
        residual: ``(n, C)``.
        ridge: :math:`\lambda`.

    Returns:
        ``(m, C)``, float64.

    Source:
        Bennani et al., arXiv 2006.11942; Doan et al., AISTATS 2021; arXiv 2606.18024. Differs:
        nothing.

    Example:
        >>> predicted_change(torch.tensor([[0.5]]), torch.tensor([[1.0]]), torch.ones(1, 1), 1.0)
        tensor([[0.2500]], dtype=torch.float64)
    """
    alpha = ridge_coefficients(kernel, residual, ridge)
    change: Tensor = in_double(cross).to(alpha) @ alpha
    return change


def predicted_refit(gram: Tensor, penalty: float | Tensor, added: Tensor, error: Tensor) -> Tensor:
    r"""Return how the weights of a ridge regression will change when images are added to it.

    .. math:: \Delta W = (G + H^\top H + \lambda I)^{-1}\,H^\top \tilde Y

    This is :func:`predicted_change` with ridge 1 and the kernel
    :math:`h^\top (G + \lambda I)^{-1} h'`: that of a linear head that may move less along what it
    has seen before. It is exact where :math:`\lambda` stays.

    Args:
        gram: ``G`` of the images before, ``(D, D)``.
        penalty: :math:`\lambda`.
        added: :math:`H^\top H` of the new images, ``(D, D)``.
        error: :math:`H^\top \tilde Y` of them, ``(D, R)``.

    Returns:
        ``(D, R)``, float64.

    Example:
        >>> one = torch.ones(1, 1)
        >>> predicted_refit(one, 2.0, one, one)
        tensor([[0.2500]], dtype=torch.float64)
    """
    whole = _symmetric(gram) + _symmetric(added)
    whole.diagonal().add_(penalty)
    solved: Tensor = torch.linalg.solve(whole, in_double(error).to(whole))
    return solved


def _symmetric(kernel: Tensor) -> Tensor:
    whole = in_double(kernel)
    return (whole + whole.T) / 2
