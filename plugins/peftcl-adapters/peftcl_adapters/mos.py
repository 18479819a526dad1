"""MOS: a set of adapters an experience, merged with those before; each image finds its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_peftcl import takes
from avalanche_peftcl.functional import centroid_contrast
from avalanche_peftcl.models import (
    Backbone,
    Branch,
    ClassRows,
    DynamicModel,
    Head,
    LinearHead,
    exportable,
    forward_branches,
)
from avalanche_peftcl.training import PEFTTemplate, add_loss, annealing
from avalanche_peftcl.training.plugins import FeatureReplayPlugin
from peftcl_adapters.adapter_sets import AdapterSets, MergedBranch
from peftcl_adapters.options import (
    AlignmentOptions,
    Dropout,
    Epochs,
    LearningRate,
    LocalOptions,
    Loops,
    Positive,
    Share,
    Weight,
    Width,
)
from peftcl_adapters.subspaces import SubspacePrototypeHead


@exportable
class FrozenMeans(SubspacePrototypeHead):
    """Cosines to class means of the first columns of a feature, those of the frozen network.

    Args:
        in_features: How many columns.

    Attributes:
        set_of: Which set of adapters the class of each row came with, ``(R,)``.
    """

    free_tensors: tuple[str, ...] = (*SubspacePrototypeHead.free_tensors, "set_of")
    set_of: Tensor

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features)
        self.register_buffer("set_of", torch.zeros(0, dtype=torch.long))

    def observe(self, features: Tensor, rows: Tensor) -> None:
        """Add images to the sums."""
        super().observe(features[:, : self.in_features], rows)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, ``(B, R)``."""
        return super().forward(features[:, : self.in_features])


@exportable
class MOSModel(DynamicModel):
    r"""Sets of adapters, of which each image finds its own by what it is taken for.

    In eval mode class means of the frozen network make a first guess. The set of that class runs,
    the head says which class it is by then, and as long as that is one of another set, that one
    runs, up to ``max_loops`` times. What is predicted are log probabilities,

    .. math:: \ln \tfrac 1 2 \bigl[\operatorname{softmax}(W z + b)
              + \operatorname{softmax}(T \cos(z_0, p))\bigr]

    with ``z`` the last feature, :math:`z_0` the frozen one, ``p`` its class means and ``T`` sets.

    Args:
        backbone: The frozen network.
        r: Width of the adapters' bottleneck.
        scale: Factor of an adapter's output.
        dropout: Probability of the adapters' dropout, in training.
        share: Of the newest set in its copy that is merged, see :class:`.MergedBranch`.
        max_loops: How many sets run for an image at most, 1 at least.

    Attributes:
        sets: Adapters, a set an experience that brought new classes.
        means: Class means of the frozen network.
        head: What is trained, over the features of the classes' own sets.

    Source:
        Sun et al., MOS, AAAI 2025; released code sun-hailong/AAAI25-MOS. Differs: see
        :func:`build_mos`.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        r: int = 16,
        scale: float = 0.1,
        dropout: float = 0.1,
        share: float = 0.9,
        max_loops: int = 4,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.sets = AdapterSets(
            backbone.embed_dim, backbone.depth, r=r, scale=scale, dropout=dropout
        )
        width = self.sets.newest.out_features(backbone)
        self.share, self.max_loops = share, max_loops
        self.classes = ClassRows()
        self.means = FrozenMeans(width)
        self.head = LinearHead(width)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """In train mode the newest set, in eval mode the frozen network before it."""
        newest = self.pass_of(len(self.sets) - 1)
        return (newest,) if self.training else (Branch(), newest)

    @property
    def heads(self) -> tuple[Head, ...]:
        """Class means of the frozen network, and the head that is trained."""
        return self.means, self.head

    @property
    def forward_passes(self) -> int:
        """One in train mode, else the most that an image can cost."""
        loops = 1 if len(self.sets) == 1 else self.max_loops
        return 1 if self.training else 1 + loops

    def start_experience(self, pairs: Iterable[tuple[int, int]], *, fresh: bool = True) -> None:
        """Make room for the ``(task label, class)`` pairs of an experience.

        The merged copy of the newest set takes its place, and a new set begins, with each
        experience that brings classes, where it is known where experiences begin.
        """
        known = len(self.classes)
        self.classes.add(pairs)
        if known and len(self.classes) > known and fresh:
            self.pass_of(len(self.sets) - 1).settle()
            self.sets.open()
        for head in self.heads:
            head.grow(len(self.classes))
        self.means.set_of[known:] = len(self.sets) - 1

    def pass_of(self, number: int) -> MergedBranch:
        """Return the pass through a set; of the newest through its merged copy."""
        return MergedBranch(self.sets, number, share=self.share)

    def read(self, images: Tensor) -> Tensor:
        """Return the frozen feature and that of the newest set, ``(B, 2 D)``."""
        passes = [Branch(), self.pass_of(len(self.sets) - 1)]
        return torch.cat(forward_branches(self.backbone, passes, images), dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """Return the feature of the newest set, ``(B, D)``; in eval mode the frozen one and that
        of the set that each image has found, ``(B, 2 D)``.
        """  # noqa: D205  # one sentence, too long for a line
        if self.training:
            return forward_branches(self.backbone, self.branches, images)[0]
        (frozen,) = forward_branches(self.backbone, [Branch()], images)
        return torch.cat([frozen, self.retrieve(images, frozen)], dim=1)

    def retrieve(self, images: Tensor, frozen: Tensor) -> Tensor:
        """Return the feature of the set that each image finds.

        Args:
            images: ``(B, 3, H, W)``.
            frozen: Their frozen features, ``(B, D)``.

        Returns:
            ``(B, D)``.
        """
        features = torch.zeros_like(frozen)
        left = torch.arange(len(images), device=images.device)
        own = self.means.set_of.to(images.device)
        guess = torch.full_like(left, len(self.sets) - 1)
        if len(own):
            guess = own[self.means(frozen).argmax(dim=1)]  # (B,)
        for _ in range(self.max_loops):
            for number in sorted(set(guess[left].tolist())):
                which = left[guess[left] == number]
                (found,) = forward_branches(self.backbone, [self.pass_of(number)], images[which])
                features[which] = found.to(features)
            if not len(own):
                break
            then = own[self.head(features[left]).argmax(dim=1)]
            stays = then == guess[left]
            guess[left] = then
            left = left[~stays]
            if not len(left):
                break
        return features

    def head_features(self, features: Tensor) -> Tensor:
        """Return what the trained head reads: the last ``D`` columns."""
        return features[:, -self.head.in_features :]

    def classify(self, features: Tensor) -> Tensor:
        """Return a logit a row; in eval mode a log probability."""
        adapted: Tensor = self.head(self.head_features(features))
        if self.training or not len(self.classes):
            return adapted
        first = self.means(features) * len(self.sets)
        both = adapted.float().log_softmax(dim=1), first.log_softmax(dim=1)
        mean: Tensor = torch.logaddexp(*both) - torch.log(torch.tensor(2.0))
        return mean


class MOS(PEFTTemplate):
    """The strategy: what is kept of an experience is read through its own set of adapters."""

    def embed(self, images: Tensor) -> Tensor:
        """Return what the plugins read of an experience's images, ``(B, 2 D)``."""
        features: Tensor = self.network.read(images)
        return features


class CentroidContrastPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Keeps features of the images at hand from the means of other classes, and from each other.

    Args:
        replay: What keeps the means.
        weight: Of the term.
    """

    remembers = ()

    def __init__(self, replay: FeatureReplayPlugin, weight: float) -> None:
        super().__init__()
        self.replay, self.weight = replay, weight

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the term."""
        features = strategy.mb_features[-1]
        held = self.replay.moments.held
        centroids = features.new_zeros(0, features.shape[1])
        if held:
            others = held["counts"] > 0
            others[[row for row in strategy.current_rows if row < len(others)]] = False
            centroids = held["sums"][others] / held["counts"][others, None]
        term = centroid_contrast(features, centroids)
        add_loss(strategy, "centroid_contrast", self.weight * term)


@dataclass(frozen=True, kw_only=True)
class MOSOptions(LocalOptions, AlignmentOptions):
    """Options of MOS; the defaults are the published settings for CIFAR-100."""

    lr: LearningRate = 0.03
    align_epochs: Epochs = 30
    align_lr: LearningRate = 0.005


@takes(MOSOptions)
def build_mos(
    *,
    backbone: Backbone,
    r: Width = 16,
    scale: Positive = 0.1,
    dropout: Dropout = 0.1,
    share: Share = 0.9,
    max_loops: Loops = 4,
    head_lr_scale: Positive = 0.1,
    contrast_weight: Weight = 0.1,
    anneal: bool | None = None,
    options: MOSOptions,
) -> PEFTTemplate:
    r"""Build MOS.

    Each experience trains adapters of its own, of which a copy that is merged with those before
    does the work, :math:`0.9\,\theta + 0.1\,\bar\theta`. Features of each class through its own
    set give a Gaussian; from the second experience on the head is aligned to all classes on
    features drawn from these. In evaluation each image finds its set, see :class:`MOSModel`.

    A prediction costs one pass through the frozen network and 1 to ``max_loops`` more. A step costs
    one pass an image, an experience four more over its images: two times the frozen network and
    the newest set. It keeps :math:`2 L D r` numbers an experience, and of a class :math:`2 D + D^2`
    in float64. The number of experiences need not be known. Domains it does not serve: an image
    finds its set by its class, which says nothing of the set where every experience has all
    classes, and Gaussians of one class through several sets would be one.

    Args:
        backbone: The frozen network.
        r: Width of the adapters' bottleneck.
        scale: Factor of an adapter's output.
        dropout: Probability of the adapters' dropout, in training.
        share: Of the newest set in its merged copy; 1 merges nothing.
        max_loops: How many sets run for an image at most.
        head_lr_scale: Learning rate of the head, as a multiple of the adapters'.
        contrast_weight: Of the term that keeps features from the means of other classes, see
            :func:`.centroid_contrast`.
        anneal: Whether the learning rate falls to 0 as a cosine; ``None`` is yes unless a plugin
            schedules it.
        options: The defaults are the published settings for CIFAR-100: rate 0.03 and 20 epochs; on
            ImageNet-R rate 0.05 and 10 epochs are. Size of a minibatch and weight decay are not
            known to us and are those of EASE.

    Source:
        Sun et al., "MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning",
        AAAI 2025; released code sun-hailong/AAAI25-MOS, as we know it from a description.
        Differs: the merging is the described one, 0.9 of the set after a step and 0.1 of the mean
        of earlier ones, and it is made on a copy: each pass through the newest set computes it,
        gradients go through it, and what is trained is replaced by it once, when the next set
        begins. The release blends in place in every forward pass, in evaluation too, so that its
        stored adapters drift to the mean of earlier ones; **its published numbers come from that
        and are not to be expected here**. The head is linear, begins at zero and goes on from its
        alignment; each set begins with a draw of its own.
    """
    model = MOSModel(backbone, r=r, scale=scale, dropout=dropout, share=share, max_loops=max_loops)
    groups: list[dict[str, Any]] = [
        {"params": list(model.sets.parameters())},
        {"params": list(model.head.parameters()), "lr": options.lr * head_lr_scale},
    ]
    optimizer = torch.optim.SGD(groups, **options.rates())
    schedule = annealing(
        optimizer, options.plugins, anneal=anneal, train_epochs=options.train_epochs
    )
    replay = FeatureReplayPlugin(
        covariance=options.covariance,
        shrinkage=0.0,
        jitter=1e-4,
        restore=False,
        **options.alignment(),
    )
    contrast = [CentroidContrastPlugin(replay, contrast_weight)] if contrast_weight else []
    return MOS(
        model=model,
        optimizer=optimizer,
        own_plugins=[*schedule, *contrast, replay],
        **options.template(),
    )
