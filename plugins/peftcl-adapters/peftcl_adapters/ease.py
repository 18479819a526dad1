"""EASE: adapters of its own for each experience, class means in all of their subspaces."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avalanche_peftcl import takes
from avalanche_peftcl.models import (
    Backbone,
    Branch,
    ClassRows,
    CosineHead,
    DynamicModel,
    Head,
    exportable,
    forward_branches,
)
from avalanche_peftcl.training import PEFTTemplate, annealing, make_optimizer
from peftcl_adapters.adapter_sets import AdapterSets
from peftcl_adapters.options import Dropout, LearningRate, LocalOptions, Positive, Weight, Width
from peftcl_adapters.subspaces import SubspacePrototypeHead


@exportable
class EASEModel(DynamicModel):
    """Passes with one set of adapters each, and class means of what they see side by side.

    In train mode the newest set runs alone and a temporary cosine head classifies; in eval mode all
    sets run.

    Args:
        backbone: The frozen network.
        r: Width of the adapters' bottleneck.
        scale: Factor of an adapter's output.
        dropout: Probability of the adapters' dropout, in training.
        alpha: Weight of all subspaces but that of a class.

    Attributes:
        sets: Adapters, a set an experience.
        temporary: Classifies the feature of the newest set while it trains.

    Source:
        Zhou et al., EASE, CVPR 2024; released code sun-hailong/CVPR24-Ease. Differs: nothing.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        r: int = 64,
        scale: float = 0.1,
        dropout: float = 0.1,
        alpha: float = 0.1,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sets = AdapterSets(
            backbone.embed_dim, backbone.depth, r=r, scale=scale, dropout=dropout
        )
        width = self.sets.newest.out_features(backbone)
        self.classes = ClassRows()
        self.temporary = CosineHead(width)
        self._begins: list[int] = []  # rows of the experience that begins
        self.head = SubspacePrototypeHead(width, alpha=alpha)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The pass of the newest set in train mode, of all sets in eval mode."""
        return (self.sets.newest,) if self.training else tuple(self.sets)  # type: ignore[arg-type]  # of branches

    @property
    def heads(self) -> tuple[Head, ...]:
        """The temporary head, and the one that predicts."""
        return self.temporary, self.head

    @property
    def moving(self) -> list[slice]:
        """The columns of the newest set."""
        width, n = self.head.in_features, len(self.sets)
        return [slice((n - 1) * width, n * width)]

    def start_experience(self, pairs: Iterable[tuple[int, int]], *, fresh: bool = True) -> None:
        """Make room for the ``(task label, class)`` pairs of an experience.

        A set of adapters begins with each experience that brings classes, where it is known where
        experiences begin. With one that brings none it begins in :meth:`start_branches`.
        """
        known = len(self.classes)
        self._begins = self.classes.add(pairs)
        new = range(known, len(self.classes))
        opens = bool(known and new and fresh)
        if opens:
            self.sets.open()
        self.temporary.grow(len(self.classes), draw=False)
        if new:
            self.temporary.reset(new)
        self.head.widen(len(self.sets))
        self.head.grow(len(self.classes))
        if opens:
            self.head.meet(self._begins)

    def start_branches(self, experience: Any) -> None:
        """Begin a set and means of its own for an experience of known classes alone."""
        newest = self.sets.newest
        known = int(newest.begun)
        super().start_branches(experience)  # the newest set hears the number
        if known in (0, number := int(newest.begun)):
            return
        newest.start_experience(known)
        self.sets.open()
        self.sets.newest.start_experience(number)
        self.temporary.reset(self._begins)
        self.head.widen(len(self.sets))
        self.head.meet(self._begins)

    def embed(self, images: Tensor) -> Tensor:
        """Return features side by side: ``(B, 3, H, W)`` to ``(B, D)``, in eval ``(B, T D)``."""
        return torch.cat(forward_branches(self.backbone, self.branches, images), dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """Return a logit a row, in train mode from the temporary head."""
        logits: Tensor = self.heads[0 if self.training else 1](features)
        return logits


@dataclass(frozen=True, kw_only=True)
class EASEOptions(LocalOptions):
    """Options of EASE; the defaults are the published settings for CIFAR-100."""

    lr: LearningRate = 0.025


@takes(EASEOptions)
def build_ease(
    *,
    backbone: Backbone,
    r: Width = 64,
    scale: Positive = 0.1,
    dropout: Dropout = 0.1,
    alpha: Weight = 0.1,
    anneal: bool | None = None,
    options: EASEOptions,
) -> PEFTTemplate:
    """Build EASE, for all scenarios.

    Each experience trains adapters of its own, with a cosine head among its classes, and freezes
    them. A class has a mean in the subspace of each set of adapters; where an earlier class was
    not seen in a later subspace, its mean is told from classes that were, see
    :func:`.complete_prototypes`.

    **A prediction costs as many passes as there are experiences.** A step costs one pass an image,
    an experience one more pass a set over its images. It keeps :math:`2 L D r` numbers an
    experience, and :math:`T D` a class and experience that it is met in. The number of experiences
    need not be known.

    Args:
        backbone: The frozen network.
        r: Width of the adapters' bottleneck.
        scale: Factor of an adapter's output.
        dropout: Probability of the adapters' dropout, in training.
        alpha: Weight of all subspaces but that of a class.
        anneal: Whether the learning rate falls to 0 as a cosine; ``None`` is yes unless a plugin
            schedules it.
        options: The defaults are the published settings for CIFAR-100: SGD with momentum 0.9 and
            rate 0.025, 20 epochs of minibatches of 48, weight decay 0.0005. On ImageNet-R rate
            0.05, minibatches of 16 and weight decay 0.005 are; on CUB alpha 0.05, rate 0.008 and
            minibatches of 32.

    Source:
        Zhou et al., "Expandable Subspace Ensemble for Pre-Trained Model-Based Class-Incremental
        Learning", CVPR 2024; released code sun-hailong/CVPR24-Ease. Differs: adapters alone; the
        feature of the frozen network, optional there, is no further subspace. Experiences of known
        classes are ours: a class has a mean of each that it was met in, told from likeness in later
        subspaces as those of other classes are, and the one that fits best counts. All chunks of a
        stream whose boundaries are not known train one set.
    """
    model = EASEModel(backbone, r=r, scale=scale, dropout=dropout, alpha=alpha)
    optimizer = make_optimizer("sgd", model, **options.rates())
    own = annealing(optimizer, options.plugins, anneal=anneal, train_epochs=options.train_epochs)
    return PEFTTemplate(model=model, optimizer=optimizer, own_plugins=own, **options.template())
