"""Which classes the loss of a strategy compares."""

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from avalanche_peftcl.errors import ConfigWarning
from avalanche_peftcl.models.heads.rows import MASK_VALUE

LossOver = Literal["local", "seen"]


class LocalLoss:
    """Part of a strategy: a loss over the classes at hand, and what metrics of training see of it.

    Attributes:
        loss_over: Classes that the loss compares: ``"seen"``, all so far (of the image's task
            label), or ``"local"``, those of the experience and of the minibatch. Metrics of
            training see the logits of these, -1000 for the others.
        one_class_advice: The way out where there is one class at hand, whose loss is constant.
    """

    loss_over: LossOver
    one_class_advice = 'take loss="seen", or give an experience several classes'
    _told_of_one_class = False
    _present: Tensor | None = None  # rows at hand in the current minibatch

    # of the strategy
    network: Any
    current_rows: list[int]
    mb_y: Tensor
    mb_rows: Tensor | None
    mb_row_logits: Tensor | None
    _criterion: Callable[..., Tensor]
    _task_labels: Callable[[], Tensor | None]

    def class_loss(self, row_logits: Tensor) -> Tensor:
        """Return the loss of the current minibatch over the classes that :attr:`loss_over` says.

        Args:
            row_logits: ``(B, R)``, a logit a head row.
        """
        if self.loss_over == "local":
            return self.local_loss(row_logits)
        by_class = self.network.classes.scatter(row_logits, self._task_labels())
        loss: Tensor = self._criterion(by_class, self.mb_y)
        return loss

    def local_loss(self, row_logits: Tensor) -> Tensor:
        """Return the loss over the classes at hand: those of the experience and of the minibatch.

        Args:
            row_logits: ``(B, R)``, a logit a head row.
        """
        present = self._present = self._at_hand(row_logits)
        place = present.cumsum(0) - 1  # where a present row stands among them
        compared = row_logits[:, present].float()  # (B, those at hand)
        if compared.shape[1] == 1 and not self._told_of_one_class:
            self._told_of_one_class = True
            warnings.warn(
                f"{type(self).__name__} compares the classes at hand, and there is one: its "
                f"classification loss is constant; {self.one_class_advice}",
                ConfigWarning,
                stacklevel=2,
            )
        loss: Tensor = self._criterion(compared, place[self.mb_rows])
        return loss

    def _at_hand(self, row_logits: Tensor) -> Tensor:
        """Return which rows are of classes at hand, ``(R,)``."""
        present = torch.zeros(row_logits.shape[1], dtype=torch.bool, device=row_logits.device)
        present[self.current_rows] = True
        present[self.mb_rows] = True
        return present

    def _show_compared(self) -> None:
        """Let ``mb_output`` hold what the loss compares, as metrics are to see it.

        Plugins that add to the loss (distillation) have seen the logits of all classes.
        """
        if self.loss_over == "local" and self.mb_row_logits is not None:
            rows = self.mb_row_logits.detach()
            present = self._at_hand(rows) if self._present is None else self._present
            rows = rows.masked_fill(~present, MASK_VALUE)
            self.mb_output = self.network.classes.scatter(rows, self._task_labels())
            self._present = None
