"""What the heads that are fitted take from each experience, class means among it."""

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from avalanche_peftcl.errors import NotFiniteError
from avalanche_peftcl.models import Head
from avalanche_peftcl.training.feature_pass import Features, feature_pass
from avalanche_peftcl.training.joints import Tuning
from avalanche_peftcl.training.streams import class_counts, number_of


class PrototypePlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Let the model's fitted heads observe the experience just trained, in one pass over it.

    The pass runs in eval mode with the test transforms. A class met again (domain-incremental and
    online streams) keeps the mean over all its images; earlier images keep the features of the
    adapters of their time.

    While an experience trains, running means of the minibatches' features stand for those that
    the pass will take, so that what is predicted meanwhile (validation, early stopping) is on the
    scale of the prototypes and near what the experience ends with.

    The model is a :class:`~avalanche_peftcl.models.DynamicModel`.

    Raises:
        NotFiniteError: While training, if a class mean is not a finite number.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712 (``replace_fc``).
        Differs: repeated classes accumulate; sums are in float64; the release cannot predict
        classes in training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[Head] = []

    def state_dict(self) -> dict[str, Any]:
        """Return what the heads hold of an experience in training; the rest is in the model."""
        return {name: value for head in self.heads for name, value in head.passing_state().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        for head in self.heads:
            head.load_passing_state(dict(state))

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Tell the heads that are fitted of the experience's classes."""
        counts = class_counts(strategy.experience)
        rows = strategy.model.classes.add(counts)
        self.heads = [head for head in strategy.model.heads if head.fitted]
        for head in self.heads:
            head.begin(rows, list(counts.values()))

    @torch.no_grad()
    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Show the heads the minibatch's features."""
        if isinstance(strategy, Tuning) and strategy.mb_rows is not None:
            features, rows = strategy.mb_features[-1].detach(), strategy.mb_rows
        elif (features := strategy.model.last_features) is not None:
            labels = strategy.mbatch[-1] if len(strategy.mbatch) > 2 else None
            rows = strategy.model.classes.index(strategy.mb_y, labels)
        for head in self.heads:
            head.follow(features, rows)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let the heads observe the experience's images."""

        def observe(batch: Features) -> None:
            for head in self.heads:
                head.observe(batch.features, batch.rows)

        feature_pass(strategy, observe, num_workers=kwargs.get("num_workers", 0))
        torch.empty((), dtype=torch.int64).random_()  # a loader's seed: recorded runs drew one here
        try:
            for head in self.heads:
                head.settle()
        except NotFiniteError as error:
            raise NotFiniteError(f"experience {number_of(strategy.experience)}: {error}") from error
