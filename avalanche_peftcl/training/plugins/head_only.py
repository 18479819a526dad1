"""Train the head alone in the first epochs of an experience."""

from collections.abc import Callable
from typing import Any

from avalanche.core import SupervisedPlugin
from torch import nn

from avalanche_peftcl.training.streams import ends_experience, is_chunk


class HeadOnlyPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Freeze everything but the head for the first epochs of every experience but the first.

    Online streams, of which each image is seen once, have no such epochs; nor has a network of
    which nothing would be left to train, such as one with a head of texts.

    Args:
        epochs: How many.
        frozen: Which parameters are frozen meanwhile, by name.

    Attributes:
        active: While false, nothing is frozen.

    Source:
        Released PEGP code JingyangQiao/PEGP f6515bf (``num_freeze_epochs``). Differs: nothing.

    Example:
        >>> HeadOnlyPlugin(3).frozen("branch.adapters.0.down.weight")
        True
    """

    remembers: tuple[str, ...] = ("n_experiences_done",)  # what is frozen follows from it

    def __init__(
        self,
        epochs: int,
        *,
        frozen: Callable[[str], bool] = lambda name: name.startswith("branch."),
    ) -> None:
        super().__init__()
        self.epochs, self.frozen = epochs, frozen
        self.n_experiences_done = 0
        self.active = True
        self._held: list[nn.Parameter] = []

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Freeze or let go."""
        self.release()
        if self.active and self.holds(strategy) and not is_chunk(strategy.experience):
            named = [(n, p) for n, p in strategy.model.named_parameters() if p.requires_grad]
            held = [p for name, p in named if self.frozen(name)]
            self._held = held if len(held) < len(named) else []
            for p in self._held:
                p.requires_grad_(False)

    def holds(self, strategy: Any) -> bool:
        """Whether the head trains alone in the epoch that begins."""
        early: bool = strategy.clock.train_exp_epochs < self.epochs
        return early and self.n_experiences_done > 0

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Let go."""
        self.release()

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Let go, where a training was interrupted."""
        self.release()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let go, where an epoch was stopped before it began; count the experience."""
        self.release()
        if ends_experience(strategy.experience):
            self.n_experiences_done += 1

    def release(self) -> None:
        """Let everything train again."""
        for p in self._held:
            p.requires_grad_(True)
        self._held = []
