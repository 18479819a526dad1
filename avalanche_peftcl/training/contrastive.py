"""Images and texts: a module of either tower trained by the contrastive loss."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.contrastive import contrastive_loss
from avalanche_peftcl.models import Backbone, Branch
from avalanche_peftcl.models.heads.rows import MASK_VALUE
from avalanche_peftcl.models.modules.adapter import build_adapters
from avalanche_peftcl.models.networks.image_encoder import ImageEncoder
from avalanche_peftcl.registry.ranges import LearningRate, MinibatchSize
from avalanche_peftcl.registry.takes import takes
from avalanche_peftcl.training.arguments import TemplateArguments
from avalanche_peftcl.training.local_loss import LossOver
from avalanche_peftcl.training.losses import add_loss
from avalanche_peftcl.training.optimizers import OptimizerName, annealing, make_optimizer
from avalanche_peftcl.training.options import TrainingOptions
from avalanche_peftcl.training.plugins.text_retrieval import TextRetrievalPlugin
from avalanche_peftcl.training.streams import captions, class_pairs
from avalanche_peftcl.training.template import PEFTTemplate


class Contrastive(PEFTTemplate):
    r"""Train on captioned images: each image finds its caption in the minibatch, and vice versa.

    The loss is :func:`~avalanche_peftcl.functional.contrastive_loss` with the backbone's logit
    scale. Of each image one caption is drawn each time, by the global generator; the frozen text
    tower encodes it, once, and one that a module trains each time. Images of one caption, and one
    image twice, are no negatives.

    It is a strategy and no plugin or criterion: a criterion sees outputs and targets and not the
    texts, a plugin can add to a loss of classes but there is none, and evaluation needs candidates.

    **What an accuracy is.** The share of an experience's test images whose nearest caption, among
    all of the test images with its task label, is one of their own: image-to-text R@1. So are the
    entries of the accuracy matrix, and average, last and forgetting follow from them. Where two
    images share the caption that is the nearest, the first of them counts as found. The other way,
    text to image, is measured by :class:`.TextRetrievalPlugin` (:attr:`retrieval`) as a matrix of
    its own. By chance, one image in their number is found.

    Args:
        model: Network from images to the space of the texts, with a ``backbone`` that has a text
            side, such as an :class:`~avalanche_peftcl.models.ImageEncoder`.
        optimizer: As of :class:`.PEFTTemplate`.
        template: The other arguments of :class:`.PEFTTemplate`.

    Attributes:
        retrieval: What texts find.
        captions: Of each target of the stream at hand.

    Raises:
        ConfigError: If the backbone has no text side; in training and evaluation, if the stream is
            not of captioned images.

    Source:
        Radford et al., CLIP, arXiv 2103.00020. Differs: the towers and the logit scale stay as
        they are; the minibatch has no equal texts for negatives.

    Example:
        >>> from avalanche_peftcl.testing import captioned_backbone, captioned_benchmark
        >>> strategy = build_contrastive(backbone=captioned_backbone(), train_epochs=1)
        >>> benchmark = captioned_benchmark()
        >>> _ = strategy.train(benchmark.train_stream[0])
        >>> _ = strategy.eval(benchmark.test_stream)
        >>> len(strategy.retrieval.recalls)
        2
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        own_plugins: Sequence[Any] = (),
        **template: Unpack[TemplateArguments],
    ) -> None:
        self.retrieval = TextRetrievalPlugin()
        own = [*own_plugins, self.retrieval]
        super().__init__(model=model, optimizer=optimizer, own_plugins=own, **template)
        side = self.network.backbone
        if not side.has_text:
            raise ConfigError(
                f"a {type(side).__name__} has no text side, which captions are encoded by; take "
                "backbone 'open_clip' or 'dual_encoder'"
            )
        self._side: Any = self.network.branch.text_side(side)
        self._mb_texts: Tensor | None = None
        self._mb_same: Tensor | None = None
        self._candidates: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def task_label_at_test(self) -> bool:
        """True: candidates are those of the image's task label."""
        return True

    @property
    def captions(self) -> Sequence[Sequence[str]]:
        """The texts of each target, of the stream at hand.

        Raises:
            ConfigError: If it is not of captioned images.
        """
        told = captions(self.experience)
        if told is None:
            raise ConfigError(
                "the contrastive strategy needs a stream of captioned images, and this one tells "
                "no captions; take benchmark 'image_text', or a strategy that classifies"
            )
        return told

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return embeddings of texts, ``(n, E)``, on unit norm; without gradient each once."""
        embeddings: Tensor = self._side.encode_text(texts)
        return embeddings.to(self.device)

    def read_texts(self, targets: Tensor) -> None:
        """Run all captions of some targets through the text side, where a module trains it."""
        if self.network.branch.text is not None:
            self.encode([text for y in targets.tolist() for text in self.captions[y]])

    def model_adaptation(self, model: Any = None) -> nn.Module:
        """Adapt as :class:`.PEFTTemplate` does, to a stream with captions."""
        if self.is_training:
            _ = self.captions  # refuses any other before anything is trained
        return super().model_adaptation(model)

    def forward(self) -> Tensor:
        """Return similarities by image, ``(B, len(captions))``, in float32.

        In the column of a candidate stands the logit of its nearest caption, -1000 elsewhere. In
        training candidates are the images of the minibatch, each with the caption that was drawn.
        """
        with self.autocast():
            embeddings = self.network(self.mb_x)
        self.mb_features = (embeddings,)
        if not self.is_training:
            return self._against_candidates(embeddings)
        for name, term in self.network.branch.losses().items():
            add_loss(self, name, term)
        drawn = self._draw()
        targets = self.mb_y
        place = {text: i for i, text in enumerate(drawn)}
        numbers = torch.tensor([place[text] for text in drawn], device=targets.device)
        self._mb_texts = self.encode(drawn)
        self._mb_same = (numbers[:, None] == numbers) | (targets[:, None] == targets)
        return self._by_image(embeddings.detach(), self._mb_texts.detach(), targets)

    def criterion(self) -> Tensor:
        """Return the contrastive loss; in evaluation cross-entropy over the candidates."""
        if self.is_training and self._mb_texts is not None:
            with torch.autocast(torch.device(self.device).type, enabled=False):
                images, scale = self.mb_features[-1], self._side.logit_scale
                return contrastive_loss(images, self._mb_texts, scale, same=self._mb_same)
        loss: Tensor = F.cross_entropy(self.mb_output, self.mb_y)
        return loss

    def _draw(self) -> list[str]:
        """Return a caption of each image of the minibatch."""
        told = [self.captions[int(y)] for y in self.mb_y]
        dice = torch.rand(len(told)).tolist()
        return [own[int(u * len(own))] for own, u in zip(told, dice, strict=True)]

    def _by_image(self, embeddings: Tensor, texts: Tensor, owners: Tensor) -> Tensor:
        """Return the logit of the nearest text of each image.

        Args:
            embeddings: ``(B, E)``.
            texts: ``(n, E)``, on unit norm.
            owners: Target of the image of each text, ``(n,)``.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = F.normalize(embeddings.float(), dim=1)
            logits = self._side.logit_scale * (unit @ texts.T)  # (B, n)
        out: Tensor = logits.new_full((len(logits), len(self.captions)), MASK_VALUE)
        return out.scatter_reduce(1, owners.expand(len(logits), -1), logits, "amax")

    # --- evaluation ----------------------------------------------------------------------------

    def _against_candidates(self, embeddings: Tensor) -> Tensor:
        labels = self.mb_task_id
        out = embeddings.new_empty(len(embeddings), len(self.captions), dtype=torch.float32)
        for label in sorted(set(labels.tolist())):
            own = labels == label
            if label not in self._candidates:
                self._candidates[label] = self._find_candidates(label)
            out[own] = self._by_image(embeddings[own], *self._candidates[label])
        return out

    def _find_candidates(self, label: int) -> tuple[Tensor, Tensor]:
        """Return all texts of the images of a task label in the stream, and whose they are."""
        stream: Any = self.experience.origin_stream
        whole = stream.benchmark.streams.get(stream.name, stream)
        known = self.captions
        targets = [y for e in whole for t, y in class_pairs(e) if t == label]
        texts = [text for y in targets for text in known[y]]
        owners = [y for y in targets for _ in known[y]]
        return self.encode(texts), torch.tensor(owners, device=self.device)

    def _before_eval(self, **kwargs: Any) -> None:
        self._candidates = {}
        super()._before_eval(**kwargs)

    def _forget_minibatch(self) -> None:
        super()._forget_minibatch()
        self._mb_texts = self._mb_same = None
        self._candidates = {}


@dataclass(frozen=True, kw_only=True)
class ContrastiveOptions(TrainingOptions):
    """Options of :func:`build_contrastive`; the loss compares what is in the minibatch."""

    loss: LossOver = field(default="seen", init=False)
    lr: LearningRate = 0.001
    train_mb_size: MinibatchSize = 64


@takes(ContrastiveOptions)
def build_contrastive(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    optimizer: OptimizerName = "adam",
    anneal: bool | None = None,
    options: ContrastiveOptions,
) -> Contrastive:
    """Build :class:`Contrastive`: a module of either tower trained on captioned images.

    Accuracies are image-to-text R@1 within the test images of an experience; text to image stands
    under ``plugins`` in the record. Benchmark ``image_text`` has such streams. A minibatch is what
    an image is told apart from: large ones make the loss harder.

    Args:
        backbone: The frozen network, with a text side.
        module: What trains in a tower, or behind that of images; adapters in it by default.
        optimizer: Which one.
        anneal: Let the learning rate fall as a cosine; ``None``: unless a plugin schedules it.
        options: The others.

    Raises:
        ConfigError: If the backbone has no text side or nothing of the module trains.

    Source:
        Radford et al., CLIP, arXiv 2103.00020.
    """
    model = ImageEncoder(backbone, module or build_adapters(backbone=backbone))
    chosen = make_optimizer(optimizer, model, **options.rates())
    schedule = annealing(chosen, options.plugins, anneal=anneal, train_epochs=options.train_epochs)
    return Contrastive(model=model, optimizer=chosen, own_plugins=schedule, **options.template())
