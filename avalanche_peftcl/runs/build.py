"""The parts of a run, built from its plan in the order in which they need each other."""

import warnings
from dataclasses import dataclass
from typing import Any

from torch import nn

from avalanche_peftcl.config.plan import Plan
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation import AccuracyMatrix, CostMetric
from avalanche_peftcl.evaluation.further import LastValues
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.models.backbones.weights import check_weights
from avalanche_peftcl.registry.offers import BackboneOffers
from avalanche_peftcl.runs.progress import RunProgress
from avalanche_peftcl.training.plugins import BudgetPlugin

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "no QP solver found", UserWarning)
    from avalanche.training.plugins import EvaluationPlugin


@dataclass(frozen=True)
class Backbone:
    """The frozen network, and what it expects of an image."""

    network: nn.Module
    input_config: InputConfig


@dataclass(frozen=True)
class Method:
    """The strategy, and what it is watched by.

    Args:
        strategy: Any Avalanche strategy.
        evaluator: Its evaluator.
        accuracy: The accuracy matrix.
        cost: The cost.
        further: Values of the metrics that were asked for beside these.
        metrics: Those metrics.
    """

    strategy: Any
    evaluator: EvaluationPlugin
    accuracy: AccuracyMatrix
    cost: CostMetric
    further: LastValues
    metrics: list[Any]


def build_backbone(plan: Plan) -> Backbone:
    """Build the frozen network.

    Raises:
        ConfigError: If it does not say what images it expects.
        NotFiniteError: If a weight is not a finite number.
    """
    name = plan.config.backbone.name
    network = plan.build("backbone")
    check_weights(network, f"the backbone {name!r}")
    input_config = BackboneOffers.of(network).input_config
    if input_config is None:
        raise ConfigError(
            f"backbone {name!r} has no input_config, from which a benchmark knows what images to "
            "give it"
        )
    return Backbone(network, input_config)


def build_method(plan: Plan, backbone: Backbone, *, device: str, reporter: RunProgress) -> Method:
    """Build PEFT module, plugins and metrics, and the strategy of them."""
    module = plan.build("module", backbone=backbone.network)
    plugins, metrics = plan.build_all("strategy_plugin"), plan.build_all("metric")
    accuracy, cost = AccuracyMatrix(), CostMetric()
    further = LastValues(besides=[accuracy, cost])
    watching = [reporter, further] if metrics else [reporter]
    evaluator = EvaluationPlugin(accuracy, cost, *metrics, loggers=watching)
    strategy = plan.build(
        "strategy",
        backbone=backbone.network,
        module=module,
        head=plan.head(backbone.network),
        device=device,
        plugins=plugins,
        evaluator=evaluator,
    )
    if (budget := plan.config.budget) is not None:
        strategy.plugins.append(BudgetPlugin(**budget.limits))  # the last: it sees what all did
    asked = [each for each in evaluator.metrics if each is not accuracy and each is not cost]
    return Method(strategy, evaluator, accuracy, cost, further, asked)
