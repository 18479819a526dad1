"""Orders of classes by how they look to a frozen network: as hard or as easy as can be."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import pdist, squareform
from torch import Tensor, nn

from avalanche_peftcl.benchmarks.images.datasets import LabelledImages
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.wording import join

Difficulty = Literal["hardest", "easiest"]
DIFFICULTIES: tuple[Difficulty, ...] = get_args(Difficulty)
_MOST = 50  # images of a class, in one minibatch


def order_by_likeness(
    means: np.ndarray, sizes: Sequence[int], *, difficulty: Difficulty
) -> list[int]:
    """Return an order of classes whose experiences hold classes that look alike, or unlike.

    The distance of two classes is one minus the cosine of their means.

    ``"hardest"``: classes that look alike stand in the same experience. Each experience shows a
    narrow part of all there is to see, and experiences differ from each other as much as they can:
    what is learned in one is of the least use, and does the most harm, in the next. An experience
    after the other, it begins with a cluster of the complete-linkage tree of the classes that are
    left: the largest one that fits, of equally large ones the tightest. Then one class after the
    other comes to it, each time that whose farthest member of the experience is nearest.

    ``"easiest"``: classes that look alike stand in different experiences. Each experience is a
    picture of the whole in small, as near to a stream without shifts as these classes allow. Class
    by class, in the order of the leaves of the complete-linkage tree of all, they go to the
    experience with room whose nearest member is farthest.

    Ties go to the smaller label or the earlier experience. How much an order matters depends on the
    method: statistics that are summed over frozen features end the same in every one. On digits in
    five pairs (20 training images a class) ``naive`` with ``loss="local"`` ends at 0.45 in the
    hardest order and at 0.61 in the easiest, NTK-CL with its class means at 0.87 in both.

    Args:
        means: A row a class, ``(C, D)``; none zero.
        sizes: Classes of each experience; they add up to ``C``.
        difficulty: Which end.

    Returns:
        A permutation of ``0 .. C - 1``, experience by experience, labels rising within each.

    Raises:
        ConfigError: If there is no such difficulty, the sizes do not add up, or a mean is zero or
            no finite number.

    Source:
        This package. That orders matter: Masana et al., On Class Orderings for Incremental
        Learning, arXiv 2007.02145, with orders from confusion matrices.

    Example:
        Two kinds, of two classes each:

        >>> means = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
        >>> order_by_likeness(means, [2, 2], difficulty="hardest")
        [0, 2, 1, 3]
        >>> order_by_likeness(means, [2, 2], difficulty="easiest")
        [0, 1, 2, 3]
    """
    if difficulty not in DIFFICULTIES:
        raise ConfigError(
            f"difficulty={difficulty!r} is not one of {join(map(repr, DIFFICULTIES))}"
        )
    rows = np.asarray(means, np.float64)
    if rows.ndim != 2 or not len(rows) or min(sizes, default=0) < 1 or sum(sizes) != len(rows):
        raise ConfigError(
            f"sizes={list(sizes)} are not numbers of classes that add up to the rows of means, "
            f"which are of shape {rows.shape}"
        )
    lengths = np.linalg.norm(rows, axis=1)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0))).tolist()
        raise ConfigError(f"the means of the classes {bad[:10]} are zero or no finite numbers")
    distances = squareform(pdist(rows / lengths[:, None], "sqeuclidean")) / 2
    groups = (_together if difficulty == "hardest" else _apart)(distances, sizes)
    return [c for group in groups for c in sorted(group)]


def _together(distances: np.ndarray, sizes: Sequence[int]) -> list[list[int]]:
    left, groups = list(range(len(distances))), []
    for size in sizes:
        group = _cluster(distances, left, size)
        while len(group) < size:
            others = [c for c in left if c not in group]
            farthest = distances[np.ix_(others, group)].max(axis=1)
            group.append(others[int(farthest.argmin())])
        left = [c for c in left if c not in group]
        groups.append(group)
    return groups


def _cluster(distances: np.ndarray, classes: list[int], size: int) -> list[int]:
    """Return the largest cluster of at most ``size`` classes; of several the tightest."""
    members = [[c] for c in classes]
    best = members[0]
    if len(classes) > 1:
        for a, b, _, count in linkage(squareform(distances[np.ix_(classes, classes)]), "complete"):
            members.append(members[int(a)] + members[int(b)])
            if len(best) < count <= size:  # merges come in the order of their heights
                best = members[-1]
    return list(best)


def _apart(distances: np.ndarray, sizes: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = [[] for _ in sizes]
    leaves = [0]
    if len(distances) > 1:
        leaves = leaves_list(linkage(squareform(distances), "complete")).tolist()
    for c in leaves:
        room = [g for g, size in enumerate(sizes) if len(groups[g]) < size]
        nearest = [distances[c, groups[g]].min(initial=np.inf) for g in room]
        groups[room[int(np.argmax(nearest))]].append(c)
    return groups


def class_means(
    backbone: nn.Module,
    images: LabelledImages,
    labels: np.ndarray,
    *,
    transform: Callable[[Any], Tensor],
) -> np.ndarray:
    """Return the mean of the features of each class.

    Of a class at most 50 images are read, a choice that depends on nothing but how many there are,
    so that one data set has one order, whatever the seed and however few images are trained on. No
    global generator is touched.

    Args:
        backbone: The frozen network; it computes where it is, in eval mode.
        images: Training images.
        labels: Label of each, ``(n,)``, from 0; every label has an image.
        transform: From an image to ``(3, H, W)``.

    Returns:
        ``(C, D)``, float64.
    """
    parameter = next(backbone.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    modes = {module: module.training for module in backbone.modules()}
    means = []
    backbone.eval()
    try:
        with torch.no_grad():
            for label in range(int(labels.max()) + 1):
                own = np.flatnonzero(labels == label)
                chosen = np.sort(np.random.default_rng(0).permutation(own)[:_MOST]).tolist()
                read = torch.stack([transform(images[i][0]) for i in chosen])
                means.append(backbone(read.to(device)).double().mean(dim=0).cpu())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.stack(means).numpy()
