"""A second stage of training one module, and what becomes of both."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.models import Branch, PEFTModel, forward_tokens

Near = Literal["tokens", "features"]


class SecondStage:
    r"""Training from old values :math:`o` near the tokens of new ones :math:`p`, and the merging.

    With :math:`q` what it ends with in experience :math:`t`, from 0, the module becomes

    .. math:: (1 - b)\,p + b\,q, \qquad b = 1 / (t + a)

    Args:
        epochs: How many; 0 for no second stage.
        offset: :math:`a`.
        share: :math:`b`, the same in every experience; ``None`` takes that above.
        near: What stays near that of :math:`p`: ``"tokens"``, those of the last block, normed, or
            ``"features"``, what the module pools, on unit norm.

    Attributes:
        old: Values from which it will start; ``None`` where there will be none.

    Source:
        Released code JingyangQiao/PEGP f6515bf (PEGP-ViT); with a share and near the features
        842bc7e and 4662b80 (on CLIP). Differs: nothing.
    """

    remembers: tuple[str, ...] = ("old",)  # none is saved while it runs

    def __init__(
        self, *, epochs: int, offset: float, share: float | None = None, near: Near = "tokens"
    ) -> None:
        self.epochs, self.offset, self.share, self.near = epochs, offset, share, near
        self.old: list[Tensor] | None = None
        self._first: list[Tensor] | None = None  # the first stage's end, while it runs

    @property
    def runs(self) -> bool:
        """Whether it runs."""
        return self._first is not None

    def remember(self, branch: Branch) -> None:
        """Take the values from which it will start."""
        self.old = _values(branch)

    def forget(self) -> None:
        """Let there be no second stage, or no more."""
        self.old = self._first = None

    def begin(self, branch: Branch) -> None:
        """Keep what the first stage ended with, and put the old values back."""
        self._first = _values(branch)
        for p, value in zip(_tuned(branch), self.old or (), strict=True):
            p.data = value
        self.old = None

    def features(self, model: PEFTModel, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the pooled feature, ``(B, D)``, and the mean squared distance of what is near."""
        with torch.no_grad(), _lent(model.branch, self._first or []):
            _, fixed = self._pass(model, images)
        torch.clear_autocast_cache()  # it holds the weights just put away
        features, live = self._pass(model, images)
        return features, F.mse_loss(live, fixed)

    def _pass(self, model: PEFTModel, images: Tensor) -> tuple[Tensor, Tensor]:
        features, tokens = forward_tokens(model.backbone, model.branch, images)
        if self.near == "features":
            return features, F.normalize(features.float(), dim=1)
        return features, model.backbone.norm(tokens)

    @torch.no_grad()
    def merge(self, branch: Branch, *, experience: int) -> None:
        """Merge what both stages ended with into the module.

        Args:
            branch: The module.
            experience: Number of the experience, from 0.
        """
        share = 1 / (experience + self.offset) if self.share is None else self.share
        for p, first in zip(_tuned(branch), self._first or [], strict=True):
            p.lerp_(first, 1 - share)


def _tuned(branch: Branch) -> list[nn.Parameter]:
    return [p for p in branch.parameters() if p.requires_grad]


def _values(branch: Branch) -> list[Tensor]:
    return [p.detach().clone() for p in _tuned(branch)]


@contextmanager
def _lent(branch: Branch, values: list[Tensor]) -> Iterator[None]:
    """Let the module's parameters have ``values`` for a while."""
    own = [p.data for p in _tuned(branch)]
    for p, value in zip(_tuned(branch), values, strict=True):
        p.data = value
    try:
        yield
    finally:
        for p, value in zip(_tuned(branch), own, strict=True):
            p.data = value
