"""The heads that are fitted instead of trained hear of each experience: class means among them."""

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_peftcl.errors import NotFiniteError
from avalanche_peftcl.models import Head
from avalanche_peftcl.training.feature_pass import Features, feature_pass, network_of
from avalanche_peftcl.training.joints import Tuning, move_heads
from avalanche_peftcl.training.streams import class_counts, number_of


class HeadPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Hand the network's fitted heads the images of each experience, once it was trained.

    They :meth:`~avalanche_peftcl.models.Head.begin` with the experience,
    :meth:`~avalanche_peftcl.models.Head.follow` its minibatches in training, for what is predicted
    meanwhile (validation, early stopping), :meth:`~avalanche_peftcl.models.Head.observe` all its
    images by a :func:`.feature_pass`, and :meth:`~avalanche_peftcl.models.Head.settle`. Features
    of earlier images are those of the modules of their time.

    A :class:`.PEFTTemplate` has one where its network has such heads. Avalanche's own strategies
    get it in ``plugins``; their model is a :class:`~avalanche_peftcl.models.DynamicModel`.

    Raises:
        NotFiniteError: While training, if what a head is fitted to is not finite numbers.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712 (``replace_fc``).
        Differs: any head; the release cannot predict classes in training.
    """

    def __init__(self) -> None:
        super().__init__()
        self._heads: list[Head] = []  # those that are fitted, from the start of an experience on

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Tell the heads of the experience's classes."""
        network: Any = network_of(strategy)
        counts = class_counts(strategy.experience)
        rows = network.classes.add(counts)
        self._heads = [head for head in network.heads if head.fitted]
        for head in self._heads:
            head.begin(rows, list(counts.values()))

    @torch.no_grad()
    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Show the heads the minibatch's features."""
        features, rows = _features_and_rows(strategy)
        for head in self._heads:
            head.follow(features, rows)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let the heads observe the experience's images, once what they hold has moved."""
        move_heads(strategy, num_workers=kwargs.get("num_workers", 0))

        def observe(batch: Features) -> None:
            rows = batch.rows
            for head in self._heads:
                head.observe(batch.features, rows)

        feature_pass(strategy, observe, num_workers=kwargs.get("num_workers", 0))
        torch.empty((), dtype=torch.int64).random_()  # a loader's seed: recorded runs drew one here
        try:
            for head in self._heads:
                head.settle()
        except NotFiniteError as error:
            raise NotFiniteError(f"experience {number_of(strategy.experience)}: {error}") from error

    def state_dict(self) -> dict[str, Any]:
        """Return what the heads hold of an experience in training; the rest is in the model."""
        held = {str(i): head.passing_state() for i, head in enumerate(self._heads)}
        return {number: state for number, state in held.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        for i, head in enumerate(self._heads):
            if str(i) in state:
                head.load_passing_state(dict(state[str(i)]))


def _features_and_rows(strategy: Any) -> tuple[Tensor, Tensor]:
    """Return what was classified in the forward pass of a training minibatch."""
    if isinstance(strategy, Tuning) and strategy.mb_rows is not None:
        return strategy.mb_features[-1].detach(), strategy.mb_rows
    network: Any = network_of(strategy)
    task_labels = strategy.mbatch[-1] if len(strategy.mbatch) > 2 else None
    return network.last_features, network.classes.index(strategy.mb_y, task_labels)
