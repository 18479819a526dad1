"""The projection that the released code of PEGP applies on CLIP, to compare with.

There a Gram matrix ``A`` is taken for the features themselves, so that energies are the squares of
its singular values, the fourth power of those of the features:

    adapter behind the network   A = sum z z^T, in the space of features
    prompts                      A = S S^T, S the scores of images plus those of prompts
"""

import torch
from torch import Tensor

_COMPONENTS = 5
_ROUNDING = 1e-10  # of a singular value, as a share of the largest


def released_basis(basis: Tensor | None, matrix: Tensor, *, threshold: float) -> Tensor:
    r"""Return the basis of the released code after one more task.

    With :math:`\sigma_i` the singular values of ``A`` the first task keeps as many left singular
    vectors as there are :math:`i \ge 1` whose first :math:`i` hold less than :math:`\epsilon` of
    :math:`\sum \sigma^2`. A later one takes those of :math:`A - V V^\top A`, in order, while less
    than :math:`\epsilon` of the energy of ``A`` is held.

    Args:
        basis: ``V`` so far, ``(D, K)``; ``None`` is the first task.
        matrix: ``A``, ``(D, D)``, in float64.
        threshold: :math:`\epsilon` in ``[0, 1]``; released: 0.99 for adapters, 0.9 for prompts.

    Returns:
        ``(D, K')`` with ``K'`` from ``K`` to ``D``, in float64, orthonormal.

    Raises:
        ValueError: If ``A`` is not square, or the threshold out of its range.

    Source:
        Saha et al., "Gradient Projection Memory for Continual Learning", ICLR 2021, as in the
        released code of Qiao et al., arXiv 2405.13383: JingyangQiao/PEGP 842bc7e
        (``clip_pegp_linear``) and 4662b80 (``clip_pegp_prompt``). Differs: directions that are
        rounding are not taken, and what was taken is made orthonormal again.

    Example:
        >>> a = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0])).double()
        >>> first = released_basis(None, a, threshold=0.98)
        >>> first.shape, released_basis(first, a, threshold=0.98).shape
        (torch.Size([4, 2]), torch.Size([4, 3]))
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a matrix must be (D, D), not {tuple(matrix.shape)}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must lie in [0, 1], not be {threshold}")
    held = matrix.new_zeros(len(matrix), 0) if basis is None else basis.to(matrix)
    total = matrix.square().sum()
    if not total:
        return held
    left = matrix - held @ (held.T @ matrix)
    vectors, values, _ = torch.linalg.svd(left)
    share = (values.square() / total).cumsum(0)
    if basis is None:
        wanted = share < threshold
    else:  # what is held before each further direction
        before = torch.cat([share.new_zeros(1), share[:-1]])
        wanted = 1 - left.square().sum() / total + before < threshold
    real = values > _ROUNDING * matrix.norm()
    count = min(int((wanted & real).sum()), len(matrix) - held.shape[1])
    longer: Tensor = torch.linalg.qr(torch.cat([held, vectors[:, :count]], dim=1)).Q
    return longer


def released_prompt_matrix(
    tokens: Tensor, prompts: Tensor, *, components: int = _COMPONENTS
) -> Tensor:
    r"""Return the matrix that the released code makes of images and prompts.

    The principal component scores of the images, each with all its tokens side by side, stand in
    rows by image; those of the transposed prompts in rows by dimension. Both are added row by row,
    :math:`S = S_{\text{images}} + S_{\text{prompts}}`, and the matrix is :math:`S S^\top`: an image
    number and a dimension are taken for the same. So it depends on the order of the images.

    Args:
        tokens: Of the images, in order, ``(B, N, D)``; the first ``D`` images count.
        prompts: ``(P, D)``.
        components: How many scores of each; the release takes 5.

    Returns:
        ``(D, D)`` in float64.

    Raises:
        ValueError: If the axes are not these.

    Source:
        Released code JingyangQiao/PEGP 4662b80 (``clip_pegp_prompt``), with 768 images of 768
        dimensions. Differs: with fewer images than dimensions the rows that are missing are 0;
        the largest score of a component is positive, where scikit-learn's sign has changed between
        versions; exact, where it may choose a randomised solver.

    Example:
        >>> released_prompt_matrix(torch.randn(6, 3, 4), torch.randn(2, 4)).shape
        torch.Size([4, 4])
    """
    if tokens.ndim != 3 or prompts.ndim != 2 or tokens.shape[-1] != prompts.shape[-1]:
        raise ValueError(
            "tokens must be (B, N, D) and prompts (P, D), not "
            f"{tuple(tokens.shape)} and {tuple(prompts.shape)}"
        )
    dim = prompts.shape[1]
    inner = tokens.new_zeros(min(len(tokens), dim), min(len(tokens), dim), dtype=torch.float64)
    for token in tokens[:dim].detach().unbind(1):  # column means are apart, so tokens can be, too
        inner += _centred(token) @ _centred(token).mT
    of_prompts = _centred(prompts.detach().T)
    summed = inner.new_zeros(dim, components)
    for scores in (_scores(inner), _scores(of_prompts @ of_prompts.mT)):
        kept = scores[:, :components]
        summed[: len(kept), : kept.shape[1]] += kept
    return summed @ summed.mT


def _centred(rows: Tensor) -> Tensor:
    """Return rows in float64 less their mean."""
    rows = rows.double()
    return rows - rows.mean(dim=0)


def _scores(inner: Tensor) -> Tensor:
    """Return principal component scores, the first first, of rows with these inner products."""
    values, vectors = torch.linalg.eigh(inner)  # rising
    scores = (vectors * values.clamp_min(0).sqrt()).flip(1)
    largest = scores.gather(0, scores.abs().argmax(dim=0, keepdim=True))
    return torch.where(largest < 0, -scores, scores)
