"""What is known of the features at projection sites, streamed: no feature is kept."""

from collections.abc import Callable, Collection, Iterable
from typing import Any

from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.functional.precision import in_double
from avalanche_peftcl.functional.subspace import gram
from avalanche_peftcl.models.projection.sites import ProjectionSite, listen
from avalanche_peftcl.training.feature_pass import draw, feature_pass


class SiteStatistics:
    r"""Gram matrices, sums and counts of the rows that each site has seen, in float64.

    Attributes:
        grams: By site's name :math:`X^\top X` of each group, ``(G, D, D)``.
        totals: The sum of each group's rows, ``(G, D)``.
        counts: How many rows.

    Example:
        >>> import torch
        >>> from avalanche_peftcl.models.projection.sites import linear_sites
        >>> (site,) = linear_sites("0", torch.nn.Linear(2, 3, bias=False))
        >>> statistics = SiteStatistics()
        >>> for features in (torch.ones(4, 2), torch.zeros(2, 5, 2)):
        ...     statistics.add(site, features)
        >>> statistics.counts, statistics.totals[site.name].tolist()
        ({'0.weight': 14}, [[4.0, 4.0]])
    """

    remembers: tuple[str, ...] = ("grams", "totals", "counts")

    def __init__(self) -> None:
        self.grams: dict[str, Tensor] = {}
        self.totals: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, site: ProjectionSite, features: Tensor) -> None:
        """Take in features of a site, ``(..., G * D)``."""
        groups, name = len(site.view(site.parameter.detach())), site.name
        rows = in_double(features.detach()).reshape(-1, features.shape[-1])
        new, total = gram(rows, groups=groups), rows.sum(dim=0).view(groups, -1)
        self.grams[name] = self.grams.get(name, 0) + new
        self.totals[name] = self.totals.get(name, 0) + total
        self.counts[name] = self.counts.get(name, 0) + len(rows)

    def check_seen(self, site: ProjectionSite) -> None:
        """Refuse a site that saw no features."""
        if site.name not in self.grams:
            raise ConfigError(
                f"the place of projection site {site.name} saw no features: it is no part of the "
                "model's forward pass"
            )

    def check_finite(self, number: int) -> None:
        """Refuse what is not finite numbers of experience ``number``."""
        check_finite(list(self.grams.values()), f"the Gram matrices of experience {number}")

    def clear(self) -> None:
        """Forget all."""
        self.grams, self.totals, self.counts = {}, {}, {}


def found_sites(
    model: nn.Module, sites: Callable[[nn.Module], Iterable[ProjectionSite]]
) -> list[ProjectionSite]:
    """Return the sites of a model.

    Raises:
        ConfigError: If it has none.
    """
    found = list(sites(model))
    if not found:
        raise ConfigError(
            f"{type(model).__name__} states no projection sites; use a module that does "
            "(adapter, LoRA, prefix, prompt), or give sites="
        )
    return found


def without_site(model: nn.Module, sites: Iterable[ProjectionSite]) -> list[str]:
    """Return the names of a model's trained parameters that have no site."""
    held = {id(site.parameter) for site in sites}
    return [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]


def read_sites(
    strategy: Any,
    sites: list[ProjectionSite],
    take: Callable[[ProjectionSite, Tensor], None],
    *,
    n_samples: int | None,
    seed: int,
    without: Collection[int] = (),
    num_workers: int = 0,
) -> None:
    """Run images of the experience through the network in full precision, its head included.

    Args:
        strategy: Any Avalanche strategy.
        sites: Where features are read.
        take: Called with a site and its features.
        n_samples: As of :func:`.draw`, like the two below.
        seed: As there.
        without: As there.
        num_workers: Processes that load images.
    """
    with listen(sites, take):
        feature_pass(
            strategy,
            dataset=draw(strategy.experience, n_samples, seed=seed, without=without),
            classify=True,
            full_precision=True,
            num_workers=num_workers,
        )
