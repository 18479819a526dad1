"""Projection of many sites of one shape at once."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from avalanche_peftcl.functional.subspace import remove_component, stack_bases
from avalanche_peftcl.models.projection.sites import ProjectionSite


class SiteBatch:
    """Sites whose parameters have one shape, projected by one batched product.

    Args:
        sites: ``S`` sites with views of one shape ``(G, R, D)``, no parameter twice.
        bases: For each site its groups' bases, ``G`` tensors ``(D, K)``.
        strength: The share of a component that is removed, see
            :func:`~avalanche_peftcl.functional.remove_component`.

    Attributes:
        updates: For each site the summed squared length of the updates and of what was left of
            them, ``(S, 2)``.
    """

    def __init__(
        self,
        sites: Sequence[ProjectionSite],
        bases: Sequence[Sequence[Tensor]],
        *,
        strength: float = 1.0,
    ) -> None:
        self.sites, self.strength = list(sites), strength
        stacked = stack_bases([basis for groups in bases for basis in groups])
        self.basis = stacked.reshape(len(sites), -1, *stacked.shape[1:]).to(
            sites[0].parameter
        )  # (S, G, D, K)
        self.updates = self.basis.new_zeros(len(sites), 2, dtype=torch.float32)
        self._before: Tensor | None = None

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Project the gradients in place; sites without one are left out."""
        gradients = [site.parameter.grad for site in self.sites]
        index = [i for i, gradient in enumerate(gradients) if gradient is not None]
        if index:
            views = [self.sites[i].view(cast(Tensor, gradients[i])) for i in index]
            torch._foreach_copy_(views, self._kept(torch.stack(views), index).unbind())

    @torch.no_grad()
    def snapshot(self) -> None:
        """Remember where the parameters are."""
        self._before = torch.stack(self._views())  # (S, G, R, D)

    @torch.no_grad()
    def project_step(self) -> None:
        """Project in place how far the parameters have moved since the snapshot."""
        if self._before is None:
            return
        views = self._views()
        kept = self._kept(torch.stack(views) - self._before, list(range(len(views))))
        torch._foreach_copy_(views, (self._before + kept).unbind())
        self._before = None

    def removed(self) -> dict[str, float]:
        """Return by site's name the share of the updates' squared length that was removed."""
        return {
            site.name: 1 - left / whole if whole > 0 else 0.0
            for site, (whole, left) in zip(self.sites, self.updates.tolist(), strict=True)
        }

    def _views(self) -> list[Tensor]:
        return [site.view(site.parameter.detach()) for site in self.sites]

    def _kept(self, change: Tensor, index: list[int]) -> Tensor:
        whole = len(index) == len(self.sites)
        basis = self.basis if whole else self.basis[index]
        kept = remove_component(change, basis, strength=self.strength)
        lengths = torch.stack([change, kept], dim=1).float().square().sum(dim=(2, 3, 4))  # (S, 2)
        if whole:
            self.updates += lengths
        else:
            self.updates.index_add_(0, torch.tensor(index, device=lengths.device), lengths)
        return kept


def batch_sites(
    sites: Iterable[ProjectionSite],
    bases: Mapping[str, Sequence[Tensor]],
    *,
    strength: float = 1.0,
) -> list[SiteBatch]:
    """Put sites of one shape together; a parameter's second site comes in a later batch.

    Args:
        sites: The sites; those without a basis, or with an empty one, are left out.
        bases: By site's name its groups' bases.
        strength: The share of a component that is removed; with 0 there is nothing to do.

    Returns:
        Batches in the order in which they have to be applied.
    """
    if strength == 0:
        return []
    times: dict[int, int] = defaultdict(int)
    batches: dict[Any, list[ProjectionSite]] = defaultdict(list)
    for site in sites:
        if any(basis.shape[1] for basis in bases.get(site.name, ())):
            shape = site.view(site.parameter.detach()).shape
            batches[times[id(site.parameter)], shape, site.parameter.dtype].append(site)
            times[id(site.parameter)] += 1
    ordered = sorted(batches.items(), key=lambda item: item[0][0])
    return [
        SiteBatch(group, [bases[site.name] for site in group], strength=strength)
        for _, group in ordered
    ]


def lengths_of(batches: Iterable[SiteBatch]) -> dict[str, Tensor]:
    """Return what the batches' ``updates`` hold of each site, ``(2,)``, by its name."""
    return {
        site.name: lengths
        for batch in batches
        for site, lengths in zip(batch.sites, batch.updates, strict=True)
    }


def set_lengths(batches: Iterable[SiteBatch], lengths: Mapping[str, Tensor]) -> None:
    """Set the batches' ``updates`` of the sites that are named."""
    for name, mine in lengths_of(batches).items():
        if name in lengths:
            mine.copy_(lengths[name])
