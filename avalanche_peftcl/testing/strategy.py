"""What every strategy must do."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch

from avalanche_peftcl.models import Backbone
from avalanche_peftcl.registry.offers import StrategyOffers
from avalanche_peftcl.testing.learnable import (
    blind_backbone,
    learnable_benchmark,
    seeing_backbone,
)
from avalanche_peftcl.testing.probes import (
    Watch,
    differing,
    differs_when_rebuilt,
    evaluator,
    frozen_accuracy,
    outputs,
    own_accuracy,
    pick,
    spread,
    weights,
)
from avalanche_peftcl.testing.resuming import ends_elsewhere, obstacles
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.feature_pass import network_of
from avalanche_peftcl.training.joint import visits
from avalanche_peftcl.training.streams import ends_experience

SCENARIOS = ("class", "task", "domain", "online")


class Trial(NamedTuple):
    """A strategy that was trained on two experiences.

    Attributes:
        strategy: The strategy.
        benchmark: What it was trained on.
        scores: Accuracy among the classes of each experience, right after its training.
        watch: The plugin that was handed in.
        evaluator: The evaluation plugin that was handed in.
    """

    strategy: Any
    benchmark: Any
    scores: list[float]
    watch: Watch
    evaluator: Any


class StrategyContract:
    """Subclass, write :meth:`create_strategy`, and the suite is yours.

    The strategy's model has the attribute ``backbone``. One that says that it is ``joint`` is
    trained on both experiences at once.

    Attributes:
        scenarios: The scenarios that the method claims; the others are skipped.
        uses_task_labels: Scenarios in which it may read the task labels of test images.
        adapts: Whether something inside the network learns. Then it is tried on toys that the
            frozen network is blind to (:func:`.blind_backbone`), and has to make up for half of
            what class means of frozen features lack. A classifier on frozen features is tried with
            a network that sees the classes (:func:`.seeing_backbone`), and is held against chance.

    Example:
        >>> from avalanche_peftcl.training.naive import build_naive
        >>> class TestNaive(StrategyContract):
        ...     def create_strategy(self, backbone, *, plugins, evaluator):
        ...         return build_naive(
        ...             backbone=backbone,
        ...             plugins=plugins,
        ...             evaluator=evaluator,
        ...             optimizer="adam",
        ...             lr=0.01,
        ...             train_epochs=8,
        ...             train_mb_size=8,
        ...         )
        >>> TestNaive().test_learns("class")
    """

    scenarios: tuple[str, ...] = SCENARIOS
    uses_task_labels: tuple[str, ...] = ("task",)
    adapts: bool = True
    _trials: dict[str, Trial]

    def create_strategy(self, backbone: Backbone, *, plugins: Sequence[Any], evaluator: Any) -> Any:
        """Return the strategy under test, set to learn in a hundred steps or fewer."""
        raise NotImplementedError

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._trials = {}

    # --- what the tests are made of ------------------------------------------------------------

    def backbone(self) -> Backbone:
        """Return the frozen network, the same at each call."""
        return blind_backbone() if self.adapts else seeing_backbone()

    def benchmark(self, scenario: str) -> Any:
        """Return a stream of two experiences; of ``"online"``, of their chunks."""
        return learnable_benchmark(scenario, per_class=8 if scenario == "domain" else 12)

    def build(
        self,
        *,
        seed: int = 0,
        epochs: int | None = None,
        plugins: Sequence[Any] = (),
        evaluation: Any = None,
    ) -> Any:
        """Return a new strategy, in float32; it trains at most so many epochs, if that is given."""
        torch.manual_seed(seed)
        made = self.create_strategy(
            self.backbone(), plugins=plugins, evaluator=evaluation or evaluator()
        )
        if isinstance(made, PEFTTemplate):
            made.mixed_precision = "no"
        if epochs is not None:
            made.train_epochs = min(made.train_epochs, epochs)
        return made

    def train(self, scenario: str) -> Trial:
        """Return a strategy that was trained and, after each experience, evaluated."""
        if scenario not in self.scenarios:
            pytest.skip(f"the method does not claim scenario {scenario!r}")
        watch, evaluation, benchmark = Watch(), evaluator(), self.benchmark(scenario)
        strategy = self.build(plugins=[watch], evaluation=evaluation)
        scores: list[float] = []
        trained = visits(strategy, benchmark.train_stream)
        for number, experience in enumerate(trained, start=1):
            strategy.train(experience)
            last = number == len(trained)  # of joint training the only one
            if not ends_experience(experience):
                continue
            for test in benchmark.test_stream[len(scores) : None if last else len(scores) + 1]:
                scores.append(own_accuracy(outputs(strategy, test), test))
        return Trial(strategy, benchmark, scores, watch, evaluation)

    def trial(self, scenario: str) -> Trial:
        """Return what :meth:`train` does, once for all tests that only look at it."""
        key = f"{scenario} {sorted(vars(self).items())}"  # a fixture may have set something
        if key not in self._trials:
            self._trials[key] = self.train(scenario)
        return self._trials[key]

    # --- training ------------------------------------------------------------------------------

    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_trains_and_evaluates(self, scenario: str) -> None:
        """Two experiences train and evaluate: every number is finite, every class has a logit."""
        strategy, benchmark, *_ = self.trial(scenario)
        assert all(p.isfinite().all() for p in strategy.model.parameters())
        for experience in benchmark.test_stream:
            logits = outputs(strategy, experience)
            assert logits.isfinite().all()
            assert logits.shape[0] == len(experience.dataset)
            assert logits.shape[1] > max(int(y) for y in experience.dataset.targets)

    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_learns(self, scenario: str) -> None:
        """Each experience is learnt: half of what a frozen network lacks, or chance, is gained."""
        _, benchmark, scores, *_ = self.trial(scenario)
        learnt = sum(scores) / len(scores)
        if self.adapts:
            floor = frozen_accuracy(self.backbone(), benchmark)
        else:
            sizes = [len(e.classes_in_this_experience) for e in benchmark.test_stream]
            floor = sum(1 / n for n in sizes) / len(sizes)
        assert learnt >= floor + (1 - floor) / 2, f"{learnt:.2f} is learnt, {floor:.2f} is not"

    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_backbone_is_bit_identical(self, scenario: str) -> None:
        """Training leaves the backbone as it was, bit for bit, and in eval mode."""
        backbone: Any = network_of(self.trial(scenario).strategy).backbone
        assert not differing(self.backbone().state_dict(), backbone.state_dict())
        assert not any(module.training for module in backbone.modules())

    def test_optimizer_holds_what_trains(self) -> None:
        """No frozen parameter is in the optimizer and none that trains is missing."""
        strategy = self.trial(self.scenarios[0]).strategy
        held = {id(p) for g in strategy.optimizer.param_groups for p in g["params"]}
        assert held == {id(p) for p in strategy.model.parameters() if p.requires_grad}

    def test_only_what_is_optimized_gets_gradients(self) -> None:
        """No parameter that the optimizer does not hold had a gradient at any step."""
        assert not self.trial(self.scenarios[0]).watch.not_optimized

    def test_uses_what_it_is_handed(self) -> None:
        """Plugins and evaluator are those that were handed in."""
        trial = self.trial(self.scenarios[0])
        assert trial.watch.experiences == len(visits(trial.strategy, trial.benchmark.train_stream))
        assert trial.strategy.evaluator is trial.evaluator

    def test_same_seed_same_numbers(self) -> None:
        """Two runs of one seed end with the same weights, bit for bit."""
        ends = []
        for _ in range(2):
            strategy = self.build(seed=1, epochs=2)
            stream = list(self.benchmark(self.scenarios[0]).train_stream)[:2]
            for experience in visits(strategy, stream):
                strategy.train(experience)
            ends.append(weights(strategy.model))
        assert not differing(*ends)

    @pytest.mark.parametrize("size", [1, 3])
    def test_minibatches_of_any_size(self, size: int) -> None:
        """Minibatches of one image, and of three with one left over, train and evaluate."""
        benchmark = self.benchmark(self.scenarios[0])
        strategy, first = self.build(epochs=1), benchmark.train_stream[0]
        strategy.train_mb_size = size
        strategy.train(pick((first, spread(first, 4))))
        assert outputs(strategy, pick((benchmark.test_stream[0], [0]))).isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_precision(self, dtype: torch.dtype) -> None:
        """In float32 and under bfloat16 autocast an experience trains to finite numbers."""
        benchmark, low = self.benchmark(self.scenarios[0]), dtype == torch.bfloat16
        strategy, first = self.build(epochs=1), benchmark.train_stream[0]
        if isinstance(strategy, PEFTTemplate):
            strategy.mixed_precision = "bf16" if low else "no"
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            strategy.train(pick((first, spread(first, 8))))
            logits = outputs(strategy, pick((benchmark.test_stream[0], range(4))))
        assert logits.isfinite().all()
        assert all(p.isfinite().all() for p in strategy.model.parameters())

    # --- prediction ----------------------------------------------------------------------------

    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_prediction_is_independent_of_the_minibatch(self, scenario: str) -> None:
        """An image has its logits alone, among others, in another order, beside other classes.

        The others may be of another experience, under whose number all are evaluated.
        """
        strategy, benchmark, *_ = self.trial(scenario)
        if StrategyOffers.of(strategy).batch_independent_at_test is False:
            pytest.skip("the method says that its predictions depend on the minibatch")
        first, last = benchmark.test_stream[0], benchmark.test_stream[1]
        which = spread(last, 4)
        together = outputs(strategy, pick((last, which)))
        alone = torch.cat([outputs(strategy, pick((last, [i]))) for i in which])
        back = outputs(strategy, pick((last, which[::-1]))).flip(0)
        beside = outputs(strategy, pick((first, range(6)), (last, which)))[6:]
        for how, logits in (("alone", alone), ("in reverse", back), ("beside others", beside)):
            assert torch.allclose(logits, together, atol=1e-4, rtol=1e-4), how

    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_no_task_label_at_test_unless_declared(self, scenario: str) -> None:
        """What the strategy says of task labels is declared; undeclared, wrong ones do not matter.

        They are tried where they differ: in scenario ``"task"``, on an experience whose label is
        not 0.
        """
        strategy, benchmark, *_ = self.trial(scenario)
        declared = scenario in self.uses_task_labels
        stated = bool(StrategyOffers.of(strategy).task_label_at_test)
        assert declared or not stated, "it says that it uses task labels"
        if declared or scenario != "task":
            return
        first, last = benchmark.test_stream[0], benchmark.test_stream[1]
        images = pick((last, range(len(last.dataset))))
        wrong = pick((last, range(len(last.dataset))), like=first)
        seen, misled = outputs(strategy, images), outputs(strategy, wrong, task_label=0)
        torch.testing.assert_close(misled, seen, atol=1e-4, rtol=1e-4)

    # --- what is kept --------------------------------------------------------------------------

    def test_state_dict_round_trip(self) -> None:
        """A new network, grown for the same classes, predicts the same with the trained weights."""
        strategy, benchmark, *_ = self.trial(self.scenarios[0])
        new = self.build(seed=1)
        for new.experience in benchmark.train_stream:
            new.is_training = True
            new.model = new.model_adaptation()
        new.model.load_state_dict(strategy.model.state_dict())
        test = benchmark.test_stream[0]
        assert torch.equal(outputs(new, test), outputs(strategy, test))

    def test_exported_network_predicts_the_same(self) -> None:
        """A network built again as it says, with the trained weights, gives the same logits."""
        strategy, benchmark, *_ = self.trial(self.scenarios[0])
        test = benchmark.test_stream[0]
        images = torch.stack([test.dataset[i][0] for i in spread(test, 4)])
        model = network_of(strategy).eval()
        assert differs_when_rebuilt(model, self.backbone(), images) is None

    def test_goes_on_from_its_state(self) -> None:
        """New strategies with the old one's state train on to the same weights, bit for bit.

        The state is taken between two experiences and, of a :class:`.PEFTTemplate`, inside one.
        """
        strategy = self.build()
        if problems := obstacles(strategy):
            pytest.skip(f"runs of the method cannot be resumed: {'; '.join(problems)}")
        stream = visits(strategy, list(self.benchmark(self.scenarios[0]).train_stream)[:2])
        assert not ends_elsewhere(lambda: self.build(epochs=2), stream)
