"""HiDe-Prompt: which experience, which prompt, which class: three problems, solved apart."""

from dataclasses import dataclass
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from avalanche_peftcl import takes
from avalanche_peftcl.functional import centroid_contrast
from avalanche_peftcl.models import (
    Backbone,
    Head,
    PEFTModel,
    exportable,
)
from avalanche_peftcl.training import PEFTTemplate, add_loss, feature_pass, out_of_time
from peftcl_prompts.blocks import Block
from peftcl_prompts.clusters import Clusters, align, cluster
from peftcl_prompts.hide_branch import HiDePromptBranch, Share, build_hide_prompts
from peftcl_prompts.ranges import (
    Epochs,
    GradNorm,
    LearningRate,
    MinibatchSize,
    Weight,
    WeightDecay,
    Width,
)
from peftcl_prompts.tuning import PromptOptions, prompt_strategy


@exportable
class HiDePromptModel(PEFTModel):
    """A pass with the prompts of an experience, a head of all classes, and one that tells them.

    Args:
        backbone: The frozen network.
        branch: The prompts.
    """

    branch: HiDePromptBranch

    def __init__(self, backbone: Backbone, branch: HiDePromptBranch) -> None:
        super().__init__(backbone, branch)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The head that tells the experience, and the one that predicts."""
        return self.branch.identity.head, self.head

    def start_branches(self, experience: Any) -> None:
        """Begin the experience's prompts; its classes are its own."""
        super().start_branches(experience)
        self.branch.identity.head.own(len(self.branch.parts) - 1)


class HiDePromptPlugin(SupervisedPlugin):
    """What HiDe-Prompt does beside training prompts: contrast, statistics, and two alignments.

    Args:
        branch: The prompts.
        contrast: Weight of the term that holds features apart from stored centroids and from each
            other.
        centroids: Of a class.
        align_epochs: Of each alignment, from the second experience on.
        align_samples: Features drawn around each centroid in an epoch, and in a minibatch.
        align_lr: Learning rate.
        align_weight_decay: Of SGD.
        seed: Of k-means and of the draws; no global generator is touched.

    Attributes:
        prompted: Clusters of features with the prompts of the class's experience, by name.
        frozen: Those of frozen features.
    """

    remembers = ("prompted", "frozen", "n_experiences_done")

    def __init__(
        self,
        branch: HiDePromptBranch,
        *,
        contrast: float,
        centroids: int,
        align_epochs: int,
        align_samples: int,
        align_lr: float,
        align_weight_decay: float,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.branch, self.contrast, self.centroids, self.seed = branch, contrast, centroids, seed
        self.align_epochs, self.align_samples = align_epochs, align_samples
        self.align_lr, self.align_weight_decay = align_lr, align_weight_decay
        self.prompted: dict[str, Tensor] = {}
        self.frozen: dict[str, Tensor] = {}
        self.n_experiences_done = 0

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the loss of what tells the experience, and the contrast."""
        logits = self.branch.identity_logits
        if logits is not None:
            add_loss(strategy, "identity", strategy.class_loss(logits.float()))
            self.branch.identity_logits = None
        if self.contrast:
            add_loss(strategy, "contrast", self.contrast * self._contrast(strategy.mb_features[-1]))

    def _contrast(self, features: Tensor) -> Tensor:
        held = self.prompted.get("centroids", features.new_zeros(0, features.shape[1]))
        with torch.autocast(features.device.type, enabled=False):
            return centroid_contrast(features, held)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Read the experience's images, with its own prompts; then align both heads."""
        branch, network = self.branch, strategy.network
        branch.write_back()
        queries: list[Tensor] = []
        features: list[Tensor] = []
        rows: list[Tensor] = []

        def take(batch: Any) -> None:
            features.append(batch.features.float().cpu())
            rows.append(batch.rows.cpu())

        handle = branch.query_probe.register_forward_pre_hook(
            lambda module, args: queries.append(args[0].float().cpu())
        )
        branch.forced = len(branch.parts) - 1
        try:
            feature_pass(strategy, take, num_workers=kwargs.get("num_workers", 0))
        finally:
            branch.forced = None
            handle.remove()
        generator = torch.Generator().manual_seed(self.seed + self.n_experiences_done)
        done = self.n_experiences_done
        self.n_experiences_done += 1
        for name, read, head, seen in (
            ("prompted", nn.Identity(), network.head, features),
            ("frozen", branch.identity.read, branch.identity.head, queries),
        ):
            new = cluster(torch.cat(seen), torch.cat(rows), count=self.centroids, seed=self.seed)
            held = getattr(self, name)
            known = Clusters(**held).replaced(new) if held else new
            setattr(self, name, dict(vars(known)))
            if done:
                align(
                    head,
                    known,
                    read=read,
                    epochs=self.align_epochs,
                    samples=self.align_samples,
                    lr=self.align_lr,
                    weight_decay=self.align_weight_decay,
                    generator=generator,
                    ends=lambda: out_of_time(strategy),
                )

    @property
    def stored_floats(self) -> int:
        """Floats kept from experience to experience."""
        held = [*self.prompted.items(), *self.frozen.items()]
        return sum(tensor.numel() for name, tensor in held if name != "rows")


@dataclass(frozen=True, kw_only=True)
class HiDePromptOptions(PromptOptions):
    """Options of the training; the defaults are those published for CIFAR-100."""

    lr: LearningRate = 2.8125e-3
    train_mb_size: MinibatchSize = 24
    train_epochs: Epochs = 50
    max_grad_norm: GradNorm | None = None


@takes(HiDePromptOptions)
def build_hide_prompt(
    *,
    backbone: Backbone,
    blocks: list[Block] | None = None,
    length: Width = 5,
    mix: Share = 0.01,
    contrast: Weight = 0.1,
    head_lr: LearningRate = 2.8125e-4,
    identity_lr: LearningRate = 4.6875e-5,
    centroids: Width = 10,
    align_epochs: Epochs = 30,
    align_samples: MinibatchSize = 120,
    align_lr: LearningRate = 0.005,
    align_weight_decay: WeightDecay = 5e-4,
    anneal: bool | None = False,
    options: HiDePromptOptions,
) -> PEFTTemplate:
    """Build HiDe-Prompt: prompts of each experience, which a classifier of frozen features finds.

    Serves scenarios ``class`` and ``task``, where a class tells its experience. Grows on demand: an
    experience adds its keys and values. Two passes an image, in training and in prediction, of
    which one without gradient; after an experience its images are read once more, in two. A class
    stores rows of two heads, and centroids and variances of its features with prompts and without.

    Args:
        backbone: The frozen network.
        blocks: Blocks with keys and values, from 0; ``None``: the first five.
        length: Keys of a block; 20 is published for ImageNet-R.
        mix: Share of the mean of earlier prompts in those that train.
        contrast: Weight of the contrastive term; 0.5 is published for ImageNet-R.
        head_lr: Learning rate of the head.
        identity_lr: Learning rate of the MLP and the head that tell the experience.
        centroids: Of a class.
        align_epochs: In which each head is aligned to features drawn of all classes, from the
            second experience on.
        align_samples: Features drawn around each centroid in such an epoch.
        align_lr: Learning rate there.
        align_weight_decay: Weight decay there.
        anneal: Whether learning rates fall to 0 as a cosine in each experience, as published for
            ImageNet-R.
        options: The defaults are published for CIFAR-100: Adam with rate 0.03 * 24 / 256 of the
            prompts, a tenth of it of the head, 50 epochs of minibatches of 24 (on each of eight
            GPUs), and a loss over the classes of the experience. ImageNet-R: 150 epochs.

    Source:
        Wang et al., NeurIPS 2023, arXiv 2310.07234; released code thu-ml/HiDe-Prompt 0ed4333.
        Differs: what tells the experience trains beside the prompts and for as long, where the
        release does so before, in 20 epochs; they share no parameter. Its MLP stays as it is while
        its head is aligned, on frozen features. The release's step of the learning rate is not
        known here: it is constant. Images get their own keys and values, where the release mixes
        them as DualPrompt's does. Heads start at zero.
    """
    branch = build_hide_prompts(backbone=backbone, blocks=blocks, length=length, mix=mix)
    model = HiDePromptModel(backbone, branch)
    momentum, decay = options.momentum, options.weight_decay
    optimizer = torch.optim.Adam(
        [
            {"params": list(branch.parts.parameters()), "lr": options.lr},
            {"params": list(branch.identity.parameters()), "lr": identity_lr},
            {"params": list(model.head.parameters()), "lr": head_lr},
        ],
        betas=(momentum, 0.999),
        weight_decay=decay,
    )
    plugin = HiDePromptPlugin(
        branch,
        contrast=contrast,
        centroids=centroids,
        align_epochs=align_epochs,
        align_samples=align_samples,
        align_lr=align_lr,
        align_weight_decay=align_weight_decay,
    )
    return prompt_strategy(
        model, optimizer=optimizer, anneal=anneal, options=options, own_plugins=[plugin]
    )
