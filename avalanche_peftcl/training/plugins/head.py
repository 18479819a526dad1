"""The heads that are fitted instead of trained hear of each experience: class means among them."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_peftcl.errors import NotFiniteError
from avalanche_peftcl.models import Head
from avalanche_peftcl.training.feature_pass import network_of, read_or_known
from avalanche_peftcl.training.joints import Features, Tuning, move_heads
from avalanche_peftcl.training.streams import class_counts, ends_experience, number_of


class HeadPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Hand the network's fitted heads the images of each experience, once it was trained.

    They :meth:`~avalanche_peftcl.models.Head.begin` with the experience,
    :meth:`~avalanche_peftcl.models.Head.observe` all its images by a :func:`.feature_pass`, and
    :meth:`~avalanche_peftcl.models.Head.settle`; of an online stream they observe each chunk and
    settle with the last one, or when something is to be predicted. Features of earlier images are
    those of the modules of their time, unless a plugin moves them (:class:`.MovesHeads`).

    For what is predicted meanwhile (validation, early stopping) they
    :meth:`~avalanche_peftcl.models.Head.follow` the minibatches in training. One that cannot learn
    from these, or reads other features than those that train, is fitted to the images of the
    experience for the time of the evaluation, once it was moved to where features are by then,
    which costs a pass over them each time.

    A :class:`.PEFTTemplate` has one where its network has such heads. Avalanche's own strategies
    get it in ``plugins``; their model is a :class:`~avalanche_peftcl.models.DynamicModel`.

    Raises:
        NotFiniteError: While training, if what a head is fitted to is not finite numbers.

    Source:
        Liu et al., arXiv 2407.17120; released code 24de712 (``replace_fc``).
        Differs: any head; the release cannot predict classes in training.
    """

    def __init__(self) -> None:
        super().__init__()
        self._heads: list[Head] = []  # those that are fitted, from the start of an experience on
        self._followed: set[int] = set()  # which of them learnt from minibatches in training
        self._experience: Any = None  # the one that trains
        self._unsettled = False  # whether chunks were observed since the heads settled
        self._before_trial: dict[int, dict[str, Tensor]] = {}

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Tell the heads of the experience's classes."""
        network: Any = network_of(strategy)
        if self._before_trial:  # an evaluation was broken off
            self.after_eval(strategy)
            for head in self._heads:
                head.grow(len(network.classes))
        self._experience, self._followed = strategy.experience, set()
        self._heads = [head for head in network.heads if head.fitted]
        self._begin(strategy, range(len(self._heads)))

    @torch.no_grad()
    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Show the heads the minibatch's features, if they read these."""
        features, rows = _features_and_rows(strategy)
        for i, head in enumerate(self._heads):
            if head.in_features == features.shape[1]:
                head.follow(features, rows)
                if head.follows:
                    self._followed.add(i)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let the heads observe the experience's images, once what they hold has moved."""
        self._experience = None
        workers = kwargs.get("num_workers", 0)
        known = move_heads(strategy, num_workers=workers)
        take = self._taken_by(range(len(self._heads)))
        read_or_known(strategy, take, known, num_workers=workers)
        torch.empty((), dtype=torch.int64).random_()  # a loader's seed: recorded runs drew one here
        ends = ends_experience(strategy.experience)
        self._settle(strategy, [head for head in self._heads if head.follows or ends])
        self._unsettled = not ends

    # --- what is predicted before an experience has ended --------------------------------------

    @torch.no_grad()
    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Fit the heads that could not follow to what there is of the experience in training."""
        if self._before_trial:  # an evaluation was broken off
            self.after_eval(strategy)
        if self._unsettled:
            self._settle(strategy, [head for head in self._heads if not head.follows])
            self._unsettled = False
        if self._experience is None:
            return
        waiting = [i for i in range(len(self._heads)) if i not in self._followed]
        for i in waiting:
            state = self._heads[i].state_dict()
            self._before_trial[i] = {name: value.clone() for name, value in state.items()}
        if waiting:
            heads, workers = [self._heads[i] for i in waiting], kwargs.get("num_workers", 0)
            known = move_heads(strategy, trial=heads, num_workers=workers)
            read_or_known(
                strategy,
                self._taken_by(waiting),
                known,
                dataset=self._experience.dataset,
                num_workers=workers,
            )
            self._settle(strategy, heads)

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Let the heads forget what they were fitted to for the evaluation."""
        for i, state in self._before_trial.items():
            self._heads[i].load_state_dict(state)
        self._begin(strategy, self._before_trial)
        self._before_trial = {}

    def _begin(self, strategy: Any, which: Iterable[int]) -> None:
        network: Any = network_of(strategy)
        if chosen := list(which):
            counts = class_counts(self._experience)
            rows = network.classes.add(counts)
            for i in chosen:
                self._heads[i].begin(rows, list(counts.values()))

    def _taken_by(self, which: Collection[int]) -> Callable[[Features], None]:
        """Return what lets some of the heads observe a minibatch."""

        def observe(batch: Features) -> None:
            rows = batch.rows
            for i in which:
                self._heads[i].observe(batch.features, rows)

        return observe

    def _settle(self, strategy: Any, heads: Iterable[Head]) -> None:
        try:
            for head in heads:
                head.settle()
        except NotFiniteError as error:
            experience = self._experience or strategy.experience
            raise NotFiniteError(f"experience {number_of(experience)}: {error}") from error

    # --- checkpoints ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what the heads hold of an experience in training; the rest is in the model."""
        held = {str(i): head.passing_state() for i, head in enumerate(self._heads)}
        state: dict[str, Any] = {number: each for number, each in held.items() if each}
        return state | ({"unsettled": True} if self._unsettled else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._unsettled = bool(state.get("unsettled"))
        for i, head in enumerate(self._heads):
            if str(i) in state:
                head.load_passing_state(dict(state[str(i)]))
                if head.follows:
                    self._followed.add(i)


def _features_and_rows(strategy: Any) -> tuple[Tensor, Tensor]:
    """Return what was classified in the forward pass of a training minibatch."""
    if isinstance(strategy, Tuning) and strategy.mb_rows is not None:
        return strategy.mb_features[-1].detach(), strategy.mb_rows
    network: Any = network_of(strategy)
    task_labels = strategy.mbatch[-1] if len(strategy.mbatch) > 2 else None
    return network.last_features, network.classes.index(strategy.mb_y, task_labels)
