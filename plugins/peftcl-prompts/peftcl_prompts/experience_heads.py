"""A linear classifier an experience, of which an image is shown to one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.models import Head

MASKED = -1000.0  # the core's logit of a class that may not be predicted


def by_class(logits: Tensor, numbers: Tensor, classes: Tensor, owners: Tensor) -> Tensor:
    """Return the logits of the classifier that each image is shown to, class by class.

    Args:
        logits: Of the rows of all classifiers, ``(B, N)``.
        numbers: Of the experience of each image, ``(B,)``.
        classes: Class row of each row, ``(N,)``.
        owners: Number of its experience, ``(N,)``.

    Returns:
        ``(B, R)``, -1000 for a class that was not in the image's experience.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
        >>> by_class(logits, torch.tensor([1]), torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
        tensor([[-1000.,     3.]])
    """
    logits = logits.masked_fill(numbers[:, None] != owners, MASKED)
    out = logits.new_full((len(logits), int(classes.amax()) + 1), MASKED)
    return out.scatter_reduce(1, classes.expand(len(logits), -1), logits, "amax")


class _Rows(Head):
    """Rows of classifiers: weight and bias, the class row and the experience of each."""

    row_tensors = ("weight", "bias", "classes", "owners")
    weight: Tensor
    bias: Tensor
    classes: Tensor
    owners: Tensor

    def __init__(self, in_features: int, *, trains: bool) -> None:
        super().__init__(in_features)
        for name, tensor in (("weight", torch.zeros(0, in_features)), ("bias", torch.zeros(0))):
            if trains:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        for name in ("classes", "owners"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.long))


class OfExperiences(Head):
    """A head that has something for each experience, and is told with a feature whose it is."""

    def begin_experience(self, number: int) -> None:
        """Begin what it has for an experience; the same again changes nothing.

        Args:
            number: From 0.
        """
        raise NotImplementedError


class ExperienceHeads(OfExperiences):
    r"""Logits :math:`W_t z + b_t` of the experience :math:`t` that a feature comes with.

    The last entry of a feature is the number of its experience, from 0. A class that was not in it
    has the logit -1000. Rows of earlier experiences do not train.

    Args:
        in_features: ``D + 1``.

    Example:
        >>> heads = ExperienceHeads(3)
        >>> for number, rows in enumerate([[0, 1], [1, 2]]):
        ...     heads.learn_rows(rows)
        ...     heads.begin_experience(number)
        ...     _ = nn.init.constant_(heads.current.bias, number + 1.0)
        >>> heads(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])).tolist()
        [[1.0, 1.0, -1000.0], [-1000.0, 2.0, 2.0]]
    """

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features)
        self.past = _Rows(in_features - 1, trains=False)
        self.current = _Rows(in_features - 1, trains=True)
        self._begins: list[int] = []

    def learn_rows(self, rows: Sequence[int]) -> None:
        """Hear the rows of the classes of the experience that begins."""
        self._begins = list(rows)

    @torch.no_grad()
    def begin_experience(self, number: int) -> None:
        """Begin the classifier of an experience, at zero."""
        past, now = self.past, self.current
        if len(now.owners) and int(now.owners[0]) == number:
            return
        known, size = len(past.owners), len(now.owners)
        past.grow(known + size)
        for name in now.row_tensors:
            past.get_buffer(name)[known:] = getattr(now, name)
        fresh = self.current = _Rows(self.in_features - 1, trains=True).to(now.weight)
        fresh.grow(len(self._begins))
        fresh.classes[:] = torch.tensor(self._begins).to(fresh.classes)
        fresh.owners.fill_(number)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits: ``(B, D + 1)`` to ``(B, R)``."""
        parts = (self.past, self.current)
        weight, bias, classes, owners = (
            torch.cat([getattr(part, name) for part in parts]) for name in self.past.row_tensors
        )
        logits = F.linear(features[:, :-1], weight.to(features), bias.to(features))  # (B, N)
        return by_class(logits, features[:, -1].round(), classes, owners)
