"""Ridge regression beside logits of class names: texts where images are few, images where many."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from avalanche_peftcl.functional.precision import in_double
from avalanche_peftcl.functional.ridge import prior_weight, spectrum
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.head import Head
from avalanche_peftcl.models.heads.regression import Penalty, PenaltyFactor, choose_penalty
from avalanche_peftcl.models.heads.ridge import RidgeHead
from avalanche_peftcl.models.heads.zero_shot import (
    ClassTexts,
    ZeroShotHead,
    check_reads_embedding,
)
from avalanche_peftcl.registry.ranges import FeatureWidth

_LEAST = 1e-3  # beta, times the length of a feature
_STRAIGHT, _CURVED = 500.0, 400.0  # logits that stay, and how far others may go beyond


@exportable
class ZeroShotRidgeHead(ZeroShotHead, RidgeHead):
    r"""Logits from the texts of class names, each corrected by what images of the stream say.

    .. math:: \frac{\tau}{\lVert z \rVert}\, z^\top
        \Bigl( \bar w + \frac{b\,(w_r - \bar w) + v_r}{\beta} \Bigr)

    with :math:`w_r` the embedding of a class's name, :math:`\bar w` their mean over the classes
    with images, and :math:`\tau` the factor of the backbone. :math:`V` is the ridge regression of
    what the texts leave of the one-hot targets, both less their mean over these classes,
    :math:`\bar Y - b\,Z \bar W^\top`, by the penalty that :class:`RidgeHead` would have. The weight
    :math:`b` of the texts is the one that leaves this regression the least error, and
    :math:`\beta` the least-squares weight of the texts alone, which no ``b`` is above
    (:func:`.prior_weight`). So few images correct the texts and many replace them.

    A class without an image has its zero-shot logit :math:`\tau \cos(z, w_r)`, to the bit, on the
    same scale. All follows from the sums of :class:`RidgeHead`: it is the same for every order of
    the stream, images can be taken out again, and it moves with features. Where texts say next to
    nothing :math:`\beta` is small and logits are large: beyond 500 they are bent, in order, so that
    none is below the mask.

    Args:
        in_features: ``E``, width of the space of images and texts.
        penalty: How :math:`\lambda` is chosen, as of :class:`RidgeHead`. ``"gcv"``, since the scale
            of its scores is not free beside texts.
        penalty_factor: Multiplies what was chosen by a criterion.

    Attributes:
        weight: What is added to the texts, ``(R, E)``.
        share: :math:`b / \beta`, how much of the texts is left; 1 without images.

    Source:
        This package, after the ridge regression beside zero-shot logits of RAIL, Xu et al., arXiv
        2406.18868. Differs: on the embedding itself instead of random or kernel features; the
        weights follow from the sums instead of being set; no image is handed to one of the two.

    Example:
        >>> head = ZeroShotRidgeHead(2, penalty=1.0)
        >>> head.texts = lambda names: torch.tensor([[0.8, 0.6], [0.6, 0.8]])[: len(names)]
        >>> head.grow(2)
        >>> head.start(["cat", "dog"])
        >>> image = torch.tensor([[1.0, 0.0]])
        >>> head(image)
        tensor([[0.8000, 0.6000]])
        >>> head.observe(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> head.settle()
        >>> head(image)
        tensor([[0.7850, 0.6150]])
    """

    row_tensors = ("rows", *RidgeHead.row_tensors)
    score_name = "probability"
    scores = Head.scores
    share: Tensor

    def __init__(
        self, in_features: int, *, penalty: Penalty = "gcv", penalty_factor: float = 1.0
    ) -> None:
        super().__init__(in_features)
        self.criterion, self.penalty_factor = penalty, penalty_factor
        self.register_buffer("share", torch.ones((), dtype=torch.float64))

    def read_texts(self, side: Any) -> bool:
        """Read no text side that trains: what was fitted is what its texts left then."""
        return self.texts is None

    def _solve(self, n: int) -> None:
        """Choose weight and penalty, and solve for what the texts leave."""
        known = self.counts > 0
        self.weight.zero_()
        if known.sum() < 2:  # nothing to tell apart
            self.share.fill_(1)
            if not n:
                self.gram.zero_()
            return
        rows = in_double(self.rows[known])
        texts = rows - rows.mean(dim=0)
        there = spectrum(self.gram, self.sums[known].T, n=n)
        self.penalty.copy_(choose_penalty(there, self.criterion, self.penalty_factor))
        there = replace(there, projected=there.projected - there.projected.mean(1, keepdim=True))
        prior = there.vectors.T @ texts.T
        beta = prior_weight(there, prior).clamp_min(_LEAST * (n / there.values.sum()).sqrt())
        b = torch.minimum(prior_weight(there, prior, self.penalty), beta)
        left = replace(there, projected=there.projected - b * there.values[:, None] * prior)
        self.share.copy_(b / beta)
        self.weight[known] = ((b * texts + left.solve(self.penalty).T) / beta - texts).float()

    def forward(self, features: Tensor) -> Tensor:
        """Return logits: ``(B, E)`` to ``(B, R)``; -1000 for rows that have no text yet."""
        logits = self._cosines(features, self.rows + self.weight)
        return torch.where(self.rows.any(dim=1), _bent(logits), logits)


def _bent(logits: Tensor) -> Tensor:
    """Return logits in their order within 900, above the mask; those within 500 as they are."""
    beyond = (logits.abs() - _STRAIGHT).clamp_min(0)
    return logits.clamp(-_STRAIGHT, _STRAIGHT) + logits.sign() * beyond / (1 + beyond / _CURVED)


def build_zero_shot_ridge(
    *,
    in_features: FeatureWidth,
    backbone: Backbone,
    class_words: dict[str, str] | None = None,
    templates: list[str] | None = None,
    penalty: Penalty = "gcv",
    penalty_factor: PenaltyFactor = 1.0,
) -> ZeroShotRidgeHead:
    """Build a :class:`ZeroShotRidgeHead`: ridge regression that begins from the names of classes.

    Args:
        in_features: ``E``.
        backbone: The frozen network, with a text side.
        class_words: What each class is called in the texts, see :func:`build_zero_shot`.
        templates: Sentences with ``{}`` where the word stands, as there.
        penalty: ``gcv``, ``scale_free``, or the penalty itself.
        penalty_factor: Multiplies what was chosen by a criterion.

    Raises:
        ConfigError: As :func:`build_zero_shot`.
    """
    head = ZeroShotRidgeHead(in_features, penalty=penalty, penalty_factor=penalty_factor)
    head.texts = ClassTexts(backbone, words=class_words, templates=templates)
    check_reads_embedding("zero_shot_ridge", backbone, in_features)
    head.scale.fill_(head.texts.side.logit_scale)
    return head
