"""What grows with a stream: tensors with an entry a row, and which row is whose."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_peftcl.errors import CheckpointError

MAX_CLASSES = 2**20
MASK_VALUE = -1000.0  # the host's logit of a class that may not be predicted


class Growing(nn.Module):
    """A module whose tensors grow by rows and load from any number of them.

    Attributes:
        row_tensors: Names of the parameters and buffers whose first axis are the rows.
        free_tensors: Names of buffers of any shape: they take that of what is loaded.
        statistics: Names of buffers that only learning needs. Exported files leave them out, and
            what such a file is loaded into keeps them as they are when it is new.

    Example:
        >>> class Scores(Growing):
        ...     row_tensors = ("weight",)
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.zeros(0, 4))
        >>> scores = Scores()
        >>> scores.grow(2)
        >>> scores.weight.shape
        torch.Size([2, 4])
    """

    row_tensors: tuple[str, ...] = ()
    free_tensors: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()

    def grow(self, n_rows: int) -> None:
        """Lengthen every tensor of :attr:`row_tensors` to ``n_rows``; old rows stay, new are 0."""
        missing = self.missing_statistics()
        for name, old in self._rows().items():
            if name in missing:
                continue
            new = old.new_zeros(n_rows, *old.shape[1:])
            new[: len(old)] = old.detach()
            setattr(self, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)

    def missing_statistics(self) -> list[str]:
        """Return the names of those :attr:`statistics` with an entry a row that were left out."""
        rows = self._rows()
        n_rows = max((len(t) for name, t in rows.items() if name not in self.statistics), default=0)
        return [name for name in rows if name in self.statistics and len(rows[name]) < n_rows]

    def _rows(self) -> dict[str, Tensor]:
        held = {**self._parameters, **self._buffers}
        return {name: tensor for name in self.row_tensors if (tensor := held[name]) is not None}

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        there = {n: state_dict[prefix + n] for n in self.row_tensors if prefix + n in state_dict}
        sizes = {len(tensor) for name, tensor in there.items() if name not in self.statistics}
        if len(sizes) == 1:
            n_rows = sizes.pop()
            for name, old in self._rows().items():
                size = len(there.get(name, old)) if name in self.statistics else n_rows
                if len(old) != size:
                    new = old.new_zeros(size, *old.shape[1:])
                    setattr(self, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
        for name in self.free_tensors:
            given, here = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(given, Tensor) and given.ndim == here.ndim:
                setattr(self, name, here.new_zeros(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class ClassRows(Growing):
    """Which row of a head belongs to which (task label, class) pair.

    As in Avalanche's ``MultiHeadClassifier`` a class belongs to the task label it comes with.
    Where all task labels are 0 this is one head over all classes; where a test image comes with
    a task label, only classes of that label can be predicted.

    Example:
        >>> rows = ClassRows()
        >>> rows.add([(0, 3), (0, 1)])
        [0, 1]
        >>> rows.scatter(torch.tensor([[5.0, 7.0]]))
        tensor([[-1000.,     7., -1000.,     5.]])
    """

    row_tensors = ("keys",)
    keys: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(0, 2, dtype=torch.long))
        self.num_outputs = 0
        self._labels: list[int] = []  # no graph of the network can read them from the tensor

    def __len__(self) -> int:
        return len(self.keys)

    def get_extra_state(self) -> Tensor:
        """Return the number of columns, which goes into the state dict."""
        return torch.tensor(self.num_outputs)

    def set_extra_state(self, state: Tensor) -> None:
        """Take over the number of columns.

        Raises:
            CheckpointError: If it is not that of the classes, which were loaded before.
        """
        columns, classes = int(state), self.keys[:, 1:]
        if self.keys.shape[1] != 2 or not 0 <= columns <= MAX_CLASSES:
            raise CheckpointError(
                f"a head of {columns} columns for {len(self.keys)} classes is none; there may be "
                f"{MAX_CLASSES:,}"
            )
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < columns:
            raise CheckpointError(
                f"a head of {columns} columns has classes from {int(classes.min())} to "
                f"{int(classes.max())}"
            )
        self.num_outputs = columns
        self._remember()

    @property
    def task_labels(self) -> list[int]:
        """The task labels seen, sorted."""
        return list(self._labels)

    def add(self, pairs: Iterable[tuple[int, int]]) -> list[int]:
        """Give each new ``(task label, class)`` pair a row; return the rows of all ``pairs``."""
        rows = {(t, c): r for r, (t, c) in enumerate(self.keys.tolist())}
        pairs = list(pairs)
        for pair in pairs:
            rows.setdefault(pair, len(rows))
        self.keys = torch.tensor(list(rows), dtype=torch.long, device=self.keys.device)
        self.keys = self.keys.reshape(-1, 2)
        self._remember()
        self.widen(max((c for _, c in rows), default=-1) + 1)
        return [rows[pair] for pair in pairs]

    def widen(self, num_outputs: int) -> None:
        """Make :meth:`scatter` return at least ``num_outputs`` columns."""
        self.num_outputs = max(self.num_outputs, num_outputs)

    def index(self, targets: Tensor, task_labels: Tensor | None = None) -> Tensor:
        """Return the row of each target, ``(B,)``.

        Raises:
            ValueError: If a pair has no row, or ``task_labels`` is left out and there are several.
        """
        wanted = torch.stack([self._tasks(task_labels, len(targets)), targets], dim=1)
        match = (wanted[:, None] == self.keys[None]).all(dim=2)  # (B, R)
        if not bool(match.any(dim=1).all()):
            lost = sorted(set(map(tuple, wanted[~match.any(dim=1)].tolist())))
            raise ValueError(f"no rows for (task label, class) pairs {lost}; add() them first")
        return match.int().argmax(dim=1)

    def scatter(self, logits: Tensor, task_labels: Tensor | None = None) -> Tensor:
        """Put each row's logit in the column of its class.

        Args:
            logits: ``(B, R)``.
            task_labels: ``(B,)``; ``None`` where only one task label was seen.

        Returns:
            ``(B, C)`` with ``C`` the largest class id plus 1; -1000 for classes without a row.
        """
        tasks = self._tasks(task_labels, logits.shape[0])
        allowed = tasks[:, None] == self.keys[None, :, 0]  # (B, R)
        values = logits.masked_fill(~allowed, MASK_VALUE)
        out = logits.new_full((logits.shape[0], self.num_outputs), MASK_VALUE)
        columns = self.keys[:, 1].expand(logits.shape[0], -1)
        return out.scatter_reduce(1, columns, values, "amax")

    def _remember(self) -> None:
        self._labels = sorted(set(self.keys[:, 0].tolist()))

    def _tasks(self, task_labels: Tensor | None, batch: int) -> Tensor:
        if task_labels is not None:
            return task_labels.to(self.keys.device)  # the host leaves those of a memory behind
        labels = self._labels or [0]
        if len(labels) > 1:
            raise ValueError(f"task_labels are needed: rows belong to task labels {labels}")
        return self.keys.new_full((batch,), labels[0])
