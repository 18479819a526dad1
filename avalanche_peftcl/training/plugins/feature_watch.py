"""How far features of a few images move, of those at hand and of old ones."""

from typing import Any

import torch
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.movement import relative_movement
from avalanche_peftcl.training.feature_pass import feature_pass, shuffled
from avalanche_peftcl.training.joints import Features
from avalanche_peftcl.training.streams import is_chunk, number_of


class FeatureWatch:
    r"""Measure what a protection should let move, and what it should not.

    Some images of each experience are set aside from what bases are made of; they are trained on
    like the others, and kept for measuring alone. With :math:`F` their features, what the network
    classifies (of a network that is no :class:`~avalanche_peftcl.models.DynamicModel`: what it puts
    out, of the outputs that it had then), of a pass without augmentation in float32,

    .. math:: \lVert F' - F \rVert_F \,/\, \lVert F \rVert_F

    is measured of the experience at hand from before its training to after it, and of each earlier
    one from the end of that to now. One feature an image is stored; the images are found again
    through their experiences.

    Args:
        n_images: How many of each experience; at most half of it.

    Attributes:
        now: The images of the experience that trains, with their features before it.
        then: Those of earlier experiences, with their features when each ended.
        drifts: What was measured, by experience.

    Raises:
        ConfigError: While training, if a stream is online: it shows no image twice.
    """

    remembers: tuple[str, ...] = ("now", "then", "drifts")

    def __init__(self, n_images: int) -> None:
        self.n_images = n_images
        self.now: dict[str, Any] | None = None
        self.then: list[dict[str, Any]] = []
        self.drifts: list[dict[str, Any]] = []
        self._experiences: dict[int, Any] = {}  # by their place in `then`

    @property
    def images(self) -> list[int]:
        """Numbers of the images set aside of the experience that trains."""
        return [] if self.now is None else list(self.now["images"])

    @property
    def stored_floats(self) -> int:
        """Those of the features of earlier experiences."""
        return sum(held["features"].numel() for held in self.then)

    def begin(self, strategy: Any, *, seed: int, num_workers: int) -> None:
        """Set images aside and read them, unless a run goes on inside the experience."""
        experience = strategy.experience
        if is_chunk(experience):
            raise ConfigError(
                "watch measures images again after later experiences, and an online stream shows "
                "none twice; leave watch out"
            )
        number = number_of(experience) - 1
        if self.now is None or self.now["experience"] != number:
            size = len(experience.dataset)
            images = shuffled(size, seed=seed)[size - min(self.n_images, size // 2) :]
            self.now = {"experience": number, "images": images}
            self.now["features"] = _read(strategy, experience, images, num_workers)

    def end(self, strategy: Any, *, num_workers: int) -> dict[str, Any]:
        """Read the images of this experience and of earlier ones again; return what moved."""
        if self.now is None:
            raise ConfigError("no experience began whose images could be read again")
        after = _read(strategy, strategy.experience, self.now["images"], num_workers)
        drift = {
            "images": len(after),
            "learnt": _moved(self.now["features"], after),
            "old": [
                _moved(
                    held["features"],
                    _read(strategy, self._experience(strategy, place), held["images"], num_workers),
                )
                for place, held in enumerate(self.then)
            ],
        }
        self._experiences[len(self.then)] = strategy.experience
        self.then.append(self.now | {"features": after})
        self.now = None
        self.drifts.append(drift)
        return drift

    def _experience(self, strategy: Any, place: int) -> Any:
        """Return an earlier experience; where a run goes on, from the stream of the current one."""
        if place not in self._experiences:
            number = self.then[place]["experience"]
            self._experiences[place] = strategy.experience.origin_stream[number]
        return self._experiences[place]


def _read(strategy: Any, experience: Any, images: list[int], num_workers: int) -> Tensor:
    """Return the features of some images of an experience, ``(N, D)``, in float32 on the CPU."""
    parts: list[Tensor] = [torch.zeros(0, 0)]

    def take(batch: Features) -> None:
        parts.append(batch.features.float().cpu())

    if images:
        feature_pass(
            strategy,
            take,
            dataset=experience.dataset.subset(images),
            full_precision=True,
            num_workers=num_workers,
        )
    return torch.cat(parts[1:] or parts)


def _moved(before: Tensor, after: Tensor) -> float:
    return relative_movement(before, after[:, : before.shape[1]])
