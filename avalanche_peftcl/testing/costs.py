"""What a strategy really costs: passes and floats, counted while it trains and predicts."""

from typing import Any, NamedTuple

from avalanche.core import SupervisedPlugin

from avalanche_peftcl.models.backbones.kept_features import as_first_seen
from avalanche_peftcl.models.counting import listen_for_passes, passes_so_far, stop_listening
from avalanche_peftcl.models.stored import stored_floats
from avalanche_peftcl.registry.costs import Costs, value
from avalanche_peftcl.registry.offers import ModelOffers, StrategyOffers
from avalanche_peftcl.training.feature_pass import network_of
from avalanche_peftcl.training.joint import visits

_SINGLE = 16  # floats: factors and the like


class Counted(NamedTuple):
    """What was counted on a stream.

    Attributes:
        step: Passes through the backbone of a training image, in each experience; ``None`` where
            nothing trained.
        test: Of a test image, after each experience.
        stored: Floats kept, after each.
        classes: Classes so far, after each.
        trains: Floats of modules that train, heads left out, in the first.
    """

    step: list[float | None]
    test: list[float | None]
    stored: list[int]
    classes: list[int]
    trains: int


class _Counter(SupervisedPlugin, supports_distributed=False):  # type: ignore[call-arg]  # the host's keyword
    """Counts images that come to the last block, in training and in evaluation."""

    remembers = ()

    def __init__(self) -> None:
        super().__init__()
        self.mark = 0
        self.images, self.of_images = [0, 0], [0, 0]
        self.trains = 0

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        network = network_of(strategy)
        heads = {id(p) for head in ModelOffers.of(network).heads for p in head.parameters()}
        train = [p for p in network.parameters() if p.requires_grad and id(p) not in heads]
        self.trains = max(self.trains, sum(p.numel() for p in train))
        self.mark = passes_so_far()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self._count(0, strategy)

    def before_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.mark = passes_so_far()

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self._count(1, strategy)

    def _count(self, which: int, strategy: Any) -> None:
        self.images[which] += len(strategy.mb_x)
        self.of_images[which] += passes_so_far() - self.mark

    def rates(self) -> tuple[float | None, float | None]:
        """Return passes an image in training and in evaluation, and begin anew."""
        pairs = zip(self.of_images, self.images, strict=True)
        found = [passes / images if images else None for passes, images in pairs]
        self.images, self.of_images = [0, 0], [0, 0]
        return found[0], found[1]


def count_costs(strategy: Any, benchmark: Any) -> Counted:
    """Train a strategy on a stream, evaluate it after each experience, and count.

    A pass is counted where an image comes to the last block of its backbone, in whatever view, as
    for the record of a run; of a test image as if it came for the first time.

    Args:
        strategy: New; its network has the attribute ``backbone``, a :class:`.Backbone`.
        benchmark: Of experiences that are trained one by one, or at once where it is ``joint``.

    Example:
        >>> from avalanche_peftcl import Costs
        >>> from avalanche_peftcl.testing import toy_backbone, toy_benchmark
        >>> from avalanche_peftcl.training.naive import build_naive
        >>> strategy = build_naive(backbone=toy_backbone(), train_epochs=1)
        >>> counted = count_costs(strategy, toy_benchmark())
        >>> differing_costs(Costs(per_class="D + 1", once="P"), counted, D=32)
        []
        >>> differing_costs(Costs(test="T", per_class="D + 1", once="P"), counted, D=32)[0]
        'test, experience 2: 2 said, 1 counted'
    """
    counter, counted = _Counter(), Counted([], [], [], [], 0)
    strategy.plugins.append(counter)
    listen_for_passes(counter)
    seen: set[int] = set()
    try:
        for number, experience in enumerate(visits(strategy, benchmark.train_stream)):
            strategy.train(experience)
            with as_first_seen():
                strategy.eval(benchmark.test_stream[: number + 1])
            step, test = counter.rates()
            joint = StrategyOffers.of(strategy).joint
            for each in benchmark.train_stream if joint else [experience]:
                seen |= {int(y) for y in each.dataset.targets}
            counted.step.append(step)
            counted.test.append(test)
            counted.stored.append(stored_floats(strategy))
            counted.classes.append(len(seen))
    finally:
        stop_listening(counter)
    return counted._replace(trains=counter.trains)


def differing_costs(costs: Costs, counted: Counted, **symbols: float) -> list[str]:
    """Return where what a strategy says that it costs is not what was counted.

    Args:
        costs: What it says.
        counted: What was counted, see :func:`count_costs`.
        symbols: Values of what stands in the formulas; of ``D``, ``L``, ``M`` and ``r`` those that
            it needs.

    Returns:
        A line each; floats may differ by 16, for factors and the like. What is the most is at
        the end no more than four times what was counted.
    """
    wrong = []
    grows = bool({"per_class", "per_experience", "once"} & set(costs.at_most))
    for number, classes in enumerate(counted.classes):
        known = {"T": number + 1.0, "C1": float(counted.classes[0]), "P": float(counted.trains)}
        known |= symbols
        for name, formula, found in (
            ("step", costs.step, counted.step[number]),
            ("test", costs.test, counted.test[number]),
        ):
            if found is None:
                continue
            said = value(formula, **known)
            fewer = name in costs.at_most and 1 <= found <= said
            if not fewer and abs(found - said) > 1e-6:
                wrong.append(f"{name}, experience {number + 1}: {said:g} said, {found:g} counted")
        said, kept = costs.stored(classes=classes, **known), counted.stored[number]
        last = number == len(counted.classes) - 1
        fewer = grows and kept <= said <= (4 * kept if last else said)
        if not fewer and abs(kept - said) > _SINGLE:
            wrong.append(f"floats, experience {number + 1}: {said:g} said, {kept} counted")
    return wrong
