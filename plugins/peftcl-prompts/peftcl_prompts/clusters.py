"""Classes as mixtures of Gaussians around k-means centroids, and heads aligned to draws of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

JITTER = 1e-4  # added to every variance


@dataclass
class Clusters:
    """Centroids and variances of classes, one above the other.

    Attributes:
        rows: Class row of each, ``(N,)``.
        centroids: ``(N, D)``.
        variances: Of each entry, ``(N, D)``.
    """

    rows: Tensor
    centroids: Tensor
    variances: Tensor

    def replaced(self, new: "Clusters") -> "Clusters":
        """Return them with those of the classes of others in the place of their own."""
        kept = ~torch.isin(self.rows, new.rows)
        pairs = (
            (self.rows, new.rows),
            (self.centroids, new.centroids),
            (self.variances, new.variances),
        )
        return Clusters(*(torch.cat([old[kept], fresh]) for old, fresh in pairs))

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw around each centroid as many features.

        Args:
            count: How many.
            generator: Of the CPU.

        Returns:
            Features ``(N * count, D)`` and their rows.
        """
        noise = torch.randn(len(self.rows), count, self.centroids.shape[1], generator=generator)
        spread = (self.variances + JITTER).sqrt()
        features = self.centroids[:, None] + noise * spread[:, None]
        return features.flatten(0, 1), self.rows.repeat_interleave(count)


def cluster(features: Tensor, rows: Tensor, *, count: int, seed: int) -> Clusters:
    """Return the k-means centroids of each class, and the variances about them.

    Args:
        features: ``(n, D)``, on the CPU.
        rows: Class row of each, ``(n,)``.
        count: Centroids of a class; fewer where there are fewer images.
        seed: Of k-means; no global generator is touched.

    Example:
        >>> found = cluster(torch.tensor([[0.0], [2.0], [9.0]]), torch.tensor([0, 0, 1]),
        ...                 count=1, seed=0)
        >>> found.centroids.flatten().tolist(), found.variances.flatten().tolist()
        ([1.0, 9.0], [1.0, 0.0])
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for row in sorted(set(rows.tolist())):
        own = features[rows == row].float()
        kmeans = KMeans(min(count, len(own)), n_init=10, random_state=seed)
        labels = torch.from_numpy(kmeans.fit_predict(own.numpy())).long()
        for label in sorted(set(labels.tolist())):
            these = own[labels == label]
            parts.append((torch.tensor(row), these.mean(dim=0), these.var(dim=0, correction=0)))
    return Clusters(*(torch.stack(list(each)) for each in zip(*parts, strict=True)))


def align(
    head: nn.Module,
    clusters: Clusters,
    *,
    read: Callable[[Tensor], Tensor],
    epochs: int,
    samples: int,
    lr: float,
    weight_decay: float,
    generator: torch.Generator,
    ends: Callable[[], bool] = lambda: False,
) -> None:
    """Train a head on features drawn of all classes, and nothing else.

    SGD with momentum 0.9, whose rate falls as a cosine, on minibatches of ``samples``.

    Args:
        head: From what is read to a logit a row.
        clusters: Of all classes.
        read: From a feature to what the head reads.
        epochs: Each draws new features.
        samples: Around each centroid in an epoch.
        lr: Learning rate.
        weight_decay: Of SGD.
        generator: Of the draws, of the CPU.
        ends: Asked before each step whether it is the time to end.
    """
    parameters = [p for p in head.parameters() if p.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=weight_decay)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        features, rows = clusters.draw(samples, generator)
        for part in torch.split(torch.randperm(len(rows), generator=generator), samples):
            if ends():
                break
            with torch.no_grad():
                seen = read(features[part].to(device))
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = F.cross_entropy(head(seen), rows[part].to(device))
                torch.autograd.backward(loss)
            optimizer.step()
    optimizer.zero_grad()
