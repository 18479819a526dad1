"""What every strategy must do."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin

from avalanche_peftcl.checkpoints.archive import decode_state, encode_state
from avalanche_peftcl.checkpoints.strategy_state import StrategyState
from avalanche_peftcl.export.load import rebuild
from avalanche_peftcl.export.write import not_exported
from avalanche_peftcl.models import Backbone, export_spec
from avalanche_peftcl.testing.toys import toy_backbone, toy_benchmark
from avalanche_peftcl.training.rng import random_state, set_random_state

SCENARIOS = ("class", "task", "domain", "online")


class StrategyContract:
    """Subclass, write :meth:`create_strategy`, and the suite is yours.

    The strategy's model has the attribute ``backbone``.

    Attributes:
        scenarios: The scenarios that the method claims; the others are skipped.
        uses_task_labels: Scenarios in which it may read the task labels of test images.
    """

    scenarios: tuple[str, ...] = SCENARIOS
    uses_task_labels: tuple[str, ...] = ("task",)

    def create_strategy(self, backbone: Backbone, *, plugins: Sequence[Any], evaluator: Any) -> Any:
        """Return the strategy under test, set to train for a few steps."""
        raise NotImplementedError

    def train(self, scenario: str, *, seed: int = 0, experiences: int = 2) -> tuple[Any, Any]:
        """Return the strategy trained on the first toy experiences, and the benchmark."""
        if scenario not in self.scenarios:
            pytest.skip(f"the method does not claim scenario {scenario!r}")
        benchmark = toy_benchmark(scenario)
        torch.manual_seed(seed)
        strategy = self.create_strategy(toy_backbone(), plugins=(), evaluator=EvaluationPlugin())
        chunks = experiences if scenario != "online" else 2 * experiences
        for t, experience in enumerate(benchmark.train_stream):
            if t < chunks:
                strategy.train(experience)
        return strategy, benchmark

    def predict(self, strategy: Any, benchmark: Any, indices: Sequence[int]) -> list[int]:
        """Return the predictions for test images of the first experience, in one minibatch."""
        dataset = benchmark.test_stream[0].dataset
        seen: list[int] = []

        class Collect:
            """Stands in for the criterion: keeps the predictions of the minibatch."""

            def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
                seen.extend(output.argmax(dim=1).tolist())
                return output.sum() * 0

        criterion, size = strategy._criterion, strategy.eval_mb_size
        strategy._criterion, strategy.eval_mb_size = Collect(), len(indices)
        experience = copy.copy(benchmark.test_stream[0])
        experience.dataset = dataset.subset(list(indices))
        strategy.eval([experience])
        strategy._criterion, strategy.eval_mb_size = criterion, size
        return seen

    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_trains_and_evaluates(self, scenario: str) -> None:
        """Two experiences train and evaluate; every parameter stays finite."""
        strategy, benchmark = self.train(scenario)
        strategy.eval(benchmark.test_stream)
        assert all(p.isfinite().all() for p in strategy.model.parameters())

    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_backbone_is_bit_identical(self, scenario: str) -> None:
        """Training leaves the backbone as it was, bit for bit, and in eval mode."""
        strategy, _ = self.train(scenario)
        before, backbone = toy_backbone().state_dict(), strategy.model.backbone
        after = backbone.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not any(m.training for m in backbone.modules())

    def test_optimizer_holds_what_trains(self) -> None:
        """No frozen parameter is in the optimizer and none that trains is missing."""
        strategy, _ = self.train(self.scenarios[0])
        held = {id(p) for g in strategy.optimizer.param_groups for p in g["params"]}
        assert held == {id(p) for p in strategy.model.parameters() if p.requires_grad}

    def test_same_seed_same_numbers(self) -> None:
        """Two runs of one seed end with the same weights, bit for bit."""
        one, _ = self.train(self.scenarios[0], seed=1)
        two, _ = self.train(self.scenarios[0], seed=1)
        states = one.model.state_dict(), two.model.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_state_dict_round_trip(self) -> None:
        """A trained state dict survives being copied, wrecked and loaded again."""
        strategy, _ = self.train(self.scenarios[0])
        model = strategy.model
        saved = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1.0)
        model.load_state_dict(saved)
        assert all(torch.equal(v, saved[k]) for k, v in model.state_dict().items())

    def test_exported_network_predicts_the_same(self) -> None:
        """A network built again as it says, with the trained weights, gives the same logits."""
        strategy, benchmark = self.train(self.scenarios[0])
        model = strategy.model.eval()
        if (reason := not_exported(model)) is not None:
            pytest.skip(f"the network cannot be exported: {reason}")
        again = rebuild(export_spec(model).to_json(), toy_backbone()).eval()
        again.load_state_dict(model.state_dict())
        images = torch.stack([benchmark.test_stream[0].dataset[i][0] for i in range(4)])
        tasks = torch.zeros(4, dtype=torch.long)  # the task label of the first experience
        torch.testing.assert_close(again(images, tasks), model(images, tasks))

    def test_goes_on_from_its_state(self) -> None:
        """A new strategy with the old one's state trains on to the same weights, bit for bit."""
        strategy, benchmark = self.train(self.scenarios[0])
        keeper = StrategyState(strategy, frozen=[strategy.model.backbone])
        if problems := keeper.obstacles():
            pytest.skip(f"runs of the method cannot be resumed: {'; '.join(problems)}")
        stream, cpu = list(benchmark.train_stream), torch.device("cpu")
        done = stream[: strategy.clock.train_exp_counter]
        held = encode_state([keeper.save(trained=done), random_state(cpu)])
        new = self.create_strategy(toy_backbone(), plugins=(), evaluator=EvaluationPlugin())
        state, random = decode_state(held, "the state")
        StrategyState(new, frozen=[new.model.backbone]).load(state, trained=done, tested=[])
        ends = []
        for each in (strategy, new):
            set_random_state(random, cpu)
            each.train(stream[len(done)])
            ends.append(each.model.state_dict())
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])

    def test_prediction_is_independent_of_the_minibatch(self) -> None:
        """An image is predicted alike alone, among others, and in another order."""
        strategy, benchmark = self.train(self.scenarios[0])
        together = self.predict(strategy, benchmark, [0, 1, 2, 3])
        assert self.predict(strategy, benchmark, [3, 2, 1, 0]) == together[::-1]
        assert [self.predict(strategy, benchmark, [i])[0] for i in range(4)] == together

    @pytest.mark.parametrize("scenario", SCENARIOS)
    def test_no_task_label_at_test_unless_declared(self, scenario: str) -> None:
        """Predictions do not change with the task labels of the test images."""
        strategy, benchmark = self.train(scenario)
        if scenario in self.uses_task_labels:
            pytest.skip(f"the method declares that it uses task labels in {scenario!r}")
        seen = self.predict(strategy, benchmark, range(4))
        unpack = strategy._unpack_minibatch

        def relabel() -> None:
            unpack()
            if len(strategy.mbatch) > 2:
                strategy.mbatch[-1] = torch.zeros_like(strategy.mbatch[-1])

        strategy._unpack_minibatch = relabel
        assert self.predict(strategy, benchmark, range(4)) == seen
