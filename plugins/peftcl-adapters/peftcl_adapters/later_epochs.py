"""Fewer epochs from the second experience on."""

from collections.abc import Iterable
from typing import Any

from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin
from torch.optim.lr_scheduler import CosineAnnealingLR

from avalanche_peftcl.training import ends_experience


class LaterEpochsPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Trains later experiences for another number of epochs, with a schedule of that length.

    Args:
        later: Epochs of every experience but the first.
        schedules: Plugins whose cosine is to end with the epochs.
    """

    remembers = ("n_experiences_done",)

    def __init__(self, later: int, schedules: Iterable[LRSchedulerPlugin] = ()) -> None:
        super().__init__()
        self.later, self._schedules = later, list(schedules)
        self.n_experiences_done = 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Set the number of epochs."""
        if not self.n_experiences_done:
            return
        strategy.train_epochs = self.later
        for plugin in self._schedules:
            if isinstance(plugin.scheduler, CosineAnnealingLR):
                plugin.scheduler.T_max = self.later

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Count the experience, of an online stream with its last chunk."""
        self.n_experiences_done += ends_experience(strategy.experience)
