"""Images as a network sees them now, in the space that its backbone has for images and texts."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation.inside import undisturbed
from avalanche_peftcl.evaluation.ntk_probes import network_of
from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.models import Branch
from avalanche_peftcl.models.backbones.backbone import out_features
from avalanche_peftcl.models.counting import uncounted_passes
from avalanche_peftcl.models.frozen import Frozen
from avalanche_peftcl.models.meter import measured_as_evaluation
from avalanche_peftcl.models.passes import forward_branches
from avalanche_peftcl.registry.offers import BackboneOffers, ExperienceOffers, ModelOffers

Summary = dict[str, Any]
Values = dict[str, float | None]
"""Numbers by name; ``None`` where undefined."""


class JointSpace:
    """Both sides of a network as they are.

    An image's embedding is what the network's adapted pass pools, before any head; in eval mode and
    in float32, whatever the run trains in.

    Args:
        strategy: Any Avalanche strategy.
        metric: What it is for, in messages.

    Raises:
        ConfigError: If the backbone has no text side, or the network not one adapted pass to it.
    """

    def __init__(self, strategy: Any, metric: str) -> None:
        self.network = network_of(strategy)
        self.backbone: Any = ModelOffers.of(self.network).backbone  # has what TextSide says
        self.metric, self.device = metric, strategy.device
        kind = type(self.network).__name__
        if self.backbone is None or not BackboneOffers.of(self.backbone).has_text:
            part = kind if self.backbone is None else type(self.backbone).__name__
            raise ConfigError(
                f"metric {metric!r} compares images with texts, and a {part} has no text side; "
                "take a backbone that has one, such as 'open_clip' or 'dual_encoder', or leave "
                f"{metric} out"
            )
        branches: Sequence[Branch] = ModelOffers.of(self.network).branches
        adapted = [b for b in branches if any(True for _ in b.parameters())]
        if not branches or len(adapted) > 1:
            raise ConfigError(
                f"metric {metric!r} reads the one pass by which a network adapts an image's "
                f"embedding, and a {kind} has {len(adapted)}; take a strategy with one, such as "
                f"'naive' or 'pegp', or leave {metric} out"
            )
        self.branch: Branch = (adapted or branches)[-1]
        self.frozen = Branch() if adapted else self.branch
        width, space = self.branch.out_features(self.backbone), out_features(self.backbone)
        if width != space:
            raise ConfigError(
                f"metric {metric!r} needs embeddings of images in the space of the texts, of width "
                f"{space}, and a {type(self.branch).__name__} makes some of width {width}; take "
                f"another module, or leave {metric} out"
            )

    def is_still(self, frozen: Frozen) -> bool:
        """Whether images and texts have the embeddings that they had.

        Args:
            frozen: Of the backbone, as it was then.
        """
        tensors = self.backbone.state_dict()
        return self.frozen is self.branch and frozen.names(self.backbone) == set(tensors)

    @torch.no_grad()
    def images(self, batches: Iterable[Tensor], *, adapted: bool = True) -> Tensor:
        """Return embeddings of images, each on unit norm.

        Args:
            batches: Each ``(B, 3, H, W)``, on any device.
            adapted: ``False``: those of the frozen backbone.

        Returns:
            ``(N, E)``, float64, on the CPU.

        Raises:
            NotFiniteError: If one is not of finite numbers.
        """
        branch = self.branch if adapted else self.frozen
        parts = []
        for batch in batches:
            (z,) = forward_branches(self.backbone, [branch], batch.to(self.device))
            parts.append(F.normalize(z.float(), dim=1).cpu().double())
        found = torch.cat(parts)
        check_finite([found], f"embeddings of images that metric {self.metric!r} reads")
        return found

    @torch.no_grad()
    def texts(
        self,
        texts: Sequence[str],
        templates: Sequence[str] | None = None,
        *,
        adapted: bool = True,
    ) -> Tensor:
        """Return embeddings of texts, each on unit norm: ``(C, E)``, float64, on the CPU.

        A text side computes each text once, see :class:`.TextTower`.

        Args:
            texts: ``C`` texts.
            templates: As of :meth:`.TextSide.encode_text`.
            adapted: ``False``: those of the frozen backbone, where a module trains its text side.
        """
        side = self.branch.text_side(self.backbone) if adapted else self.backbone
        found: Tensor = side.encode_text(texts, templates).cpu().double()
        check_finite([found], f"embeddings of texts that metric {self.metric!r} reads")
        return found


@contextmanager
def joint_space(strategy: Any, metric: str) -> Iterator[JointSpace]:
    """Return the space of a strategy for a while: modes and random generators are as before after.

    Args:
        strategy: Any Avalanche strategy, inside ``train()``.
        metric: What it is for, in messages.

    Raises:
        ConfigError: As :class:`JointSpace`.
    """
    space = JointSpace(strategy, metric)
    with (
        measured_as_evaluation(space.device),
        undisturbed(space.network, space.device, trains=False),
    ):
        yield space


class StandingMetric(PluginMetric[Summary]):
    """Measures the same images and texts before the stream and after each experience.

    Before the stream it is the frozen backbone that is measured: what there was before any module
    was put into it. Where nothing trains that images pass through, what was measured then holds
    after each experience, and is not measured again.

    A subclass has a name and writes :meth:`measure` and :meth:`told`.

    Attributes:
        before: What was measured of the frozen backbone; ``None`` before training.
        after: What was measured after each experience.
    """

    name: ClassVar[str]
    remembers = ("before", "after")

    def __init__(self) -> None:
        super().__init__()
        self.before: Values | None = None
        self.after: list[Values] = []
        self._frozen = Frozen()  # of the backbone, as it was when it was measured

    def measure(self, space: JointSpace, *, adapted: bool) -> Values:
        """Return numbers by name.

        Args:
            space: Of the network as it is.
            adapted: ``False``: of its frozen backbone.
        """
        raise NotImplementedError

    def told(self, values: Values) -> Values:
        """Return what loggers are told of such numbers, by names of theirs."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the run."""
        self.before, self.after = None, []
        self._frozen = Frozen()

    def result(self) -> Summary:
        """Return :meth:`summary`."""
        return self.summary()

    def summary(self) -> Summary:
        """Return what was measured, as plain JSON."""
        raise NotImplementedError

    @uncounted_passes()
    def before_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Measure the frozen backbone, once; refuse a network that cannot be measured."""
        if self.before is not None:
            return []
        with joint_space(strategy, self.name) as space:
            self.before = self.measure(space, adapted=False)
            self._frozen = Frozen([space.backbone])
        return self._values(strategy, self.before)

    @uncounted_passes()
    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Measure the network as it is at the end of an experience."""
        if ExperienceOffers.of(strategy.experience).is_last_subexp is False:
            return []
        with joint_space(strategy, self.name) as space:
            if self.before is not None and space.is_still(self._frozen):
                self.after.append(dict(self.before))
            else:
                self.after.append(self.measure(space, adapted=True))
        return self._values(strategy, self.after[-1])

    def _values(self, strategy: Any, values: Values) -> list[MetricValue]:
        x = strategy.clock.train_iterations
        return [MetricValue(self, k, v, x) for k, v in self.told(values).items() if v is not None]
