"""S-Prompts: a prompt and a classifier a domain, found by the nearest centroid."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl import takes
from avalanche_peftcl.models import (
    Backbone,
    Branch,
    Embedded,
    ExperienceParts,
    Head,
    PEFTModel,
    Probe,
    exportable,
)
from avalanche_peftcl.training import PEFTTemplate, ends_experience, feature_pass
from peftcl_prompts.experience_heads import ExperienceHeads, OfExperiences
from peftcl_prompts.ranges import Epochs, GradNorm, LearningRate, MinibatchSize, WeightDecay, Width
from peftcl_prompts.tokens import insert
from peftcl_prompts.tuning import PromptOptions, prompt_strategy

Distance = Literal["l1", "l2"]


def nearest(features: Tensor, centroids: Tensor, *, distance: Distance) -> Tensor:
    """Return the number of the centroid that each feature is nearest to, ``(B,)``.

    Args:
        features: ``(B, D)``.
        centroids: ``(N, D)``.
        distance: Sum of absolute or root of squared differences.

    Example:
        >>> at = torch.tensor([[0.0, 0.0]])
        >>> centroids = torch.tensor([[2.0, 2.0], [3.0, 0.0]])
        >>> [int(nearest(at, centroids, distance=d)) for d in ("l1", "l2")]
        [1, 0]
    """
    with torch.autocast(features.device.type, enabled=False):
        apart = features.float()[:, None] - centroids[None]  # (B, N, D)
        away = apart.abs().sum(dim=2) if distance == "l1" else apart.square().sum(dim=2)
    return away.argmin(dim=1)


class _Centroids(Head):
    """Centroids of all experiences, and whose each is."""

    row_tensors = ("values", "owners")
    values: Tensor
    owners: Tensor

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.register_buffer("values", torch.zeros(0, width))
        self.register_buffer("owners", torch.zeros(0, dtype=torch.long))

    def put(self, centroids: Tensor, owner: int) -> None:
        """Set the centroids of an experience, ``(K, D)``."""
        others = self.owners != owner
        new = centroids.to(self.values)
        self.values = torch.cat([self.values[others], new])
        self.owners = torch.cat([self.owners[others], self.owners.new_full((len(new),), owner)])


class DomainPromptBranch(Branch):
    """A pass with the prompt of one experience, which stands behind the CLS token from the start.

    In train mode it is that of the experience that trains, in eval mode that with the centroid
    nearest to the image's frozen feature on unit norm. The feature is what the backbone pools and,
    as its last entry, the number of the experience from 0.

    Args:
        embed_dim: Width ``D`` of a token.
        query_dim: Width ``E`` of a frozen feature.
        length: ``P``, tokens of a prompt.
        distance: How far a centroid is, see :func:`nearest`.

    Attributes:
        parts: Of each experience ``prompts``, ``(P, D)``, from U(-1, 1) / sqrt(D).
        centroids: Of the experiences that ended.

    Source:
        See :func:`build_s_prompts`.
    """

    shares_start = False
    forward_passes = 2

    def __init__(
        self, embed_dim: int, query_dim: int, *, length: int = 10, distance: Distance = "l1"
    ) -> None:
        super().__init__()
        self.distance: Distance = distance
        self.parts = ExperienceParts({"prompts": torch.zeros(length, embed_dim)})
        self.centroids = _Centroids(query_dim)
        self.query_probe = Probe()
        self._chosen = torch.zeros(0)
        self._draw()

    def start_experience(self, number: int) -> None:
        """Draw a prompt for the experience."""
        if self.parts.start(number):
            self._draw()

    @torch.no_grad()
    def _draw(self) -> None:
        prompts = self.parts.get_parameter("prompts")
        bound = 1 / math.sqrt(prompts.shape[1])
        prompts.copy_(torch.empty(prompts.shape).uniform_(-bound, bound))

    def begin(self, backbone: Backbone, embedded: Embedded) -> Tensor:
        """Return each image's prompt, ``(B, P, D)``."""
        owner = self._owners(embedded)
        self._chosen = owner
        return self.parts.every("prompts")[owner]

    def _owners(self, embedded: Embedded) -> Tensor:
        """Return the number of each image's experience, ``(B,)``."""
        batch, device = len(embedded.tokens), embedded.tokens.device
        if not self.training:
            query = F.normalize(self.query_probe(embedded.query()).float(), dim=1)
            if len(self.centroids.owners):
                known = nearest(query, self.centroids.values, distance=self.distance)
                return self.centroids.owners[known]
        return torch.full((batch,), len(self.parts) - 1, device=device)

    def attend(
        self,
        backbone: Backbone,
        index: int,
        tokens: Tensor,
        *,
        queries: int | None = None,
        context: Any = None,
    ) -> Tensor:
        """Put the prompt behind the prefix tokens in the first block, then attend."""
        if index == 0:
            tokens = insert(tokens, context, backbone.num_prefix_tokens)
        return backbone.attend(index, tokens, queries=queries)

    def leave(self, backbone: Backbone, tokens: Tensor, *, context: Any = None) -> Tensor:
        """Drop the prompt: ``(B, N + P, D)`` to ``(B, N, D)``."""
        prefix, length = backbone.num_prefix_tokens, context.shape[1]
        return torch.cat([tokens[:, :prefix], tokens[:, prefix + length :]], dim=1)

    def pool(self, backbone: Backbone, tokens: Any) -> Tensor:
        """Return the feature and, behind it, the experience's number: ``(B, E + 1)``."""
        pooled = backbone.pool(tokens).float()
        return torch.cat([pooled, self._chosen[:, None].to(pooled)], dim=1)

    def out_features(self, backbone: Backbone) -> int:
        """Return the width of the feature and the number."""
        return 1 + super().out_features(backbone)


@exportable
def build_domain_prompts(
    *, backbone: Backbone, length: Width = 10, distance: Distance = "l1"
) -> DomainPromptBranch:
    """Build a :class:`DomainPromptBranch` that fits ``backbone``."""
    query_dim = Branch().out_features(backbone)
    return DomainPromptBranch(backbone.embed_dim, query_dim, length=length, distance=distance)


@exportable
class DomainPromptModel(PEFTModel):
    """A pass with the prompt of one domain, and the classifier of the same domain.

    Args:
        backbone: The frozen network.
        branch: The prompts.
    """

    branch: DomainPromptBranch
    head: OfExperiences

    def __init__(self, backbone: Backbone, branch: DomainPromptBranch) -> None:
        super().__init__(backbone, branch, ExperienceHeads)

    def start_branches(self, experience: Any) -> None:
        """Begin the experience's prompt and classifier."""
        super().start_branches(experience)
        self.head.begin_experience(len(self.branch.parts) - 1)


class CentroidPlugin(SupervisedPlugin):
    """Keeps centroids of the frozen features, on unit norm, of each experience when it has ended.

    Args:
        branch: What finds prompts by them.
        count: How many; fewer where there are fewer images.
        seed: Of k-means; no global generator is touched.
    """

    remembers = ()

    def __init__(self, branch: DomainPromptBranch, *, count: int, seed: int = 0) -> None:
        super().__init__()
        self.branch, self.count, self.seed = branch, count, seed

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Read the experience's images with the test transforms."""
        if not ends_experience(strategy.experience):
            return
        read: list[Tensor] = []

        def hear(module: Any, args: tuple[Tensor, ...]) -> None:
            read.append(F.normalize(args[0].float(), dim=1).cpu())

        handle = self.branch.query_probe.register_forward_pre_hook(hear)
        try:
            feature_pass(strategy, num_workers=kwargs.get("num_workers", 0))
        finally:
            handle.remove()
        features = torch.cat(read)
        kmeans = KMeans(min(self.count, len(features)), n_init=10, random_state=self.seed)
        centroids = torch.from_numpy(kmeans.fit(features.numpy()).cluster_centers_)
        self.branch.centroids.put(centroids, len(self.branch.parts) - 1)


@dataclass(frozen=True, kw_only=True)
class SPromptsOptions(PromptOptions):
    """Options of the training; the defaults are those published for CORe50."""

    lr: LearningRate = 0.01
    weight_decay: WeightDecay = 2e-4
    train_mb_size: MinibatchSize = 128
    train_epochs: Epochs = 20
    max_grad_norm: GradNorm | None = None


@takes(SPromptsOptions)
def build_s_prompts(
    *,
    backbone: Backbone,
    length: Width = 10,
    centroids: Width = 5,
    distance: Distance = "l1",
    anneal: bool | None = None,
    options: SPromptsOptions,
) -> PEFTTemplate:
    """Build S-iPrompts: each domain has a prompt and a classifier, and nothing is shared.

    Serves scenario ``domain``. Grows on demand: an experience adds a prompt, a classifier of its
    classes, and centroids of its frozen features, by which a test image finds its domain. One pass
    an image in training, two in prediction; after an experience its images are read once more, in
    two passes.

    Args:
        backbone: The frozen network.
        length: Tokens of a prompt.
        centroids: Of an experience.
        distance: By which the nearest is found: ``"l1"`` as released, ``"l2"`` as k-means has it.
        anneal: Whether the learning rate falls to 0 as a cosine in each experience; ``None`` is yes
            unless a plugin schedules it.
        options: The defaults are published: SGD with momentum 0.9 and rate 0.01, minibatches of 128
            and 20 epochs (CORe50; CDDB 50, DomainNet 30).

    Source:
        Wang, Huang and Hong, NeurIPS 2022, arXiv 2207.12819 (S-iPrompts); released code
        iamwangyabin/S-Prompts a26e822.
        Differs: weight decay is 2e-4 in every domain, where the release has 5e-4 in the first.
        Centroids are of images with the test transforms. Classifiers start at zero. Classes that a
        domain has not are never predicted in it. With prompts of texts too it is ``s_li_prompts``.
    """
    branch = build_domain_prompts(backbone=backbone, length=length, distance=distance)
    model = DomainPromptModel(backbone, branch)
    own = [CentroidPlugin(branch, count=centroids)]
    return prompt_strategy(model, optimizer="sgd", anneal=anneal, options=options, own_plugins=own)
