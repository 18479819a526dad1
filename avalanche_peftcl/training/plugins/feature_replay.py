"""A trained head is aligned to all classes on features drawn from what is kept of each."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from avalanche.core import SupervisedPlugin
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.feature_replay import (
    aged_means,
    covariance_factor,
    normalised_logits,
)
from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.models import Drift, DynamicModel, Head
from avalanche_peftcl.registry.ranges import (
    Epochs,
    LearningRate,
    Offset,
    Seed,
    Share,
    Temperature,
    WeightDecay,
)
from avalanche_peftcl.training.feature_pass import network_of, read_or_known
from avalanche_peftcl.training.joints import Features, move_heads
from avalanche_peftcl.training.plugins.budget import out_of_time
from avalanche_peftcl.training.plugins.class_moments import ClassMoments, Covariance
from avalanche_peftcl.training.streams import ends_experience, number_of, starts_experience

_MINIBATCH = 256


class FeatureReplayPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Align a trained head to all classes so far, on features drawn from a Gaussian a class.

    Once an experience was trained, features of its images are read with the test transforms, and
    their sums join those of their classes; no image is kept. From the second experience on the head
    then trains for some epochs on features drawn from the Gaussians of all classes, equally many
    of each, and nothing else of the network does. With task labels a class competes with those of
    its label. A :class:`.DriftCompensationPlugin` beside it moves what is kept with the features.

    Works with any Avalanche strategy whose model is a
    :class:`~avalanche_peftcl.models.DynamicModel` whose last head is trained; what that reads of
    the features is :meth:`~avalanche_peftcl.models.DynamicModel.head_features`. It stands after
    plugins that change weights at the end of an experience, and before those that look at the head
    when one begins.

    No default was measured: on real images this plugin has not been run, only on toys.

    Memory: ``8 (R D + D²)`` bytes with a shared covariance, ``8 (R D + R D²)`` with one a class, at
    most 2 GiB; while it aligns ``4 R S D`` for the ``S`` features of each class.

    Args:
        covariance: ``"shared"``: one for all classes, of images about their class means.
            ``"class"``: one each.
        shrinkage: Share of a multiple of the identity in a covariance, see
            :func:`.covariance_factor`.
        epochs: Of the alignment; each draws new features.
        samples_per_class: ``S``, features of a class in an epoch.
        lr: Learning rate of SGD with momentum 0.9 on minibatches of 256; falls as a cosine.
        temperature: Of logits that are normalised, see :func:`.normalised_logits`; SLCA takes 0.1.
            Only for heads that have learnt: steps are the longer, the shorter logits are, and a
            head that begins near 0 is thrown off. ``None`` leaves logits as they are.
        restore: Go on with the head as it was before its alignment when the next experience begins.
        jitter: Added to the diagonal of every covariance once it is shrunk; SLCA takes 1e-4, and
            no ``shrinkage``.
        ageing: Share by which the mean of a class is drawn towards 0 while features are drawn, the
            more, the older it is, see :func:`.aged_means`; SLCA takes 0.1.
        weight_decay: Of SGD in the alignment.
        seed: Of the draws; no global generator is touched.

    Attributes:
        moments: What is kept of each class, a :class:`.ClassMoments`.

    Raises:
        ConfigError: If an argument is out of range; while training, if there is no one head that
            is trained, or covariances would take too much memory.
        NotFiniteError: While training, if features or what becomes of the head are no numbers.

    Source:
        Zhang et al., SLCA, ICCV 2023, and SLCA++, arXiv 2408.08295; released code GengDavid/SLCA
        169d4e6. Differs: by default one shared covariance and plain logits, shrunk by a share
        instead of 1e-4 I, the means of earlier classes as they are and no weight decay; classes
        met again add to theirs.

    Example:
        >>> FeatureReplayPlugin(epochs=3).stored_floats
        0
    """

    remembers: tuple[str, ...] = ("n_experiences_done", "moments", "_unaligned", "_reports")

    def __init__(
        self,
        *,
        covariance: Covariance = "shared",
        shrinkage: float = 0.1,
        epochs: int = 5,
        samples_per_class: int = 256,
        lr: float = 0.01,
        temperature: float | None = None,
        restore: bool = True,
        jitter: float = 0.0,
        ageing: float = 0.0,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.moments = ClassMoments(covariance)
        if not (0 <= shrinkage <= 1 and 0 <= ageing <= 1):
            raise ConfigError(f"shrinkage={shrinkage} and ageing={ageing} must be in [0, 1]")
        if jitter < 0 or weight_decay < 0:
            raise ConfigError(
                f"jitter={jitter} and weight_decay={weight_decay} must not be negative"
            )
        if epochs < 1 or samples_per_class < 1:
            raise ConfigError(
                f"epochs={epochs} and samples_per_class={samples_per_class} must be at least 1"
            )
        if lr <= 0 or (temperature is not None and temperature <= 0):
            raise ConfigError(
                f"lr={lr} and temperature={temperature} must be positive; temperature may be None"
            )
        self.shrinkage = shrinkage
        self.epochs, self.samples_per_class, self.lr = epochs, samples_per_class, lr
        self.temperature, self.restore, self.seed = temperature, restore, seed
        self.jitter, self.ageing, self.weight_decay = jitter, ageing, weight_decay
        self.n_experiences_done = 0
        self._unaligned: dict[str, Tensor] = {}  # parameters of the head before its alignment
        self._reports: list[dict[str, Any]] = []

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Put the head back to what it was before its alignment, when an experience begins."""
        head = _trained_head(network_of(strategy))
        if not starts_experience(strategy.experience):
            return
        for name, p in head.named_parameters():
            if (old := self._unaligned.get(name)) is not None:
                (p[: len(old)] if name in head.row_tensors else p).copy_(old)  # new rows stay
        self._unaligned = {}

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take in the experience's features; when it ends, align the head."""
        workers = kwargs.get("num_workers", 0)
        known = move_heads(strategy, num_workers=workers)
        self._observe(strategy, known, num_workers=workers)
        if not ends_experience(strategy.experience):
            return
        number = number_of(strategy.experience)
        self.moments.check_finite(number)
        self.n_experiences_done += 1
        if self.n_experiences_done > 1:
            losses = self.align(network_of(strategy), ends=lambda: out_of_time(strategy))
            self._reports.append({"experience": number, "classes": self.moments.n_known, **losses})

    # --- what is kept --------------------------------------------------------------------------

    def move_features(self, drift: Drift) -> None:
        """Move what is kept to where the features of old images are now."""
        self.moments.move(drift)

    @torch.no_grad()
    def _observe(self, strategy: Any, known: Sequence[Features], *, num_workers: int) -> None:
        network: Any = network_of(strategy)
        width, born = _trained_head(network).in_features, self.n_experiences_done
        self.moments.grow(len(network.classes), width, born=born)

        def take(batch: Features) -> None:
            self.moments.add(network.head_features(batch.features), batch.rows)

        read_or_known(strategy, take, known, num_workers=num_workers)

    # --- the alignment -------------------------------------------------------------------------

    def align(self, network: Any, *, ends: Callable[[], bool] = lambda: False) -> dict[str, float]:
        """Train the head on drawn features; return the loss on some of them before and after.

        Args:
            network: Whose head it is.
            ends: Asked before each step whether it is the time to end.
        """
        head = _trained_head(network)
        parameters = [p for p in head.parameters() if p.requires_grad]
        if self.restore:
            self._unaligned = {n: p.detach().clone() for n, p in head.named_parameters()}
        means, covariances = self.moments.gaussians()
        means = aged_means(means, self.moments.born, share=self.ageing)
        factors = covariance_factor(covariances, shrinkage=self.shrinkage, jitter=self.jitter)
        device, known = parameters[0].device, self.moments.known.cpu().nonzero()[:, 0]
        means, factors = means.float(), factors.float()
        generator = torch.Generator().manual_seed(self.seed + self.n_experiences_done)
        labels = network.classes.keys[:, 0].to(device)
        of = known.repeat_interleave(self.samples_per_class).to(device)

        def draw() -> Tensor:
            size = len(known), self.samples_per_class, means.shape[1]
            noise = torch.randn(size, generator=generator).to(means.device)
            rows = known.to(means.device)
            each = factors if factors.ndim == 2 else factors[rows]
            return (means[rows][:, None] + noise @ each.mT).flatten(0, 1).to(device)

        def loss(features: Tensor, rows: Tensor) -> Tensor:
            return self._loss(head(features), rows, labels)

        optimizer = torch.optim.SGD(
            parameters, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay
        )
        features = first = draw()
        with torch.no_grad():
            before = float(loss(first, of))
        for epoch in range(self.epochs):
            features = draw() if epoch else first
            optimizer.param_groups[0]["lr"] = (
                self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
            )
            order = torch.randperm(len(of), generator=generator).to(device)
            for start in range(0, len(order), _MINIBATCH):
                if ends():
                    break
                part = order[start : start + _MINIBATCH]
                optimizer.zero_grad()
                with torch.enable_grad():
                    loss(features[part], of[part]).backward()  # type: ignore[no-untyped-call]  # torch's own
                optimizer.step()
        optimizer.zero_grad()
        check_finite([p.detach() for p in parameters], "parameters of the aligned head")
        with torch.no_grad():
            return {"loss_before": before, "loss_after": float(loss(first, of))}

    def _loss(self, logits: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy among the classes known of each image's task label."""
        born, known = (t.to(logits.device) for t in (self.moments.born, self.moments.known))
        losses = []
        for label in sorted(set(labels[rows].tolist())):
            columns, images = known & (labels == label), labels[rows] == label
            among = logits[images][:, columns].float()
            if self.temperature is not None:
                among = normalised_logits(among, born[columns], temperature=self.temperature)
            target = (columns.cumsum(0) - 1)[rows[images]]
            losses.append(F.cross_entropy(among, target, reduction="sum"))
        return torch.stack(losses).sum() / len(rows)

    # --- what there is to tell -----------------------------------------------------------------

    @property
    def stored_floats(self) -> int:
        """Floats kept from experience to experience: sums, their products, and an earlier head."""
        unaligned = sum(tensor.numel() for tensor in self._unaligned.values())
        return self.moments.stored_floats + unaligned

    def summary(self) -> dict[str, Any]:
        """Return what the run record keeps.

        Returns:
            ``covariance``, and ``experiences``: from the second on, ``experience``, its number,
            ``classes``, and ``loss_before`` and ``loss_after``, on the same drawn features.
        """
        return {"covariance": self.moments.covariance, "experiences": self._reports}

    def headline(self) -> str | None:
        """Return one line about the last experience, ``None`` before the second has ended."""
        if not self._reports:
            return None
        last = self._reports[-1]
        return (
            f"feature replay: {last['classes']} classes, loss {last['loss_before']:.2f} to "
            f"{last['loss_after']:.2f}"
        )


def _trained_head(network: Any) -> Head:
    """Return the head of ``network`` that predicts, which is trained."""
    heads = network.heads if isinstance(network, DynamicModel) else ()
    last: Head | None = heads[-1] if heads else None
    if last is not None and not last.fitted and any(p.requires_grad for p in last.parameters()):
        return last
    there = ", ".join(type(head).__name__ for head in heads) or "no head with rows"
    raise ConfigError(
        "feature replay aligns the head that predicts, where that is trained; a "
        f"{type(network).__name__} has {there}. Take a trained head such as 'linear' or 'cosine', "
        "or leave feature replay out: what is fitted needs no alignment"
    )


def build_feature_replay(
    *,
    covariance: Covariance = "shared",
    shrinkage: Share = 0.1,
    epochs: Epochs = 5,
    samples_per_class: Annotated[int, Field(ge=1, le=2**14)] = 256,
    lr: LearningRate = 0.01,
    temperature: Temperature | None = None,
    restore: bool = True,
    jitter: Offset = 0.0,
    ageing: Share = 0.0,
    weight_decay: WeightDecay = 0.0,
    seed: Seed = 0,
) -> FeatureReplayPlugin:
    """Build a :class:`FeatureReplayPlugin`."""
    return FeatureReplayPlugin(
        covariance=covariance,
        shrinkage=shrinkage,
        epochs=epochs,
        samples_per_class=samples_per_class,
        lr=lr,
        temperature=temperature,
        restore=restore,
        jitter=jitter,
        ageing=ageing,
        weight_decay=weight_decay,
        seed=seed,
    )
