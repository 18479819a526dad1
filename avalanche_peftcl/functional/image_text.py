"""How well images and texts find each other in the space that they share."""

import torch
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.functional.precision import in_double


def retrieval_recall(similarity: Tensor, matches: Tensor, *, k: int) -> float:
    r"""Return the share of queries of which a match is among the ``k`` most similar candidates.

    .. math:: R@k = \frac 1 Q \sum_q \Bigl[\bigl|\{c : s_{qc} > \max_{m \in M_q} s_{qm}\}\bigr|
        + \bigl|\{c \notin M_q : s_{qc} = \max_{m \in M_q} s_{qm}\}\bigr| < k\Bigr]

    Candidates that are as similar as the best match count before it, so that a model for which all
    are alike finds nothing.

    Args:
        similarity: ``s``, ``(Q, C)``.
        matches: Which candidates match a query, ``(Q, C)``, bool; one at least each.
        k: From 1 to ``C``.

    Returns:
        In ``[0, 1]``.

    Raises:
        ValueError: If the shapes differ, ``k`` is out of range, a query has no match, or there is
            none.

    Source:
        Recall at k as reported with CLIP (Radford et al., ICML 2021). Differs: ties count against.

    Example:
        >>> s = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.1, 0.4]])
        >>> own = torch.tensor([[True, False, False], [True, False, False]])
        >>> retrieval_recall(s, own, k=1), retrieval_recall(s, own, k=2)
        (0.5, 1.0)
    """
    if similarity.shape != matches.shape or similarity.ndim != 2 or not len(similarity):
        raise ValueError(
            f"similarities {tuple(similarity.shape)} and matches {tuple(matches.shape)} must be "
            "of the same queries and candidates, one query at least"
        )
    if not 1 <= k <= similarity.shape[1]:
        raise ValueError(f"k={k} must be from 1 to the {similarity.shape[1]} candidates")
    if not matches.any(dim=1).all():
        raise ValueError("every query needs a match among the candidates")
    best = similarity.masked_fill(~matches, -torch.inf).amax(dim=1, keepdim=True)
    before = ((similarity >= best) & ~matches).sum(dim=1)
    return float((before < k).double().mean())


def modality_gap(images: Tensor, texts: Tensor) -> float:
    r"""Return the distance between the mean image and the mean text, each on unit norm.

    Args:
        images: ``(N, E)``.
        texts: ``(M, E)``.

    Returns:
        In ``[0, 2]``.

    Source:
        Liang et al., "Mind the Gap", NeurIPS 2022, section 2.

    Example:
        >>> modality_gap(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 5.0]]))
        1.4142135623730951
    """
    means = (F.normalize(in_double(part), dim=1).mean(dim=0) for part in (images, texts))
    first, second = means
    return float((first - second).norm())


def wrong_match_rate(scores: Tensor, later: Tensor) -> float:
    r"""Return the share of images whose best text belongs to a later experience than their own.

    The images are those of an experience that is over, the texts those of all classes seen; it is
    how often what was learnt afterwards speaks where it must not. An image whose best text is of
    its own experience or of an earlier one is no wrong match, right or not.

    Args:
        scores: Of each text, ``(N, R)``.
        later: Which texts belong to a later experience, ``(R,)`` or ``(N, R)``, bool.

    Returns:
        In ``[0, 1]``; 0 without images.

    Source:
        This package's reading of the hallucination across modalities that PEGP (arXiv 2405.13383)
        speaks of; its own protocol could not be found.

    Example:
        >>> scores = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
        >>> wrong_match_rate(scores, torch.tensor([False, True]))
        0.5
    """
    if not len(scores):
        return 0.0
    best = scores.argmax(dim=1, keepdim=True)
    return float(later.expand(scores.shape).gather(1, best).double().mean())


def matching_auc(matched: Tensor, swapped: Tensor) -> float:
    r"""Return the chance that a true pair scores higher than a swapped one, ties by half.

    The area under the curve of true against false positives, by Mann and Whitney's statistic.

    Args:
        matched: Scores of images with their own captions, ``(N,)``.
        swapped: Of images with captions of others, ``(M,)``.

    Returns:
        In ``[0, 1]``; 0.5 where they cannot be told apart.

    Raises:
        ValueError: If there are no scores of one kind.

    Example:
        >>> matching_auc(torch.tensor([0.9, 0.4]), torch.tensor([0.1, 0.4]))
        0.875
    """
    if not len(matched) or not len(swapped):
        raise ValueError("matched and swapped need a score each at least")
    both = torch.cat([in_double(matched), in_double(swapped)])
    _, places, counts = torch.unique(both, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()  # ranks from 1; equal scores share the mean of theirs
    ranks = (last - (counts.double() - 1) / 2)[places[: len(matched)]]
    n, m = len(matched), len(swapped)
    return float((ranks.sum() - n * (n + 1) / 2) / (n * m))
