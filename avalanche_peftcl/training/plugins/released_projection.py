"""The projection of the released PEGP code: on a ViT a mask of the first coordinates."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.functional.released_clip import released_basis, released_prompt_matrix
from avalanche_peftcl.functional.released_projection import (
    coordinate_basis,
    released_mask,
    released_spectrum,
)
from avalanche_peftcl.models.modules.prompt import PromptTokens
from avalanche_peftcl.models.projection.sites import (
    Probe,
    ProjectionSite,
    column,
    projection_sites,
    rows,
)
from avalanche_peftcl.training.plugins.gradient_projection import GradientProjectionPlugin
from avalanche_peftcl.training.streams import number_of


class ReleasedProjectionPlugin(GradientProjectionPlugin):
    r"""Zero the gradient of the first coordinates of a weight's input, as the release does.

    The release makes its basis of principal component scores. These are uncorrelated, so their
    Gram matrix is diagonal and its singular vectors are unit vectors: the projector is a mask of
    the first coordinates, whatever the features were. Their number follows from the fourth power
    of the singular values.

    Of adapters and LoRA the two weights are projected, by their gradient; scales are not.

    On CLIP the release has two modules more. The weights of an adapter behind the network are
    projected in the space of its features; prompts against a matrix in which image numbers stand
    for dimensions, see :func:`~avalanche_peftcl.functional.released_prompt_matrix`. Energies are
    the same fourth powers.

    Args:
        threshold: Share of the energy :math:`\sigma^4`; 0.999 for adapters, 0.99 for LoRA and for
            adapters behind the network, 0.9 for prompts.
        n_samples: Images read after an experience; on CLIP 512, for prompts 768.
        watch: Images an experience to measure drift with, see :class:`.GradientProjectionPlugin`.
        seed: Of the draw.

    Raises:
        ConfigError: While training, if the model has other weights than those of adapters, LoRA
            and prompts, for which nothing was released.

    Source:
        Released code JingyangQiao/PEGP f6515bf (PEGP-ViT); on CLIP 842bc7e and 4662b80. Differs:
        any embedding width, and fewer images than it gives as many components as images; images
        are drawn without augmentation. Of prompts the tokens are those that they stand before,
        behind the first norm, and in every block that has some; and the merged prompt is taken,
        where the release takes what its second stage ended with, and after the first task what
        the prompt began with.

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
        features = torch.cat(self._features.pop(site.name))  # (B, N, D), behind the network (B, D)
        dim = features.shape[-1]
        if features.ndim == 2:
            z = features.double()
            return self._in_space(site, z.T @ z)
        if isinstance(site.place, Probe):
            prompts = site.parameter.detach().cpu()
            tokens = features[:, len(prompts) :]  # the first are the prompts
            return self._in_space(site, released_prompt_matrix(tokens, prompts))
        spectrum = released_spectrum(features, components=dim)
        old = self.bases[site.name][0].shape[1] if site.name in self.bases else None
        size = released_mask(old, spectrum, threshold=self.threshold)
        self.bases[site.name] = [coordinate_basis(dim, size).to(site.parameter.device)]
        energy = spectrum.square()
        total = float(energy.sum())
        captured = float(energy[:size].sum()) / total if total else 1.0
        return {"size": size, "dim": dim, "captured_energy": captured}

    def _in_space(self, site: ProjectionSite, matrix: Tensor) -> dict[str, Any]:
        """Extend the basis of a site that is projected in a space, not by a mask."""
        old = self.bases[site.name][0].cpu() if site.name in self.bases else None
        basis = released_basis(old, matrix, threshold=self.threshold)
        self.bases[site.name] = [basis.to(site.parameter.device, torch.float32)]
        total = float(matrix.square().sum())
        captured = float((basis.T @ matrix).square().sum()) / total if total else 1.0
        return {"size": basis.shape[1], "dim": len(matrix), "captured_energy": captured}


def released_sites(model: nn.Module) -> list[ProjectionSite]:
    """Return the sites of ``model`` that the release projects.

    Raises:
        ConfigError: If there is one of another kind than adapters, LoRA and prompts.
    """
    prompts = {
        id(m.tokens)
        for m in model.modules()
        if isinstance(m, PromptTokens) and m.against == "inputs" and not m.project_values
    }
    sites = []
    for site in projection_sites(model):
        if site.view is rows and (site.name.endswith(".weight") or id(site.parameter) in prompts):
            sites.append(site)
        elif site.view is not column:  # scales and biases are left alone
            raise ConfigError(
                "the released projection is for adapters, LoRA and prompts against inputs without "
                f'project_values, not for {site.name}; take recipe="corrected"'
            )
    return sites
