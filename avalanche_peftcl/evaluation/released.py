"""Beside the accuracy: the number that released code of methods on CLIP reports in its place."""

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from avalanche_peftcl.evaluation.accuracy_matrix import full_stream, trained_experience
from avalanche_peftcl.functional.released_accuracy import released_accuracy
from avalanche_peftcl.registry.ranges import MinibatchSize

Summary = dict[str, Any]


class ReleasedAccuracyMetric(PluginMetric[Summary]):
    """Compute the accuracy that a test set in order of classes leaks the task into.

    It is what published tables of methods on CLIP hold, to be compared with these alone; see
    :func:`~avalanche_peftcl.functional.released_accuracy.released_accuracy`. Test images of the
    experiences that were trained are taken in the order of the evaluation, in minibatches of their
    own. The summary has the accuracy over all classes seen, of the same images, beside it.

    Of class-incremental streams; where experiences share classes nothing is cut.

    Args:
        batch_size: Images a minibatch of the released evaluation.
        stream_name: The stream whose evaluations are recorded.

    Source:
        Released code of arXiv 2405.13383 on CLIP, JingyangQiao/PEGP 4662b80 and 842bc7e.
        Differs: nothing.

    Example:
        >>> ReleasedAccuracyMetric().summary()
        {'batch_size': 32, 'with_leaked_task': [], 'over_all_seen': []}
    """

    def __init__(self, *, batch_size: int = 32, stream_name: str = "test") -> None:
        super().__init__()
        self.batch_size, self.stream_name = batch_size, stream_name
        self.reset()

    def reset(self) -> None:
        """Forget the run."""
        self._row: int | None = None  # of the experience last trained
        self._found: dict[int, tuple[float, float]] = {}  # by row, with and without the leak
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        """Return what is recorded."""
        return {"row": self._row, "found": {k: list(v) for k, v in self._found.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._row = state["row"]
        self._found = {int(k): (v[0], v[1]) for k, v in state["found"].items()}

    def summary(self) -> Summary:
        """Return both numbers after each experience that was evaluated."""
        rows = sorted(self._found)
        return {
            "batch_size": self.batch_size,
            "with_leaked_task": [self._found[row][0] for row in rows],
            "over_all_seen": [self._found[row][1] for row in rows],
        }

    def result(self) -> Summary:
        """Return :meth:`summary`."""
        return self.summary()

    def before_training_exp(self, strategy: Any) -> None:
        """Note the row."""
        self._row = int(trained_experience(strategy).current_experience)

    def before_eval(self, strategy: Any) -> None:
        """Begin an evaluation."""
        self._parts = []

    def after_eval_iteration(self, strategy: Any) -> None:
        """Predict a minibatch among the classes up to each experience."""
        experience = strategy.experience
        number = int(experience.current_experience)
        ours = experience.origin_stream.name == self.stream_name
        if not ours or self._row is None or number > self._row:
            return
        logits, targets = strategy.mb_output.detach(), strategy.mb_y.cpu()
        allowed = logits.new_zeros(logits.shape[1], dtype=torch.bool)
        predictions = []
        for each in full_stream(experience)[: self._row + 1]:
            known = [c for c in each.classes_in_this_experience if c < len(allowed)]
            allowed[known] = True
            predictions.append(logits.masked_fill(~allowed, -torch.inf).argmax(dim=1).cpu())
        self._parts.append(
            (torch.stack(predictions, dim=1), targets, torch.full_like(targets, number))
        )

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Emit the number, under a name that says what it is."""
        if not self._parts or self._row is None:
            return []
        predictions, targets, experiences = (
            torch.cat(part) for part in zip(*self._parts, strict=True)
        )
        self._parts = []
        leaked = released_accuracy(predictions, targets, experiences, batch_size=self.batch_size)
        plain = float((predictions[:, -1] == targets).double().mean())
        self._found[self._row] = leaked, plain
        name = f"Released_Accuracy_With_Leaked_Task/eval_phase/{self.stream_name}_stream"
        return [MetricValue(self, name, leaked, strategy.clock.train_iterations)]

    def __str__(self) -> str:
        return "Released_Accuracy_With_Leaked_Task"


def released_accuracy_metrics(*, batch_size: MinibatchSize = 32) -> ReleasedAccuracyMetric:
    """Build the metric; ``batch_size`` is that of the released evaluation, not of this run's."""
    return ReleasedAccuracyMetric(batch_size=batch_size)
