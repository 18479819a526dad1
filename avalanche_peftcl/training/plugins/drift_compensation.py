"""What was fitted to features of earlier images moves with the features."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.drift import (
    gaussian_kernel_drift,
    linear_drift,
    nearest_neighbour_drift,
    smoothed_ridge_drift,
)
from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.models import Drift, DynamicModel, Head, LinearDrift, ShiftDrift
from avalanche_peftcl.registry.ranges import Count, Penalty, Scale, Seed, Temperature
from avalanche_peftcl.training.feature_pass import draw, feature_pass, network_of
from avalanche_peftcl.training.joints import Features, KeepsFeatures
from avalanche_peftcl.training.plugins.drift_report import Fit, in_a_line
from avalanche_peftcl.training.plugins.head import HeadPlugin
from avalanche_peftcl.training.publishing import publish
from avalanche_peftcl.training.streams import ends_experience, number_of

Rule = Literal["linear", "smoothed", "nearest", "gaussian"]
_LINEAR = ("linear", "smoothed")
_HELD_OUT = 5  # each fifth image tells how well a map fits


class DriftCompensationPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Move what heads hold of earlier images to where the features of these are now.

    Before an experience is trained, from the second on, and once it was trained, features of its
    images are read, with the test transforms. From the two follows how each moving section of the
    feature has drifted, and every fitted head of the network moves by it
    (:meth:`~avalanche_peftcl.models.Head.move`), just before it observes the experience's images;
    so does what a :class:`.FeatureReplayPlugin` keeps. Heads that are trained are left
    alone. No image is kept.

    :class:`.HeadPlugin` calls it, so it acts at the right time wherever it stands among the
    plugins. Of an online stream each chunk after the first is such an experience. That makes one
    more pass over the images of an experience, two with ``n_samples``, and memory for their
    features while it trains.

    Which ``ridge`` is best depends on what is read: recipe ``"kernel"`` of NTK-CL takes 1. The
    defaults of ``tau``, ``temperature`` and ``sigma`` were not measured: temperature and sigma
    are those of HopDC and of SSIAT, on other features, and ``tau`` is ours. Features on unit norm
    lie at most 2 apart, so that a ``sigma`` of 4 moves all means nearly alike.

    Args:
        rule: ``"linear"``: :func:`.linear_drift`; ``"smoothed"``: :func:`.smoothed_ridge_drift`;
            both move means and second moments. ``"nearest"``: :func:`.nearest_neighbour_drift`;
            ``"gaussian"``: :func:`.gaussian_kernel_drift`; both move class means, and the scatter
            about them stays.
        ridge: Penalty of both linear rules, relative to the mean eigenvalue of the features' Gram.
        tau: Of ``"smoothed"``.
        temperature: Of ``"nearest"``.
        sigma: Of ``"gaussian"``, in the units of the features.
        n_samples: Images read, drawn once an experience; ``None`` reads all.
        seed: Of the draw; no global generator is touched.

    Raises:
        ConfigError: If an argument is out of range; when training begins, if the network has
            nothing that can be moved, or a fitted head that cannot.
        NotFiniteError: While training, if features are not finite numbers.

    Source:
        SLDC, arXiv 2511.09926 (smoothed); HopDC, arXiv 2602.00144 (nearest); SDC, CVPR 2020.
        Differs: for every fitted head; section by section; ``"linear"`` is of this package.

    Example:
        >>> DriftCompensationPlugin(ridge=0.1).summary()["experiences"]
        []
    """

    remembers: tuple[str, ...] = ("n_begun", "_before", "_fits", "_reports")

    def __init__(
        self,
        rule: Rule = "linear",
        *,
        ridge: float = 0.1,
        tau: float = 1.0,
        temperature: float = 0.1,
        sigma: float = 4.0,
        n_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rule not in ("linear", "smoothed", "nearest", "gaussian"):
            raise ConfigError(f"rule must be linear, smoothed, nearest or gaussian, not {rule!r}")
        if ridge < 0 or min(tau, temperature, sigma) <= 0:
            raise ConfigError(
                f"ridge={ridge} must not be negative, and tau={tau}, temperature={temperature} and "
                f"sigma={sigma} must be positive"
            )
        if n_samples is not None and n_samples < 1:
            raise ConfigError(f"n_samples must be at least 1, or None for all, not {n_samples}")
        self.rule: Rule = rule
        self.ridge, self.tau, self.temperature, self.sigma = ridge, tau, temperature, sigma
        self.n_samples, self.seed = n_samples, seed
        self.n_begun = 0
        """Experiences whose training has begun; of an online stream its chunks."""
        self._before: list[Tensor] | None = None  # of the experience in training, a section each
        self._fits: list[list[float]] = []  # of the experience so far, a section each
        self._reports: list[dict[str, Any]] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Read features of the experience's images, from the second one on."""
        movable = self._movable(strategy)
        if not self.n_begun:
            self._try(movable)
        self.n_begun += 1
        self._before = None
        if self.n_begun > 1:
            batches = self._read(strategy, num_workers=kwargs.get("num_workers", 0))
            self._before = _moving(batches, moving_sections(strategy))

    def move_heads(
        self, strategy: Any, *, trial: Collection[Head] | None = None, num_workers: int = 0
    ) -> Sequence[Features]:
        """Move what was fitted, once an experience; some heads alone for a trial inside it."""
        if self._before is None:
            return ()
        batches = self._read(strategy, num_workers=num_workers)
        sections, before = moving_sections(strategy), self._before
        after = _moving(batches, sections)
        number = number_of(strategy.experience)
        check_finite([*before, *after], f"the features of experience {number}")
        movable = [h.move for h in trial] if trial is not None else self._movable(strategy)
        parts = list(zip(sections, before, after, strict=True))
        for columns, a, b in parts:
            drift = self.drift(a, b, columns)
            for move in movable:
                move(drift)
        if trial is None:
            self._before = None
            self._report(strategy, [self._fit(a, b) for _, a, b in parts])
        return batches if self.n_samples is None else ()

    def _report(self, strategy: Any, found: "Sequence[Fit]") -> None:
        """Add up what the maps tell of; publish it where the experience ends."""
        so_far = self._fits or [Fit().values for _ in found]
        self._fits = [(Fit(old) + new).values for old, new in zip(so_far, found, strict=True)]
        number = number_of(strategy.experience)
        if ends_experience(strategy.experience):
            fits, self._fits = [Fit(values) for values in self._fits], []
            self._reports.append({"experience": number, "sections": [fit.report() for fit in fits]})
            whole = sum(fits[1:], fits[0])
            for name, value in (("Drift", whole.drift), ("Explained", whole.explained)):
                if value is not None:
                    publish(strategy, self, f"Drift_{name}", value)

    def drift(self, before: Tensor, after: Tensor, columns: slice | None = None) -> Drift:
        """Return how features moved.

        Args:
            before: Of the columns that moved, ``(N, K)``.
            after: The same images now, ``(N, K)``.
            columns: Which columns of the whole feature those are; ``None``: all.
        """
        if self.rule == "linear":
            return LinearDrift(linear_drift(before, after, ridge=self.ridge), columns)
        if self.rule == "smoothed":
            matrix = smoothed_ridge_drift(before, after, ridge=self.ridge, tau=self.tau)
            return LinearDrift(matrix, columns)
        where = slice(None) if columns is None else columns

        def move(means: Tensor) -> Tensor:
            old, moved = means[:, where], means.clone()
            if self.rule == "nearest":
                new = nearest_neighbour_drift(before, after, old, temperature=self.temperature)
            else:
                new = gaussian_kernel_drift(before, after, old, sigma=self.sigma)
            moved[:, where] = new.to(moved)
            return moved

        return ShiftDrift(move)

    def _fit(self, a: Tensor, b: Tensor) -> "Fit":
        """Return how far features moved, and what a map tells of images that it was not made of."""
        held = torch.arange(len(a), device=a.device) % _HELD_OUT == _HELD_OUT - 1
        if not bool(held.any()):
            return Fit.of(a, b)
        drift = self.drift(a[~held], b[~held])
        return Fit.of(a, b, old=a[held], new=b[held], told=drift(a[held]))

    def _read(self, strategy: Any, *, num_workers: int) -> list[Features]:
        """Return what the network makes of the drawn images."""
        batches: list[Features] = []
        drawn = draw(strategy.experience, self.n_samples, seed=self.seed + self.n_begun)
        feature_pass(strategy, batches.append, dataset=drawn, num_workers=num_workers)
        return batches

    # --- who moves -----------------------------------------------------------------------------

    def _movable(self, strategy: Any) -> list[Callable[[Drift], None]]:
        """Return how to move what was fitted: heads, then what plugins keep."""
        network = network_of(strategy)
        heads = network.heads if isinstance(network, DynamicModel) else ()
        fitted = [head for head in heads if head.fitted]
        kept = [p for p in strategy.plugins if isinstance(p, KeepsFeatures)]
        if fitted and not any(isinstance(p, HeadPlugin) for p in strategy.plugins):
            raise ConfigError(
                f"nobody hands images to the {type(fitted[0]).__name__}, and drift compensation "
                "acts just before; put a HeadPlugin() among the plugins too"
            )
        if not fitted and not kept:
            there = ", ".join(type(head).__name__ for head in heads) or "no head with rows"
            raise ConfigError(
                f"drift compensation moves what was fitted to features, and a "
                f"{type(network).__name__} has {there}; take a head that is fitted, such as "
                "'prototypes', or add the plugin 'feature_replay', or leave this plugin out"
            )
        return [*(head.move for head in fitted), *(plugin.move_features for plugin in kept)]

    def _try(self, movable: Sequence[Callable[[Drift], None]]) -> None:
        """Move by nothing, so that what cannot move refuses now."""
        still = LinearDrift(torch.eye(1), slice(0, 1))
        for move in movable:
            try:
                move(still if self.rule in _LINEAR else ShiftDrift(torch.clone))
            except ConfigError as error:
                raise ConfigError(
                    f"drift compensation moves every fitted head: {error}; or leave the plugin out"
                ) from error

    # --- what there is to tell -----------------------------------------------------------------

    @property
    def stored_floats(self) -> int:
        """Floats kept from experience to experience: none."""
        return 0 if self._before is None else sum(part.numel() for part in self._before)

    def summary(self) -> dict[str, Any]:
        r"""Return what the run record keeps.

        Returns:
            ``rule``, and ``experiences``: from the second on, ``experience``, its number, and
            ``sections``, for each ``drift``, :math:`\|b - a\| / \|a\|` over the images read, and
            ``explained``, which share of :math:`\|b - a\|^2` a map tells of a fifth of the images
            that it was not fitted to; ``None`` where nothing moved or images were fewer than five.
        """
        return {"rule": self.rule, "experiences": self._reports}

    def headline(self) -> str | None:
        """Return one line about the last experience, ``None`` before the second has ended."""
        return in_a_line(self._reports[-1]["sections"]) if self._reports else None


def _moving(batches: Sequence[Features], sections: Sequence[slice]) -> list[Tensor]:
    """Return the moving sections of features, ``(N, K)`` each."""
    return [torch.cat([b.features[:, columns].float() for b in batches]) for columns in sections]


def moving_sections(strategy: Any) -> list[slice]:
    """Return which columns of the feature that is classified move when modules train."""
    network: Any = network_of(strategy)
    moving: list[slice] = network.moving
    return moving


def build_drift_compensation(
    *,
    rule: Rule = "linear",
    ridge: Penalty = 0.1,
    tau: Scale = 1.0,
    temperature: Temperature = 0.1,
    sigma: Scale = 4.0,
    n_samples: Count | None = None,
    seed: Seed = 0,
) -> DriftCompensationPlugin:
    """Build a :class:`DriftCompensationPlugin`."""
    return DriftCompensationPlugin(
        rule,
        ridge=ridge,
        tau=tau,
        temperature=temperature,
        sigma=sigma,
        n_samples=n_samples,
        seed=seed,
    )
