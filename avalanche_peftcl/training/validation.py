"""Evaluation inside training that leaves training as it found it."""

from typing import Any

from avalanche_peftcl.models.rng import random_state, set_random_state

_KEPT = ("mbatch", "mb_output", "loss", "mb_features", "mb_row_logits", "mb_rows")


class UndisturbedTraining:
    """Part of a strategy: what Avalanche does not put back after an evaluation inside ``train()``.

    Avalanche sees to modes, experience and loaders. Here the minibatch and what was computed of it,
    the number of logits, and the random generators, of which a loader draws even where it does not
    shuffle: training goes on to the same weights with validation and without.
    """

    def _save_train_state(self) -> dict[str, Any]:
        strategy: Any = self
        state: dict[str, Any] = super()._save_train_state()  # type: ignore[misc]  # the host's
        if strategy._eval_streams is not None:  # train() has not returned
            state["kept"] = {name: getattr(self, name) for name in _KEPT}
            state["generators"] = random_state(strategy.device)
            state["columns"] = strategy.model.classes.num_outputs if strategy.grows else 0
        return state

    def _load_train_state(self, prev_state: dict[str, Any]) -> None:
        strategy: Any = self
        super()._load_train_state(prev_state)  # type: ignore[misc]  # the host's
        if "kept" in prev_state:
            vars(self).update(prev_state["kept"])
            set_random_state(prev_state["generators"], strategy.device)
            if strategy.grows:
                strategy.model.classes.num_outputs = prev_state["columns"]
