"""What is read of a kernel at one time, and what two readings say of the training between."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from avalanche_peftcl.evaluation.ntk_probes import Probes, rows_that_count, targets_by_row
from avalanche_peftcl.functional.kernel_measures import kernel_drift


class Reading(NamedTuple):
    """What is computed of images, with the weights of that moment; float64, on the CPU.

    Attributes:
        outputs: ``(n, R)``.
        kernel: ``(n, n)``, of form ``"logit"`` ``(n R, n R)``.
        per_image: Rows of the kernel an image.
    """

    outputs: Tensor
    kernel: Tensor
    per_image: int

    def targets(self, wanted: Tensor) -> Tensor:
        """Return ``(n, R)`` as the kernel's rows have it."""
        return wanted.reshape(-1, 1) if self.per_image > 1 else wanted

    def split(self, sizes: Sequence[int]) -> list["Reading"]:
        """Return the reading of each of the sets of images that stand one after the other."""
        parts, first = [], 0
        for size in sizes:
            rows = slice(first * self.per_image, (first + size) * self.per_image)
            outputs = self.outputs[first : first + size]
            parts.append(Reading(outputs, self.kernel[rows, rows], self.per_image))
            first += size
        return parts

    def plain(self) -> dict[str, Any]:
        """Return what a checkpoint can hold, and :func:`drift_between` needs."""
        return {"kernel": self.kernel.clone(), "per_image": self.per_image}


def drift_between(now: Reading, then: Mapping[str, Any]) -> float | None:
    """Return how far a kernel moved, over the images of both and the rows that there were then.

    Args:
        now: Of images of which ``then`` has the first, or that has the first of those.
        then: What :meth:`Reading.plain` returned.
    """
    rows, before = now.per_image, then["per_image"]
    n = min(len(now.kernel) // rows, len(then["kernel"]) // before)

    def common(kernel: Tensor, per_image: int) -> Tensor:
        size = len(kernel) // per_image
        blocks = kernel.reshape(size, per_image, size, per_image)[:n, :before, :n, :before]
        return blocks.reshape(n * before, n * before)

    return finite(kernel_drift(common(now.kernel, rows), common(then["kernel"], before)))


def measured_forgetting(
    strategy: Any,
    begun: Mapping[str, Any],
    probes: Mapping[int, Probes],
    ends: Mapping[int, Reading],
) -> list[dict[str, Any]]:
    """Return how far the logits of each earlier experience moved, and should have moved.

    Args:
        strategy: After the training.
        begun: What was read and predicted before it.
        probes: Images of each experience.
        ends: Their reading now.
    """
    found, place = [], 0
    for each in begun["old"]:
        some, n = probes[each], len(probes[each].images)
        outputs = begun["outputs"][place : place + n]
        n_rows = outputs.shape[1]
        counts = rows_that_count(strategy, some, n_rows)
        error = (targets_by_row(strategy, some, n_rows) - outputs) * counts
        changes = {
            "predicted": begun["change"][place : place + n] * counts,
            "measured": (ends[each].outputs[:, :n_rows] - outputs) * counts,
        }
        entry: dict[str, Any] = {"experience": each, "after": begun["experience"]}
        for name, change in changes.items():
            entry[name] = float(change.square().sum(dim=1).mean().sqrt())
            loss = (error - change).square().sum(dim=1) - error.square().sum(dim=1)
            entry[f"{name}_loss"] = float(loss.mean() / 2)
        found.append(entry)
        place += n
    return found


def squared_errors(strategy: Any, probes: Probes, outputs: Tensor) -> Tensor:
    """Return the squared distance of each image's outputs from its target, ``(n,)``."""
    counts = rows_that_count(strategy, probes, outputs.shape[1])
    error = (targets_by_row(strategy, probes, outputs.shape[1]) - outputs) * counts
    return error.square().sum(dim=1)


def finite(value: float) -> float | None:
    """Return a number that JSON can hold, or ``None``."""
    return value if math.isfinite(value) else None
