"""The projection of the released PEGP code: a mask of the first coordinates."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.functional.released_projection import (
    coordinate_basis,
    released_mask,
    released_spectrum,
)
from avalanche_peftcl.models import Branch
from avalanche_peftcl.models.projection.sites import ProjectionSite, column, projection_sites, rows
from avalanche_peftcl.training.plugins.gradient_projection import GradientProjectionPlugin
from avalanche_peftcl.training.streams import number_of


class ReleasedProjectionPlugin(GradientProjectionPlugin):
    r"""Zero the gradient of the first coordinates of a weight's input, as the release does.

    The release makes its basis of principal component scores. These are uncorrelated, so their
    Gram matrix is diagonal and its singular vectors are unit vectors: the projector is a mask of
    the first coordinates, whatever the features were. Their number follows from the fourth power
    of the singular values.

    Only the two weights of adapters and LoRA are projected, by their gradient; scales are not.

    Args:
        threshold: Share of the energy :math:`\sigma^4`; 0.999 for adapters, 0.99 for LoRA.
        n_samples: Images read after an experience.
        watch: Images an experience to measure drift with, see :class:`.GradientProjectionPlugin`.
        seed: Of the draw.

    Raises:
        ConfigError: While training, if the model has other weights than those of adapters and
            LoRA, for which nothing was released.

    Source:
        Released code JingyangQiao/PEGP f6515bf (PEGP-ViT). Differs: any embedding width, and fewer
        images than it gives as many components as images; images are drawn without augmentation.

    Example:
        >>> ReleasedProjectionPlugin(0.999).where
        'gradient'
    """

    remembers: tuple[str, ...] = ("_features",)  # of an experience that has not ended

    def __init__(
        self,
        threshold: float = 0.999,
        *,
        n_samples: int | None = 768,
        watch: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            threshold,
            where="gradient",
            n_samples=n_samples,
            watch=watch,
            seed=seed,
            sites=released_sites,
        )
        self._features: defaultdict[str, list[Tensor]] = defaultdict(list)

    def read(self, strategy: Any, sites: list[ProjectionSite], *, num_workers: int) -> None:
        """Keep the features of the experience's images until it ends."""

        def keep(site: ProjectionSite, features: Tensor) -> None:
            self._features[site.name].append(features.cpu())

        self.listen(strategy, sites, keep, num_workers=num_workers)

    def check(self, experience: Any) -> None:
        """Refuse features of the experience that are not finite numbers."""
        number = number_of(experience)
        features = [part for parts in self._features.values() for part in parts]
        check_finite(features, f"the features of experience {number}")

    def extend(self, site: ProjectionSite) -> dict[str, Any]:
        """Lengthen one site's mask; return what is reported of it."""
        features = torch.cat(self._features.pop(site.name))  # (B, N, D)
        dim = features.shape[-1]
        spectrum = released_spectrum(features, components=dim)
        old = self.bases[site.name][0].shape[1] if site.name in self.bases else None
        size = released_mask(old, spectrum, threshold=self.threshold)
        self.bases[site.name] = [coordinate_basis(dim, size).to(site.parameter.device)]
        energy = spectrum.square()
        total = float(energy.sum())
        captured = float(energy[:size].sum()) / total if total else 1.0
        return {"size": size, "dim": dim, "captured_energy": captured}


def released_sites(model: nn.Module) -> list[ProjectionSite]:
    """Return the sites of ``model`` that the release projects.

    Raises:
        ConfigError: If there is one of another kind than adapters and LoRA.
    """
    if any(isinstance(m, Branch) and m.adapts_pooled for m in model.modules()):
        raise ConfigError(
            "the released code projects an adapter behind the network in the space of its "
            'features, as recipe="corrected" does with where="gradient"; take that'
        )
    sites = []
    for site in projection_sites(model):
        if site.view is rows and site.name.endswith(".weight"):
            sites.append(site)
        elif site.view is not column:  # scales and biases are left alone
            raise ConfigError(
                f"the released projection is for adapters and LoRA only, not for {site.name}; "
                'take recipe="corrected"'
            )
    return sites
