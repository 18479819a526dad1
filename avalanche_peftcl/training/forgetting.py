"""Taking an experience out again of the heads that were fitted to it."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from avalanche_peftcl.errors import ConfigError, PEFTCLError
from avalanche_peftcl.models import DynamicModel, Head
from avalanche_peftcl.training.feature_pass import feature_pass, network_of
from avalanche_peftcl.training.joints import Features


@torch.no_grad()
def forget_experience(strategy: Any, experience: Any, *, num_workers: int = 0) -> None:
    """Let the fitted heads forget an experience, as if its images had never been observed.

    Its images run through the network once (:func:`.feature_pass`) and are taken out of what the
    heads hold. Exact, up to rounding, where features are what they were when they were observed:
    for networks that are frozen, or have not been trained nor moved since. What was trained by
    gradients keeps what it learnt; rows of classes stay, and where no image is left are predicted
    no more.

    Args:
        strategy: Any Avalanche strategy with a :class:`~avalanche_peftcl.models.DynamicModel`.
        experience: As it was trained; each image was observed once.
        num_workers: Processes that load images.

    Raises:
        ConfigError: If no head is fitted, one keeps nothing that an image can be taken out of, or
            images were not observed. The heads stay as they were.

    Example:
        >>> from avalanche_peftcl.models import RidgeHead
        >>> from avalanche_peftcl.testing import toy_backbone, toy_benchmark
        >>> from avalanche_peftcl.training.closed_form import build_closed_form
        >>> strategy = build_closed_form(backbone=toy_backbone(), head=RidgeHead)
        >>> stream = toy_benchmark("class").train_stream
        >>> for experience in stream:
        ...     _ = strategy.train(experience)
        >>> forget_experience(strategy, stream[0])
        >>> strategy.model.head.counts.tolist()
        [0, 0, 6, 6, 6, 6]
    """
    network = network_of(strategy)
    heads: list[Head] = []
    if isinstance(network, DynamicModel):
        heads = [head for head in network.heads if head.fitted]
    if not heads:
        raise ConfigError(
            "there is nothing that could forget an experience: no head of the network is fitted; "
            "take a head such as 'ridge'"
        )

    def remove(batch: Features) -> None:
        rows = batch.rows
        for head in heads:
            head.remove(batch.features, rows)

    before = [_copy(head) for head in heads]
    try:
        feature_pass(strategy, remove, dataset=experience.dataset, num_workers=num_workers)
        for head in heads:
            head.settle()
    except (PEFTCLError, ValueError):
        for head, state in zip(heads, before, strict=True):
            with suppress(PEFTCLError):
                head.settle()  # what was taken out and is not settled goes with it
            head.load_state_dict(state)
        raise


def _copy(head: Head) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in head.state_dict().items()}
