from peftcl_example.probe import linear_probe
from peftcl_example.stripes import stripes

from avalanche_peftcl.testing import BenchmarkContract, StrategyContract


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
