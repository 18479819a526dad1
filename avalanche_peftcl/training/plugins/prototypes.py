"""Class means of the model's features, taken after each experience."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch.utils.data import DataLoader

from avalanche_peftcl.functional.finite import check_finite
from avalanche_peftcl.functional.precision import in_double
from avalanche_peftcl.training.classes import whole_experience


class PrototypePlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Fill the model's ``prototypes`` from one pass over the experience just trained.

    The pass runs in eval mode with the test transforms. A class met again (domain-incremental and
    online streams) keeps the mean over all its images; earlier images keep the features of the
    adapters of their time.

    The model has ``embed(images)``, ``classes`` and ``prototypes`` (a
    :class:`~avalanche_peftcl.models.PrototypeHead`).

    Raises:
        NotFiniteError: While training, if a class mean is not a finite number.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712 (``replace_fc``).
        Differs: repeated classes accumulate; sums are in float64.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return nothing; the means are in the model."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over nothing."""

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Add the experience's images to the class means."""
        model = strategy.model
        head = model.prototypes
        device = head.counts.device
        sums = in_double(torch.zeros_like(head.prototypes))
        counts = torch.zeros_like(head.counts)
        was_training = model.training
        model.eval()
        for batch in DataLoader(
            strategy.experience.dataset.eval(),
            batch_size=strategy.eval_mb_size,
            num_workers=kwargs.get("num_workers", 0),
        ):
            images, targets = batch[0].to(device), batch[1].to(device)
            task_labels = batch[-1].to(device) if len(batch) > 2 else None
            rows = model.classes.index(targets, task_labels)
            with getattr(strategy, "autocast", nullcontext)():
                features = model.embed(images)
            sums.index_add_(0, rows.to(sums.device), in_double(features))
            counts += torch.bincount(rows, minlength=len(counts))
        model.train(was_training)
        number = int(whole_experience(strategy.experience).current_experience) + 1
        check_finite([sums], f"the class means of experience {number}")
        seen = counts.nonzero()[:, 0].tolist()
        head.add(seen, sums[seen], counts[seen])
