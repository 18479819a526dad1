"""The one way to run an experience's images through the network before or after its training."""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from avalanche.models.utils import avalanche_forward
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avalanche_peftcl.models import DynamicModel
from avalanche_peftcl.models.rng import random_state, set_random_state
from avalanche_peftcl.training.joints import Embeds, Features, ReadsTexts, Tuning
from avalanche_peftcl.training.streams import whole_experience


def feature_pass(
    strategy: Any,
    consume: Callable[[Features], object] | None = None,
    *,
    dataset: Any = None,
    classify: bool = False,
    full_precision: bool = False,
    num_workers: int = 0,
) -> None:
    """Run images through the network in eval mode, with the test transforms, without gradient.

    Modes of all modules and the global random generators are as before when it returns, so that
    training goes on to the same weights with it and without.

    Args:
        strategy: Any Avalanche strategy, before or after an experience's training.
        consume: Called with each minibatch, in the order of the dataset. May be left out where
            hooks on modules see all there is to see.
        dataset: An Avalanche dataset; the images of the current experience by default.
        classify: Let the head of a ``DynamicModel`` see the features too; any other network runs as
            a whole. Texts that a strategy trains on are read too.
        full_precision: Compute in float32 instead of the strategy's precision.
        num_workers: Processes that load images.

    Example:
        >>> from avalanche_peftcl.testing import toy_backbone, toy_benchmark
        >>> from avalanche_peftcl.training.naive import build_naive
        >>> strategy = build_naive(backbone=toy_backbone(), train_epochs=1)
        >>> experience = toy_benchmark().train_stream[0]
        >>> _ = strategy.train(experience)
        >>> shapes = []
        >>> feature_pass(
        ...     strategy,
        ...     lambda batch: shapes.append(tuple(batch.features.shape)),
        ...     dataset=experience.dataset,
        ... )
        >>> shapes
        [(12, 32)]
    """
    data = (strategy.experience.dataset if dataset is None else dataset).eval()
    loader = DataLoader(
        data,
        batch_size=strategy.eval_mb_size,
        num_workers=num_workers,
        generator=torch.Generator(),  # the same workers' seeds in each pass
    )
    network, device = network_of(strategy), strategy.device
    # hooks see what is computed, not what is known already
    embed = strategy.embed if consume is not None and isinstance(strategy, Embeds) else None
    modes = {module: module.training for module in network.modules()}
    random = random_state(device)
    network.eval()
    try:
        with torch.no_grad():
            for batch in loader:
                images, targets = batch[0].to(device), batch[1].to(device)
                task_labels = batch[-1].to(device) if len(batch) > 2 else None
                with _precision(strategy, full=full_precision):
                    features = _features(network, embed, images, task_labels, classify=classify)
                    if classify and isinstance(strategy, ReadsTexts):
                        strategy.read_texts(targets)
                if consume is not None:
                    classes = network.classes if isinstance(network, DynamicModel) else None
                    consume(Features(features, targets, task_labels, classes))
    finally:
        for module, mode in modes.items():
            module.training = mode
        set_random_state(random, device)


def read_or_known(
    strategy: Any,
    consume: Callable[[Features], object],
    known: Sequence[Features],
    *,
    dataset: Any = None,
    num_workers: int = 0,
) -> None:
    """Hand the current experience's images to ``consume``: as they were read, or by a pass.

    Args:
        strategy: As of :func:`feature_pass`.
        consume: As there.
        known: What :func:`.move_heads` returned.
        dataset: As of :func:`feature_pass`, like the next.
        num_workers: Of the loader.
    """
    if not known:
        feature_pass(strategy, consume, dataset=dataset, num_workers=num_workers)
    for batch in known:
        consume(batch)


def draw(
    experience: Any, n_samples: int | None, *, seed: int, without: Collection[int] = ()
) -> Any:
    """Return images of an experience to read, each at most once, as a dataset.

    Args:
        experience: Whole, or a chunk of an online one: then its share of ``n_samples`` is drawn.
        n_samples: How many; ``None``, or more than there are, is all.
        seed: Of the draw; no global generator is touched.
        without: Numbers of images in its dataset that are left out.
    """
    dataset = experience.dataset
    share = len(dataset) / max(1, len(whole_experience(experience).dataset))
    size = len(dataset) if n_samples is None else math.ceil(n_samples * share)
    if size >= len(dataset) and not without:
        return dataset
    order, aside = shuffled(len(dataset), seed=seed), set(without)
    return dataset.subset([image for image in order if image not in aside][:size])


def shuffled(size: int, *, seed: int) -> list[int]:
    """Return the numbers below ``size`` in the order in which :func:`draw` takes them."""
    order: list[int] = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside what ``torch.compile`` put around it.

    Example:
        >>> network = nn.Linear(2, 2)
        >>> unwrapped(torch.compile(network)) is network
        True
    """
    while (inner := dict(model.named_children()).get("_orig_mod")) is not None:
        model = inner
    return model


def network_of(strategy: Any) -> nn.Module:
    """Return the network that any Avalanche strategy trains, unwrapped."""
    return unwrapped(strategy.model)


def _precision(strategy: Any, *, full: bool) -> AbstractContextManager[Any]:
    return nullcontext() if full or not isinstance(strategy, Tuning) else strategy.autocast()


def _features(
    network: nn.Module,
    embed: Callable[[Tensor], Tensor] | None,
    images: Tensor,
    task_labels: Tensor | None,
    *,
    classify: bool,
) -> Tensor:
    if isinstance(network, DynamicModel):
        features = (embed or network.embed)(images)
        if classify:
            network.classify(features)
        return features
    if task_labels is None:
        output: Tensor = network(images)
    else:
        output = avalanche_forward(network, images, task_labels)
    return output
