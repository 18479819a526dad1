"""Contrast the features of a minibatch with each other and with old prototypes."""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional.losses import pooled_nce
from avalanche_peftcl.training.losses import add_loss
from avalanche_peftcl.training.streams import (
    class_pairs,
    starts_experience,
    stream_length,
    whole_experience,
)


class PrototypeContrastPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    r"""Add :math:`\eta\,\mathrm{NCE}` of the minibatch's features and drawn prototypes to the loss.

    The feature is the last of the strategy's ``mb_features``; prototypes are drawn anew in each
    step, without replacement.

    Args:
        weight: :math:`\eta`; negative in the release, which drives equal classes apart.
        temperature: Of the similarities.
        n_prototypes: How many are drawn, or all if there are fewer; ``None`` is the strategy's
            ``train_mb_size``, in a smaller last minibatch too.

    Raises:
        ConfigError: If ``n_prototypes`` is negative.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712. Differs: prototypes are those that
        have an image; :class:`ReleasedContrastPlugin` cuts them off as the release does.
    """

    remembers: tuple[str, ...] = ()

    def __init__(
        self, weight: float, *, temperature: float = 0.1, n_prototypes: int | None = None
    ) -> None:
        super().__init__()
        if n_prototypes is not None and n_prototypes < 0:
            raise ConfigError(f"n_prototypes must be 0 or more, or None, not {n_prototypes}")
        self.weight, self.temperature, self.n_prototypes = weight, temperature, n_prototypes

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the term to the loss."""
        features, labels = strategy.mb_features[-1].float(), strategy.mb_rows
        candidates = self.candidates(strategy)
        size = strategy.train_mb_size if self.n_prototypes is None else self.n_prototypes
        drawn = candidates[torch.randperm(len(candidates))[:size].to(candidates.device)]
        prototypes = strategy.model.prototypes.prototypes[drawn]
        loss = pooled_nce(
            torch.cat([features, prototypes]),
            torch.cat([labels, drawn]),
            temperature=self.temperature,
        )
        add_loss(strategy, "contrast", self.weight * loss)

    def candidates(self, strategy: Any) -> torch.Tensor:
        """Return the head rows whose prototypes may be drawn."""
        rows: torch.Tensor = strategy.model.prototypes.counts.nonzero()[:, 0]
        return rows


class ReleasedContrastPlugin(PrototypeContrastPlugin):
    """The term of the release: all rows but the last ``increment``, filled or not, minus sign.

    ``increment`` is the number of classes of the second experience. With a larger first one the
    rows of its first classes enter as zero vectors, as in the release.

    Source:
        Released NTK-CL code 24de712. Differs: nothing.
    """

    remembers: tuple[str, ...] = ("increment",)

    def __init__(
        self, weight: float, *, temperature: float = 0.1, n_prototypes: int | None = None
    ) -> None:
        super().__init__(-weight, temperature=temperature, n_prototypes=n_prototypes)
        self.increment = 0  # until an experience starts

    def candidates(self, strategy: Any) -> torch.Tensor:
        """Return all rows but the last ``increment``."""
        rows = len(strategy.model.classes)
        return torch.arange(max(0, rows - self.increment), device=strategy.mb_rows.device)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Read the stream's increment."""
        if starts_experience(strategy.experience):
            self.increment = increment(strategy.experience)


def increment(experience: Any) -> int:
    """Return the number of classes of the stream's second experience, or of this one."""
    whole = whole_experience(experience)
    length = stream_length(experience)
    return len(class_pairs(whole.origin_stream[1] if length and length > 1 else whole))
