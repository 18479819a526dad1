"""Images that a kernel is measured of, and what is wanted of the logits of each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avalanche_peftcl.evaluation.accuracy_matrix import full_stream, streams_beside
from avalanche_peftcl.models import DynamicModel
from avalanche_peftcl.registry.offers import StrategyOffers


class Probes(NamedTuple):
    """Some images of an experience, with the transforms of the test images.

    Attributes:
        images: ``(n, 3, H, W)``.
        targets: ``(n,)``.
        task_labels: ``(n,)``.
    """

    images: Tensor
    targets: Tensor
    task_labels: Tensor


def network_of(strategy: Any) -> nn.Module:
    """Return the network, out of what ``torch.compile`` may have put around it."""
    network: nn.Module = strategy.model
    while (inner := dict(network.named_children()).get("_orig_mod")) is not None:
        network = inner
    return network


def read_probes(experience: Any, numbers: Sequence[int], device: torch.device) -> Probes:
    """Return images of an experience with the transforms of test images."""
    data = experience.dataset.subset(list(numbers)).eval()
    rows = [data[i] for i in range(len(data))]
    images = torch.stack([row[0] for row in rows]).to(device)
    tasks = torch.tensor([int(row[-1]) if len(row) > 2 else 0 for row in rows])
    return Probes(images, torch.tensor([int(row[1]) for row in rows]), tasks)


def _keys(strategy: Any, n_rows: int) -> Tensor:
    """Return task label and class of each row, ``(R, 2)``; of other networks a row is a class."""
    network = network_of(strategy)
    if isinstance(network, DynamicModel):
        return network.classes.keys[:n_rows].cpu()
    return torch.stack([torch.zeros(n_rows).long(), torch.arange(n_rows)], dim=1)


def targets_by_row(strategy: Any, probes: Probes, n_rows: int) -> Tensor:
    """Return one-hot targets by row, ``(n, R)``; of a class without a row all are 0."""
    keys = _keys(strategy, n_rows)
    match = keys[None, :, 1] == probes.targets[:, None]
    if _several(keys):
        match &= keys[None, :, 0] == probes.task_labels[:, None]
    return match.double()


def rows_that_count(strategy: Any, probes: Probes, n_rows: int) -> Tensor:
    """Return which rows count for an image, ``(n, R)``: all, or those of its task label."""
    keys = _keys(strategy, n_rows)
    if not _several(keys):
        return torch.ones(len(probes.targets), n_rows).double()
    return (keys[None, :, 0] == probes.task_labels[:, None]).double()


def held_out_experience(strategy: Any, experience: Any, number: int) -> Any:
    """Return the test experience of a training experience; ``None`` where there is none."""
    stream = full_stream(experience)
    tested = streams_beside(stream).get("test")
    if StrategyOffers.of(strategy).joint or tested is None or not hasattr(stream, "__len__"):
        return None
    return tested[number] if hasattr(tested, "__len__") and len(tested) == len(stream) else None


def _several(keys: Tensor) -> bool:
    return len(set(keys[:, 0].tolist())) > 1
