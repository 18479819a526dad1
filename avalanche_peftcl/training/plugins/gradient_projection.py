"""Keep parameters from moving along the features of earlier experiences."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.projection.site_batch import (
    SiteBatch,
    batch_sites,
    lengths_of,
    set_lengths,
)
from avalanche_peftcl.models.projection.sites import ProjectionSite, projection_sites
from avalanche_peftcl.registry.ranges import Count, CountOrNone, Seed, Share
from avalanche_peftcl.training.plugins.feature_watch import FeatureWatch
from avalanche_peftcl.training.plugins.projection_report import in_a_line, tell, tell_drift
from avalanche_peftcl.training.plugins.projection_rules import (
    Rule,
    empty_bases,
    make_rule,
    n_floats,
)
from avalanche_peftcl.training.plugins.site_statistics import (
    SiteStatistics,
    found_sites,
    read_sites,
    without_site,
)
from avalanche_peftcl.training.streams import ends_experience, number_of, starts_experience

Where = Literal["gradient", "step"]


class GradientProjectionPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    r"""Remove from each update the part that would change what old features give.

    After an experience the features :math:`X` of every projection site are read from some of its
    images, and the site's orthonormal basis :math:`V` is extended until it holds a share
    ``threshold`` of their energy. From then on

    .. math:: \Delta W' = \Delta W - \alpha\, (\Delta W\, V) V^\top

    With ``rule="ratio"`` :math:`V` is chosen before each experience instead, as all directions but
    those that its features need most and old ones least, see
    :func:`~avalanche_peftcl.functional.ratio_directions`.

    With ``where="step"``, ``threshold=1`` and ``strength=1`` the old features of all sites stay as
    they are to rounding, and what the network computes of them too, whatever the optimizer: of the
    images that were read, where the sites' conditions are exact (those of prompts by default are
    not, see :class:`~avalanche_peftcl.models.PromptTokens`) and nothing else trains. Something can
    be learnt then only where the old features do not span everything; a smaller threshold gives up
    some of the protection for it.

    Works with any Avalanche strategy, for every module that states its sites, see
    :func:`~avalanche_peftcl.models.projection_sites`. Parameters without a site are not touched;
    :attr:`unprotected` names those that train.

    Args:
        threshold: Share of the old features' energy that is protected, in [0, 1].
        rule: ``"energy"``, or ``"ratio"``, which takes ``kept`` for a threshold.
        centred: Count the energy of features less the mean of their experience, and protect that
            mean before anything else; otherwise a mean that holds most of the energy may be all
            that is protected. What has one dimension, biases and scales, is then held whatever
            the threshold.
        kept: Of rule ``"ratio"``: share of a site's directions that stay open, rounded down, so
            that biases and scales are held unless it is 1. Of an online stream they are chosen by
            the first chunk. Keeps :math:`D^2` floats a group of a site.
        strength: :math:`\alpha` in [0, 1], what is removed of the component: 1 all, 0 nothing.
        where: ``"step"`` projects the change that the optimizer made, weight decay and momentum
            included; ``"gradient"`` the gradient before it (and before the clipping of
            :class:`~avalanche_peftcl.training.PEFTTemplate`, which only scales).
        n_samples: Images read after an experience, drawn once; ``None`` reads all. Of an online
            stream each chunk gives its share while it is there, and no image is kept.
        watch: Images an experience that no basis is made of, at most half of it, held to measure
            how far their features move, see :class:`.FeatureWatch`. Each costs a pass before its
            experience and one after it and after each later one. Not of online streams.
        seed: Of the draw; no global generator is touched.
        log_sites: Whether the host's loggers hear of each site beside the three values of all,
            which :meth:`summary` has in any case.
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
        Projection Memory, ICLR 2021. Released code JingyangQiao/PEGP f6515bf. Strengths below 1:
        DGS, CVPR 2026; rule ``"ratio"``: LoDA, arXiv 2603.00191.
        Differs: features are tokens, by default uncentred, read in float32 with the test
        transforms; energy is that of the features, not its square; the step is projected, for with
        Adam a step of projected gradients leaves the subspace; scales and biases have sites too.
        For the release see :class:`ReleasedProjectionPlugin`.

    Example:
        >>> plugin = GradientProjectionPlugin(0.99, where="step", n_samples=200)
        >>> plugin.summary()["experiences"]
        []
    """

    remembers: tuple[str, ...] = (
        *("bases", "unprotected", "n_experiences_done"),
        *("_statistics", "_rule", "_watch", "updates", "_reports"),
    )

    def __init__(
        self,
        threshold: float = 0.99,
        *,
        rule: Rule = "energy",
        centred: bool = False,
        kept: float = 0.5,
        strength: float = 1.0,
        where: Where = "step",
        n_samples: int | None = 256,
        watch: int = 0,
        seed: int = 0,
        log_sites: bool = False,
        sites: Callable[[nn.Module], Iterable[ProjectionSite]] = projection_sites,
    ) -> None:
        super().__init__()
        self._rule = make_rule(rule, threshold=threshold, centred=centred, kept=kept)
        if not 0 <= strength <= 1:
            raise ConfigError(f"strength must be in [0, 1], not {strength}")
        if where not in ("gradient", "step"):
            raise ConfigError(f"where must be gradient or step, not {where!r}")
        if n_samples is not None and n_samples < 1:
            raise ConfigError(f"n_samples must be at least 1, or None for all, not {n_samples}")
        if watch < 0:
            raise ConfigError(f"watch must be a number of images, 0 for none, not {watch}")
        self.threshold, self.where, self.n_samples, self.seed = threshold, where, n_samples, seed
        self.strength, self.sites, self.log_sites = strength, sites, log_sites
        self.active = True
        self.bases: dict[str, list[Tensor]] = {}
        self.unprotected: list[str] = []
        self.n_experiences_done = 0
        self._statistics = SiteStatistics()  # of the experience so far
        self._watch = FeatureWatch(watch) if watch else None
        self._batches: list[SiteBatch] | None = None  # of the experience that trains
        self._updates: dict[str, Tensor] = {}  # of the batches, as loaded
        self._reports: list[list[dict[str, Any]]] = []

    # --- while an experience trains ------------------------------------------------------------

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Look up the sites' parameters, which may have been replaced; read ahead if asked to."""
        starts = starts_experience(strategy.experience)
        if not starts and self._batches is not None:
            return
        sites = found_sites(strategy.model, self.sites)
        self.unprotected = without_site(strategy.model, sites)
        if starts:
            self._read_ahead(strategy, sites, num_workers=kwargs.get("num_workers", 0))
        self._batches = batch_sites(sites, self.bases, strength=self.strength)
        if not starts:  # a run goes on inside a cut experience
            set_lengths(self._batches, self._updates)

    def _read_ahead(self, strategy: Any, sites: list[ProjectionSite], *, num_workers: int) -> None:
        """Take from the experience's images what is wanted before they are trained on."""
        number = self.n_experiences_done
        if self._watch is not None:
            self._watch.begin(strategy, seed=self.seed + number, num_workers=num_workers)
        if self._rule.wants(number):
            self.read(strategy, sites, num_workers=num_workers)
            self.check(strategy.experience)
            self.bases = self._rule.before(self._statistics, number)
            self._statistics.clear()

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
        sites = found_sites(strategy.model, self.sites)
        self.read(strategy, sites, num_workers=kwargs.get("num_workers", 0))
        if not ends_experience(strategy.experience):
            return
        self.check(strategy.experience)
        removed: dict[str, float] = {}
        for batch in self._batches or ():
            removed |= batch.removed()
        reports = [self.extend(site) for site in sites]
        for site, report in zip(sites, reports, strict=True):
            report |= {"site": site.name, "removed_share": removed.get(site.name, 0.0)}
        tell(strategy, self, reports, log_sites=self.log_sites)
        self._reports.append(reports)
        self.n_experiences_done += 1
        self._statistics.clear()
        if self._watch is not None:
            drift = self._watch.end(strategy, num_workers=kwargs.get("num_workers", 0))
            tell_drift(strategy, self, drift)

    def read(self, strategy: Any, sites: list[ProjectionSite], *, num_workers: int) -> None:
        """Add the features of the experience's images to the sites' statistics."""
        self.listen(strategy, sites, self._statistics.add, num_workers=num_workers)

    def listen(
        self,
        strategy: Any,
        sites: list[ProjectionSite],
        take: Callable[[ProjectionSite, Tensor], None],
        *,
        num_workers: int,
    ) -> None:
        """Run the drawn images through the network in full precision, its head included."""
        read_sites(
            strategy,
            sites,
            take,
            n_samples=self.n_samples,
            seed=self.seed + self.n_experiences_done,
            without=() if self._watch is None else self._watch.images,
            num_workers=num_workers,
        )

    def check(self, experience: Any) -> None:
        """Refuse statistics of the experience that are not finite numbers."""
        self._statistics.check_finite(number_of(experience))

    def extend(self, site: ProjectionSite) -> dict[str, Any]:
        """Let the rule make one site's bases anew; return what is reported of it."""
        self._statistics.check_seen(site)
        grams = self._statistics.grams[site.name]
        bases = self.bases.get(site.name, empty_bases(grams))
        bases, captured = self._rule.after(site.name, bases, self._statistics)
        self.bases[site.name] = bases
        return {
            "size": sum(basis.shape[1] for basis in bases),
            "dim": grams.shape[0] * grams.shape[1],
            "captured_energy": captured,
        }

    # --- checkpoints ---------------------------------------------------------------------------

    @property
    def updates(self) -> dict[str, Tensor]:
        """Squared lengths of the experience's updates so far, whole and removed, by site."""
        return lengths_of(self._batches or ())

    @updates.setter
    def updates(self, lengths: Mapping[str, Tensor]) -> None:
        self._updates = dict(lengths)
        set_lengths(self._batches or (), self._updates)

    # --- what there is to tell -----------------------------------------------------------------

    @property
    def stored_floats(self) -> int:
        """Floats kept from experience to experience."""
        watched = 0 if self._watch is None else self._watch.stored_floats
        return n_floats(self.bases) + self._rule.stored_floats + watched

    def summary(self) -> dict[str, Any]:
        """Return what the run record keeps.

        Returns:
            The arguments ``rule``, ``threshold`` and ``centred`` or ``kept``, ``strength``,
            ``where``; ``unprotected``; ``experiences``: for each a list with ``site``, ``size`` k
            and ``dim`` d (summed over groups), ``captured_energy`` of that experience's features by
            the basis after it (of rule ``"ratio"``: of earlier experiences by what was held in it),
            and ``removed_share`` of the squared length of that experience's updates; and
            ``watched_drift``: for each with ``images``, how far their features moved in it
            (``learnt``) and how far those of each earlier experience since its end (``old``).
        """
        return {
            **self._rule.settings(),
            "strength": self.strength,
            "where": self.where,
            "unprotected": self.unprotected,
            "experiences": self._reports,
            "watched_drift": [] if self._watch is None else self._watch.drifts,
        }

    def headline(self) -> str | None:
        """Return one line about the last experience, ``None`` before the first has ended."""
        if not self._reports:
            return None
        drifts = [] if self._watch is None else self._watch.drifts
        return in_a_line(self._reports[-1], drifts[-1] if drifts else None)


def build_gradient_projection(
    *,
    threshold: Share = 0.99,
    rule: Rule = "energy",
    centred: bool = False,
    kept: Share = 0.5,
    strength: Share = 1.0,
    where: Where = "step",
    n_samples: Count | None = 256,
    watch: CountOrNone = 0,
    seed: Seed = 0,
    log_sites: bool = False,
) -> GradientProjectionPlugin:
    """Build a :class:`GradientProjectionPlugin` for the sites that the model's modules state."""
    return GradientProjectionPlugin(
        threshold,
        rule=rule,
        centred=centred,
        kept=kept,
        strength=strength,
        where=where,
        n_samples=n_samples,
        watch=watch,
        seed=seed,
        log_sites=log_sites,
    )
