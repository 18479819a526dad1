"""Virtual outliers: what lies just outside of an experience's features is none of its classes."""

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import DynamicModel, Head
from avalanche_peftcl.training import PEFTTemplate, add_loss, feature_pass
from avalanche_peftcl.training.plugins import HeadOnlyPlugin
from peftcl_prompts.ranges import Epochs, Weight, Width

Energy = Annotated[float, Field(ge=-1e4, le=1e4)]
Share = Annotated[float, Field(gt=0, le=1)]
Noise = Annotated[float, Field(gt=0, le=1e3)]
DRAWN = 4  # points of which one is kept


class Outskirts:
    r"""The features that have the fewest others near them, and points around these.

    Args:
        features: ``(N, D)``, on any device.
        neighbors: With fewer others the last.
        boundary: Share of the features, in (0, 1]: those with the largest distance :math:`r_i` to
            their ``neighbors``-th neighbour.

    Raises:
        ConfigError: If there are fewer than two features.

    Example:
        >>> around = Outskirts(torch.tensor([[0.0], [1.0], [2.0], [9.0]]), 1, boundary=0.25)
        >>> points = around.draw(3, noise=0.1, generator=torch.Generator().manual_seed(0))
        >>> points.shape, bool(((points - 9).abs() < 3).all())
        (torch.Size([3, 1]), True)
    """

    def __init__(self, features: Tensor, neighbors: int, *, boundary: float) -> None:
        if len(features) < 2:
            raise ConfigError(
                "virtual outliers lie between images and their neighbours, and there is "
                f"{len(features)} image; give an experience several, or leave virtual_outliers out"
            )
        self.features, self.neighbors = features, min(neighbors, len(features) - 1)
        among = torch.cdist(features, features).fill_diagonal_(math.inf)
        radii = among.kthvalue(self.neighbors, dim=1).values
        self.edge = radii.argsort(descending=True, stable=True)[: math.ceil(boundary * len(radii))]
        self.radii = radii[self.edge]

    def draw(self, count: int, *, noise: float, generator: torch.Generator) -> Tensor:
        r"""Draw points from :math:`\mathcal N(z_i, (\nu r_i)^2 I / D)`.

        Of each four the one is kept that is farthest from its own ``neighbors``-th neighbour.

        Args:
            count: ``M``.
            noise: :math:`\nu`.
            generator: Of the CPU.

        Returns:
            ``(M, D)``.
        """
        width, device = self.features.shape[1], self.features.device
        chosen = torch.randint(len(self.edge), (count, DRAWN), generator=generator).to(device)
        step = torch.randn(count, DRAWN, width, generator=generator).to(device)
        spread = noise * self.radii[chosen, None] / math.sqrt(width)
        drawn = self.features[self.edge[chosen]] + spread * step
        far = torch.cdist(drawn.flatten(0, 1), self.features).kthvalue(self.neighbors, dim=1).values
        best = far.view(count, DRAWN).argmax(dim=1)
        return drawn[torch.arange(count, device=device), best]


class VirtualOutliersPlugin(HeadOnlyPlugin):
    r"""Train the head alone in an experience's last epochs, beside features that are no image's.

    With the energy :math:`E(z) = -\log \sum_c \exp f_c(z)` over the classes of the experience it
    adds, for the minibatch's features :math:`z` and as many virtual outliers :math:`o`,

    .. math:: \lambda\,[h(\max(0, E(z) - m_\text{in})) + h(\max(0, m_\text{out} - E(o)))]

    to the loss, :math:`h` Huber's with 1: images look like the experience, what lies outside of it
    does not, so that logits of different experiences can be compared.

    Works with strategies of this package that have one trained head; not with online streams, whose
    images are seen once.

    Args:
        epochs: The last ones of every experience; there must be others before them.
        weight: :math:`\lambda`.
        inside: :math:`m_\text{in}`.
        outside: :math:`m_\text{out}`, above ``inside``.
        neighbors: See :class:`Outskirts`.
        boundary: See there.
        noise: See :meth:`Outskirts.draw`.
        seed: Of the draws; no global generator is touched.

    Raises:
        ConfigError: If an argument is out of range; while training, if the strategy has no such
            head, or no epochs before these.

    Source:
        Huang et al., "OVOR: OnePrompt with Virtual Outlier Regularization for Rehearsal-Free
        Class-Incremental Learning", ICLR 2024, arXiv 2402.04129; released code jpmorganchase/ovor
        4f59b75: losses, their weight and their margins.
        Differs: that outliers lie around features with distant neighbours is the release's; how
        many neighbours, which share and how much noise was not read, and is ours. Features are
        those of images with test transforms, read once when the last epochs begin.
    """

    def __init__(
        self,
        epochs: int = 10,
        *,
        weight: float = 0.1,
        inside: float = -15.0,
        outside: float = -3.0,
        neighbors: int = 10,
        boundary: float = 0.2,
        noise: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(epochs)
        if not inside < outside:
            raise ConfigError(
                f"images must have less energy than outliers: inside ({inside}) must be below "
                f"outside ({outside})"
            )
        self.weight, self.inside, self.outside = weight, inside, outside
        self.neighbors, self.boundary, self.noise = neighbors, boundary, noise
        self.seed = seed
        self._around: Outskirts | None = None  # of the experience, in its last epochs; read again

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Refuse what has no such epochs, or no such head."""
        _trained_head(strategy)
        if strategy.train_epochs <= self.epochs:
            raise ConfigError(
                f"virtual_outliers trains the head alone in the last {self.epochs} epochs, and "
                f"there are {strategy.train_epochs} in all: nothing else would train. Give fewer "
                "epochs to virtual_outliers, or more to the strategy (train_epochs)"
            )

    def holds(self, strategy: Any) -> bool:
        """Whether the epoch that begins is one of the last."""
        return bool(strategy.clock.train_exp_epochs >= strategy.train_epochs - self.epochs)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze all but the head, and read the features that are fixed from now on."""
        super().before_training_epoch(strategy, **kwargs)
        if not self.holds(strategy):
            return
        if self._around is None:
            read: list[Tensor] = []
            feature_pass(
                strategy,
                lambda batch: read.append(batch.features.float()),
                num_workers=kwargs.get("num_workers", 0),
            )
            self._around = Outskirts(torch.cat(read), self.neighbors, boundary=self.boundary)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the term."""
        if self._around is None:
            return
        chance = torch.Generator().manual_seed(self.seed + int(strategy.clock.train_iterations))
        points = self._around.draw(len(strategy.mb_y), noise=self.noise, generator=chance)
        rows, head = strategy.current_rows, _trained_head(strategy)
        inside = _energy(strategy.mb_row_logits[:, rows])
        outside = _energy(head(points)[:, rows])
        lost = _huber(inside - self.inside) + _huber(self.outside - outside)
        add_loss(strategy, "outliers", self.weight * lost)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Forget the experience's features."""
        super().after_training_exp(strategy, **kwargs)
        self._around = None


def _energy(logits: Tensor) -> Tensor:
    return -logits.float().logsumexp(dim=1)


def _huber(excess: Tensor) -> Tensor:
    above = excess.clamp_min(0)
    return F.huber_loss(above, torch.zeros_like(above))


def _trained_head(strategy: Any) -> Head:
    """Return the one head of a strategy's network that trains."""
    network = strategy.network if isinstance(strategy, PEFTTemplate) else None
    heads = network.heads if isinstance(network, DynamicModel) else ()
    trained = [head for head in heads if not head.fitted]
    if len(trained) == 1:
        return trained[0]
    raise ConfigError(
        f"virtual_outliers trains one head beside features, and {type(strategy).__name__} has "
        f"{len(trained)} heads of this package that train; take a strategy with one, such as "
        "one_prompt, or leave virtual_outliers out"
    )


def build_virtual_outliers(
    *,
    epochs: Epochs = 10,
    weight: Weight = 0.1,
    inside: Energy = -15.0,
    outside: Energy = -3.0,
    neighbors: Width = 10,
    boundary: Share = 0.2,
    noise: Noise = 1.0,
) -> VirtualOutliersPlugin:
    """Build a :class:`VirtualOutliersPlugin`."""
    return VirtualOutliersPlugin(
        epochs,
        weight=weight,
        inside=inside,
        outside=outside,
        neighbors=neighbors,
        boundary=boundary,
        noise=noise,
    )
