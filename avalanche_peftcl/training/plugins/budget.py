"""A budget of an experience's training, the same for every method."""

from collections.abc import Mapping
from typing import Any

from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import JointTraining

from avalanche_peftcl.errors import BudgetError, ConfigError
from avalanche_peftcl.models.meter import Meter
from avalanche_peftcl.models.stored import stored_by_part
from avalanche_peftcl.registry.offers import ExperienceOffers

_SHOWN = 5  # parts that an error names


class BudgetPlugin(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Ends the training steps of an experience with its budget; the epochs stay the other limit.

    For any Avalanche strategy that stops where ``stop_training()`` is called, as all of Avalanche's
    templates do. It is to be the last of the plugins (``strategy.plugins.append(...)``), so that it
    sees what the others have done; a run adds it where the configuration has a ``budget``.

    What ends is every stage that takes steps, a second one too, after the step with which the
    budget is used up. What a method does after its last step still happens and counts: merging,
    settling heads, class means, the statistics of projections. So more may be used than is allowed,
    and is told. An alignment of the head on drawn features takes no pass; seconds end it, see
    :func:`out_of_time`. Learning rates fall as if all epochs were trained. A strategy that takes no
    step is not ended.

    Of an online stream the budget grows with the images that have come.

    Args:
        passes: Images through the backbone for each training image of the experience, counted as in
            :meth:`.CostMetric.summary`: epochs, second views, statistics, images of a memory.
        seconds: Of training, without evaluations; no two runs end alike, gone on with or not. No
            step waits for the device, whose work may come a few steps behind.
        stored_floats: The most that may be kept beside the backbone after an experience, see
            :func:`.stored_floats`.

    Raises:
        ConfigError: If none is given or one is not positive.
        BudgetError: After an experience, if more floats are kept.

    Example:
        >>> from avalanche_peftcl.testing import toy_backbone, toy_benchmark
        >>> from avalanche_peftcl.training.naive import build_naive
        >>> strategy = build_naive(backbone=toy_backbone(), train_epochs=3, train_mb_size=4)
        >>> budget = BudgetPlugin(passes=1.5)
        >>> strategy.plugins.append(budget)
        >>> _ = strategy.train(toy_benchmark().train_stream[0])
        >>> budget.headline()
        'budget: 1.667 of 1.5 passes, which ended training after 1.667 of 3 epochs'
    """

    def __init__(
        self,
        *,
        passes: float | None = None,
        seconds: float | None = None,
        stored_floats: int | None = None,
    ) -> None:
        super().__init__()
        allowed = {"passes": passes, "seconds": seconds, "stored_floats": stored_floats}
        self.allowed = {name: value for name, value in allowed.items() if value is not None}
        if not self.allowed or any(value <= 0 for value in self.allowed.values()):
            raise ConfigError(
                f"a budget is of passes, seconds or stored_floats, above 0, not {self.allowed}"
            )
        self._meter = Meter()
        self._whole = 1  # training images of the experience
        self._asked = False  # the strategy to stop
        self._epochs, self._done = 0.0, 0  # of this call of train(), minibatches of this epoch
        self._reports: dict[int, dict[str, Any]] = {}  # by experience

    # --- what was used -------------------------------------------------------------------------

    def used(self) -> dict[str, float]:
        """Return the passes for each training image and the seconds of this experience so far."""
        self._meter.lap()
        row = self._meter.row
        seconds = self._meter.seconds["training"].get(row, 0.0)
        return {"passes": self._meter.passes_per_image(row), "seconds": seconds}

    def share(self, *names: str) -> float:
        """Return the share of the budget of this experience that is used, of the scarcest."""
        used = self.used()
        come = min(1.0, self._meter.images.get(self._meter.row, 0) / self._whole)
        whole = {"passes": 1.0, "seconds": come or 1.0}  # passes are of the images that have come
        limits = {k: v for k, v in self.allowed.items() if k in (names or used)}
        return max((used[k] / whole[k] / limit for k, limit in limits.items()), default=0.0)

    # --- what the strategy calls ---------------------------------------------------------------

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Drop the clock of a training that was interrupted."""
        self._meter.drop()

    def before_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        """Begin to measure an experience, or the next chunk of one."""
        if self._meter.runs:
            self._report(strategy)
        experience, images = _experience(strategy)
        self._meter.begin(strategy.model, row=int(experience.current_experience), images=images)
        self._whole = max(1, images, len(experience.dataset))
        self._asked, self._epochs, self._done = False, 0.0, 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Begin, of a strategy that adapts no dataset."""
        if not self._meter.runs:
            self.before_train_dataset_adaptation(strategy)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Leave out the epoch if nothing is left, of a second stage too."""
        self._done = 0
        if self._stop(strategy):
            self._ended()

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Stop if nothing is left; not between steps, whose gradients would be lost."""
        self._stop(strategy)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Count a minibatch."""
        self._done += 1

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Count an epoch, or the part of one that was trained."""
        whole = max(1, len(strategy.dataloader))
        self._epochs += self._done / whole
        if self._asked and self._done < whole:
            self._ended()

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Measure no training."""
        self._meter.enter_evaluation()

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Measure training again, if it was."""
        self._meter.leave_evaluation()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Take back the stop, which is none of the next experience."""
        if self._asked:
            strategy._stop_training = False
        self._report(strategy)

    def after_training(self, strategy: Any, **kwargs: Any) -> None:
        """Stop the clock, with what the strategy did last."""
        self._meter.lap(strategy.device)
        self._report(strategy)
        self._meter.end()

    def _stop(self, strategy: Any) -> bool:
        if self.share() < 1:
            return False
        self._asked = True
        strategy.stop_training()
        return True

    def _ended(self) -> None:
        self._of_row()["ended"] = True

    def _of_row(self) -> dict[str, Any]:
        row = self._meter.row
        return self._reports.setdefault(row, {"experience": row + 1, "ended": False})

    def _report(self, strategy: Any) -> None:
        """Take down what was used; refuse what is kept."""
        report, used = self._of_row(), self.used()
        report |= {f"training_{k}": value for k, value in used.items() if k in self.allowed}
        report["epochs"], report["train_epochs"] = self._epochs, int(strategy.train_epochs)
        if (most := self.allowed.get("stored_floats")) is None:
            return
        parts = stored_by_part(strategy)
        report["stored_floats"] = sum(parts.values())
        if report["stored_floats"] > most:
            raise BudgetError(_too_much(report, int(most), parts))

    # --- what there is to tell -----------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return what was used so far."""
        return {
            "meter": self._meter.state_dict(),
            "whole": self._whole,
            "asked": self._asked,
            "epochs": self._epochs,
            "done": self._done,
            "reports": {row: dict(report) for row, report in self._reports.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self._meter.load_state_dict(state["meter"])
        self._whole, self._asked = state["whole"], state["asked"]
        self._epochs, self._done = state["epochs"], state["done"]
        self._reports = {row: dict(report) for row, report in state["reports"].items()}

    def summary(self) -> dict[str, Any]:
        """Return what the run record keeps.

        Returns:
            What is allowed, by name, and ``experiences``: of each ``experience``, its number, what
            it used of that (``training_passes`` for each image, ``training_seconds``,
            ``stored_floats``), ``epochs`` (of an online stream those of the last chunk) of
            ``train_epochs``, and ``ended``, whether training ended with the budget.
        """
        each = [self._reports[row] for row in sorted(self._reports)]
        return self.allowed | {"experiences": [dict(report) for report in each]}

    def headline(self) -> str | None:
        """Return one line about the last experience, ``None`` before one was trained."""
        if (report := self._reports.get(self._meter.row)) is None:
            return None
        told = {
            "passes": ("training_passes", "{:.4g} of {:g} passes"),
            "seconds": ("training_seconds", "{:.1f} of {:g} s"),
            "stored_floats": ("stored_floats", "{:,} of {:,} floats"),
        }
        text = ", ".join(
            words.format(report[key], self.allowed[name])
            for name, (key, words) in told.items()
            if name in self.allowed
        )
        if report["ended"]:
            epochs, whole = report["epochs"], report["train_epochs"]
            of = f" of {whole}" if epochs <= whole else ""  # a second stage has further ones
            text += f", which ended training after {epochs:.4g}{of} epochs"
        return f"budget: {text}"


def out_of_time(strategy: Any) -> bool:
    """Whether a budget of seconds has ended the steps of the experience that trains.

    For steps that a plugin takes itself, on features that are drawn: it asks before each.

    Args:
        strategy: Which trains.

    Example:
        >>> from types import SimpleNamespace
        >>> out_of_time(SimpleNamespace(plugins=[]))
        False
    """
    return used_share(strategy, "seconds") >= 1


def used_share(strategy: Any, *names: str) -> float:
    """Return the share of an experience's budget that is used, 0 without one.

    Args:
        strategy: Which trains.
        names: Limits that are looked at; by default all that end steps.
    """
    budgets = [plugin for plugin in strategy.plugins if isinstance(plugin, BudgetPlugin)]
    return max((budget.share(*names) for budget in budgets), default=0.0)


def _experience(strategy: Any) -> tuple[Any, int]:
    """Return the whole experience that trains, and the images that there are to train on."""
    host = isinstance(strategy, JointTraining)
    parts = strategy._experiences if host else [strategy.experience]
    part = parts[-1].logging()  # accounts need to know what is behind a chunk; learning does not
    origin = ExperienceOffers.of(part).origin_experience
    return (part if origin is None else origin), sum(len(each.dataset) for each in parts)


def _too_much(report: Mapping[str, Any], most: int, parts: Mapping[str, int]) -> str:
    largest = sorted(parts.items(), key=lambda part: -part[1])
    named = ", ".join(f"{size:,} in {name}" for name, size in largest[:_SHOWN])
    return (
        f"after experience {report['experience']} {report['stored_floats']:,} floats are kept "
        f"beside the backbone ({named}), and the budget allows {most:,}: take a module, head or "
        "plugins that keep less, or another budget (stored_floats), which is another run"
    )
