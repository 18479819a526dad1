"""Keep parameters from moving along the features of earlier experiences."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.functional.subspace import extend_basis, gram
from avalanche_peftcl.models.projection.site_batch import SiteBatch, batch_sites
from avalanche_peftcl.models.projection.sites import ProjectionSite, listen, projection_sites
from avalanche_peftcl.registry.ranges import Count, Seed, Share
from avalanche_peftcl.training.feature_pass import draw, feature_pass
from avalanche_peftcl.training.plugins.projection_report import TOLD, in_a_line
from avalanche_peftcl.training.publishing import publish
from avalanche_peftcl.training.streams import (
    ends_experience,
    number_of,
    starts_experience,
)

Where = Literal["gradient", "step"]


class GradientProjectionPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    r"""Remove from each update the part that would change what old features give.

    After an experience the features :math:`X` of every projection site are read from some of its
    images, and the site's orthonormal basis :math:`V` is extended until it holds a share
    ``threshold`` of their energy. From then on

    .. math:: \Delta W' = \Delta W - (\Delta W\, V) V^\top

    With ``where="step"`` and ``threshold=1`` the old features of all sites stay as they are to
    rounding, and what the network computes of them too, whatever the optimizer: of the images that
    were read, where the sites' conditions are exact (those of prompts by default are not, see
    :class:`~avalanche_peftcl.models.PromptTokens`) and nothing else trains. Something can be learnt
    then only where the old features do not span everything; a smaller threshold gives up some of
    the protection for it.

    Works with any Avalanche strategy, for every module that states its sites, see
    :func:`~avalanche_peftcl.models.projection_sites`. Parameters without a site are not touched;
    :attr:`unprotected` names those that train.

    Args:
        threshold: Share of the old features' energy that is protected, in [0, 1].
        where: ``"step"`` projects the change that the optimizer made, weight decay and momentum
            included; ``"gradient"`` the gradient before it (and before the clipping of
            :class:`~avalanche_peftcl.training.PEFTTemplate`, which only scales).
        n_samples: Images read after an experience, drawn once; ``None`` reads all. Of an online
            stream each chunk gives its share while it is there, and no image is kept.
        seed: Of the draw; no global generator is touched.
        sites: Returns the sites of a model.

    Attributes:
        active: While false, updates are left alone.
        bases: For each site's name one basis ``(D, K)`` a group.
        unprotected: Names of trained parameters without a site, heads among them.

    Raises:
        ConfigError: If an argument is out of range; while training, if the model states no site.
        NotFiniteError: While training, if features that the bases are made of are not numbers.

    Source:
        Qiao et al., arXiv 2405.13383, eqs. (9) to (14); energy rule: Saha et al., Gradient
        Projection Memory, ICLR 2021. Released code JingyangQiao/PEGP f6515bf.
        Differs: features are tokens, uncentred, read in float32 with the test transforms; energy
        is that of the features, not its square; the step is projected, for with Adam a step of
        projected gradients leaves the subspace; scales and biases have sites too. For the release
        see :class:`ReleasedProjectionPlugin`.

    Example:
        >>> plugin = GradientProjectionPlugin(0.99, where="step", n_samples=200)
        >>> plugin.summary()["experiences"]
        []
    """

    remembers: tuple[str, ...] = (
        *("bases", "unprotected", "n_experiences_done"),
        *("_grams", "updates", "_reports"),
    )

    def __init__(
        self,
        threshold: float = 0.99,
        *,
        where: Where = "step",
        n_samples: int | None = 256,
        seed: int = 0,
        sites: Callable[[nn.Module], Iterable[ProjectionSite]] = projection_sites,
    ) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold must be in [0, 1], not {threshold}")
        if where not in ("gradient", "step"):
            raise ConfigError(f"where must be gradient or step, not {where!r}")
        if n_samples is not None and n_samples < 1:
            raise ConfigError(f"n_samples must be at least 1, or None for all, not {n_samples}")
        self.threshold, self.where, self.n_samples, self.seed = threshold, where, n_samples, seed
        self.sites = sites
        self.active = True
        self.bases: dict[str, list[Tensor]] = {}
        self.unprotected: list[str] = []
        self.n_experiences_done = 0
        self._grams: dict[str, Tensor] = {}  # of the experience so far, (G, D, D) each
        self._batches: list[SiteBatch] | None = None  # of the experience that trains
        self._updates: dict[str, Tensor] = {}  # of the batches, as loaded
        self._reports: list[list[dict[str, Any]]] = []

    # --- while an experience trains ------------------------------------------------------------

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Look up the sites' parameters, which may have been replaced."""
        starts = starts_experience(strategy.experience)
        if not starts and self._batches is not None:
            return
        sites = self._sites(strategy.model)
        held = {id(site.parameter) for site in sites}
        self.unprotected = [
            name
            for name, p in strategy.model.named_parameters()
            if p.requires_grad and id(p) not in held
        ]
        self._batches = batch_sites(sites, self.bases)
        if not starts:  # a run goes on inside a cut experience
            self._set_updates()

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        """Project the gradients, or remember where the parameters are."""
        for batch in (self._batches or ()) if self.active else ():
            if self.where == "gradient":
                batch.project_gradients()
            else:
                batch.snapshot()

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Project what the optimizer did."""
        if self.where == "step" and self.active:
            # a parameter's second site finds it where the first has left it
            for batch in self._batches or ():
                batch.project_step()

    # --- after an experience -------------------------------------------------------------------

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Read features; when the experience ends, extend the bases and report."""
        sites = self._sites(strategy.model)
        self.read(strategy, sites, num_workers=kwargs.get("num_workers", 0))
        if not ends_experience(strategy.experience):
            return
        self.check(strategy.experience)
        removed: dict[str, float] = {}
        for batch in self._batches or ():
            removed |= batch.removed()
        self._reports.append(
            [
                {
                    "site": site.name,
                    **self.extend(site),
                    "removed_share": removed.get(site.name, 0.0),
                }
                for site in sites
            ]
        )
        self.n_experiences_done += 1
        self._grams = {}
        for site in self._reports[-1]:
            for key in TOLD:
                publish(strategy, self, f"Projection_{key.title()}", site[key], of=site["site"])

    def read(self, strategy: Any, sites: list[ProjectionSite], *, num_workers: int) -> None:
        """Add the features of the experience's images to the sites' Gram matrices."""

        def add(site: ProjectionSite, features: Tensor) -> None:
            groups = len(site.view(site.parameter.detach()))
            new = gram(features, groups=groups)
            old = self._grams.get(site.name)
            self._grams[site.name] = new if old is None else old + new

        self.listen(strategy, sites, add, num_workers=num_workers)

    def listen(
        self,
        strategy: Any,
        sites: list[ProjectionSite],
        take: Callable[[ProjectionSite, Tensor], None],
        *,
        num_workers: int,
    ) -> None:
        """Run the drawn images through the network in full precision, its head included."""
        seed = self.seed + self.n_experiences_done
        with listen(sites, take):
            feature_pass(
                strategy,
                dataset=draw(strategy.experience, self.n_samples, seed=seed),
                classify=True,
                full_precision=True,
                num_workers=num_workers,
            )

    def check(self, experience: Any) -> None:
        """Refuse statistics of the experience that are not finite numbers."""
        number = number_of(experience)
        check_finite(list(self._grams.values()), f"the Gram matrices of experience {number}")

    def extend(self, site: ProjectionSite) -> dict[str, Any]:
        """Extend one site's bases by its Gram matrices; return what is reported of it."""
        if site.name not in self._grams:
            raise ConfigError(
                f"the place of projection site {site.name} saw no features: it is no part of the "
                "model's forward pass"
            )
        grams = self._grams[site.name]
        empty = grams.new_zeros(grams.shape[-1], 0)
        old = self.bases.get(site.name, [empty] * len(grams))
        both = [
            extend_basis(v, r, threshold=self.threshold) for v, r in zip(old, grams, strict=True)
        ]
        self.bases[site.name] = [basis for basis, _ in both]
        energies = grams.diagonal(dim1=1, dim2=2).sum(dim=1).tolist()
        total = sum(energies)
        captured = sum(e * share for e, (_, share) in zip(energies, both, strict=True))
        return {
            "size": sum(basis.shape[1] for basis, _ in both),
            "dim": grams.shape[0] * grams.shape[1],
            "captured_energy": captured / total if total else 1.0,
        }

    def _sites(self, model: nn.Module) -> list[ProjectionSite]:
        sites = list(self.sites(model))
        if not sites:
            raise ConfigError(
                f"{type(model).__name__} states no projection sites; use a module that does "
                "(adapter, LoRA, prefix, prompt), or give sites="
            )
        return sites

    # --- checkpoints ---------------------------------------------------------------------------

    @property
    def updates(self) -> dict[str, Tensor]:
        """Squared lengths of the experience's updates so far, whole and removed, by site."""
        return {
            site.name: lengths
            for batch in self._batches or ()
            for site, lengths in zip(batch.sites, batch.updates, strict=True)
        }

    @updates.setter
    def updates(self, lengths: Mapping[str, Tensor]) -> None:
        self._updates = dict(lengths)
        self._set_updates()

    def _set_updates(self) -> None:
        for batch in self._batches or ():
            for site, lengths in zip(batch.sites, batch.updates, strict=True):
                if site.name in self._updates:
                    lengths.copy_(self._updates[site.name])

    # --- what there is to tell -----------------------------------------------------------------

    @property
    def stored_floats(self) -> int:
        """Floats kept from experience to experience."""
        return sum(basis.numel() for groups in self.bases.values() for basis in groups)

    def summary(self) -> dict[str, Any]:
        """Return what the run record keeps.

        Returns:
            ``threshold``, ``where``, ``unprotected``, and ``experiences``: for each a list with
            ``site``, ``size`` k and ``dim`` d (summed over groups), ``captured_energy`` of that
            experience's features by the basis after it, and ``removed_share`` of the squared
            length of that experience's updates.
        """
        return {
            "threshold": self.threshold,
            "where": self.where,
            "unprotected": self.unprotected,
            "experiences": self._reports,
        }

    def headline(self) -> str | None:
        """Return one line about the last experience, ``None`` before the first has ended."""
        return in_a_line(self._reports[-1]) if self._reports else None


def build_gradient_projection(
    *,
    threshold: Share = 0.99,
    where: Where = "step",
    n_samples: Count | None = 256,
    seed: Seed = 0,
) -> GradientProjectionPlugin:
    """Build a :class:`GradientProjectionPlugin` for the sites that the model's modules state."""
    return GradientProjectionPlugin(threshold, where=where, n_samples=n_samples, seed=seed)
