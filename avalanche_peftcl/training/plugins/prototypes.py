"""Class means of the model's features, taken after each experience."""

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.functional.precision import in_double
from avalanche_peftcl.models.heads.running_means import RunningClassMeans
from avalanche_peftcl.training.feature_pass import Features, feature_pass
from avalanche_peftcl.training.joints import Tuning
from avalanche_peftcl.training.streams import class_counts, number_of


class PrototypePlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Fill the model's ``prototypes`` from one pass over the experience just trained.

    The pass runs in eval mode with the test transforms. A class met again (domain-incremental and
    online streams) keeps the mean over all its images; earlier images keep the features of the
    adapters of their time.

    While an experience trains, running means of the minibatches' features stand for those that
    the pass will take, so that what is predicted meanwhile (validation, early stopping) is on the
    scale of the prototypes and near what the experience ends with.

    The model has ``embed(images)``, ``classes`` and ``prototypes`` (a
    :class:`~avalanche_peftcl.models.PrototypeHead`).

    Raises:
        NotFiniteError: While training, if a class mean is not a finite number.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712 (``replace_fc``).
        Differs: repeated classes accumulate; sums are in float64; the release cannot predict
        classes in training.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running: RunningClassMeans | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the running means of an experience; prototypes are in the model."""
        if self.running is None:
            return {}
        return {"seen": self.running.seen.clone(), "means": self.running.means.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        if self.running is not None and state:
            self.running.seen.copy_(state["seen"])
            self.running.means.copy_(state["means"])

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin the running means of the experience's classes."""
        counts = class_counts(strategy.experience)
        rows = strategy.model.classes.add(counts)
        self.running = strategy.model.prototypes.begin(rows, list(counts.values()))

    @torch.no_grad()
    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Take in the minibatch's features."""
        if self.running is None:
            return
        if isinstance(strategy, Tuning) and strategy.mb_rows is not None:
            self.running.update(strategy.mb_features[-1].detach(), strategy.mb_rows)
        elif (features := strategy.model.last_features) is not None:
            labels = strategy.mbatch[-1] if len(strategy.mbatch) > 2 else None
            rows = strategy.model.classes.index(strategy.mb_y, labels)
            self.running.update(features, rows)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Add the experience's images to the class means."""
        head = strategy.model.prototypes
        sums = in_double(torch.zeros_like(head.prototypes))
        counts = torch.zeros_like(head.counts)

        def add(batch: Features) -> None:
            sums.index_add_(0, batch.rows.to(sums.device), in_double(batch.features))
            counts.add_(torch.bincount(batch.rows, minlength=len(counts)))

        feature_pass(strategy, add, num_workers=kwargs.get("num_workers", 0))
        torch.empty((), dtype=torch.int64).random_()  # a loader's seed: recorded runs drew one here
        check_finite([sums], f"the class means of experience {number_of(strategy.experience)}")
        seen = counts.nonzero()[:, 0].tolist()
        head.add(seen, sums[seen], counts[seen])
        self.running = None
