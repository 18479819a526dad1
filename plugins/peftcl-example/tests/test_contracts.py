from avalanche.training.plugins import EvaluationPlugin
from peftcl_example import peftcl_strategies
from peftcl_example.probe import linear_probe
from peftcl_example.stripes import stripes

from avalanche_peftcl.testing import (
    BenchmarkContract,
    StrategyContract,
    count_costs,
    differing_costs,
    toy_backbone,
    toy_benchmark,
)


class TestLinearProbe(StrategyContract):
    adapts = False  # nothing inside the network learns
    uses_task_labels = ()  # one head over all classes in every scenario

    def create_strategy(self, backbone, *, plugins, evaluator):
        return linear_probe(
            backbone=backbone, device="cpu", plugins=plugins, evaluator=evaluator, train_epochs=8
        )


class TestStripes(BenchmarkContract):
    def create_benchmark(self, input_config, *, seed):
        return stripes(input_config=input_config, seed=seed)


class TestStripesDomain(BenchmarkContract):
    def create_benchmark(self, input_config, *, seed):
        return stripes(input_config=input_config, scenario="domain", seed=seed)


def test_the_probe_costs_what_it_says():
    (component,) = peftcl_strategies()
    strategy = linear_probe(
        backbone=toy_backbone(), evaluator=EvaluationPlugin(), train_epochs=1, train_mb_size=6
    )
    counted = count_costs(strategy, toy_benchmark(per_class=4))
    assert differing_costs(component.costs, counted, D=32) == []
