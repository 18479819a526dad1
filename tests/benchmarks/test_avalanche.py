"""Avalanche's own strategies and metrics run on our benchmarks."""

from typing import Any

import pytest
import torch
from avalanche.evaluation import metrics
from avalanche.logging import BaseLogger
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import EWC, LwF, Naive, Replay
from torch import Tensor, nn

from avalanche_peftcl.benchmarks import digits
from avalanche_peftcl.models.backbones.backbone import InputConfig

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")

STRATEGIES = {
    "naive": (Naive, {}),
    "replay": (Replay, {"mem_size": 20}),
    "ewc": (EWC, {"ewc_lambda": 1.0}),
    "lwf": (LwF, {"alpha": 1.0, "temperature": 2.0}),
}

SLOW = {("lwf", "domain"), ("lwf", "online"), ("lwf", "task"), ("ewc", "domain"), ("ewc", "online")}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = IncrementalClassifier(192)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x.flatten(1))


class MultiTaskNet(MultiTaskModule):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = MultiHeadClassifier(192)

    def forward(self, x: Tensor, task_labels: Tensor) -> Tensor:
        return self.classifier(x.flatten(1), task_labels)


def build(scenario: Any, **options: Any) -> Any:
    sizes: dict[str, Any] = {"classes_per_experience": [5, 3, 2]}
    if scenario == "domain":
        sizes = {"n_experiences": 3}
    return digits(
        input_config=InputConfig(img_size=8),
        scenario=scenario,
        train_per_class=5,
        experience_size=20,
        **sizes | options,
    )


def make_strategy(name: str, scenario: str, evaluator: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    model = MultiTaskNet() if scenario == "task" else Net()
    strategy_class, own = STRATEGIES[name]
    options = {"train_mb_size": 8, "eval_mb_size": 64} | options
    return strategy_class(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        evaluator=evaluator,
        **own,
        **options,
    )


def every_metric(n_classes: int) -> list[Any]:
    levels = {"epoch": True, "experience": True, "stream": True}
    return [
        metrics.accuracy_metrics(minibatch=True, trained_experience=True, **levels),
        metrics.loss_metrics(minibatch=True, **levels),
        metrics.topk_acc_metrics(top_k=2, **levels),
        metrics.class_accuracy_metrics(classes=list(range(n_classes)), **levels),
        metrics.amca_metrics(streams=("test",)),
        metrics.confusion_matrix_metrics(num_classes=n_classes, save_image=False, stream=True),
        metrics.labels_repartition_metrics(on_train=True, on_eval=True, image_creator=None),
        metrics.forgetting_metrics(experience=True, stream=True),
        metrics.bwt_metrics(experience=True, stream=True),
        metrics.forward_transfer_metrics(experience=True, stream=True),
        metrics.timing_metrics(epoch=True),
    ]


@pytest.mark.parametrize(
    ("name", "scenario"),
    [
        pytest.param(
            name,
            scenario,
            id=f"{name}-{scenario}",
            marks=[pytest.mark.slow] if (name, scenario) in SLOW else [],
        )
        for name in STRATEGIES
        for scenario in ("class", "task", "domain", "online")
    ],
)
def test_strategies_and_metrics_run(name: str, scenario: str) -> None:
    benchmark = build(scenario)
    evaluator = EvaluationPlugin(*every_metric(10), loggers=[BaseLogger()])
    strategy = make_strategy(name, scenario, evaluator, eval_every=0)
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[benchmark.test_stream])
        results = strategy.eval(benchmark.test_stream)
    texts = " ".join(results)
    for metric in (
        *["Top1_Acc_Stream", "Topk_2_Acc_Stream", "Loss_Stream", "Top1_ClassAcc_Stream", "AMCA"],
        *["ConfusionMatrix_Stream", "StreamForgetting", "StreamBWT", "StreamForwardTransfer"],
    ):
        assert metric in texts
    accuracy = [v for k, v in results.items() if k.startswith("Top1_Acc_Stream")]
    assert all(0 <= value <= 1 for value in accuracy)


@pytest.mark.parametrize("batch", [7, 24])  # 25 images: a last batch of 4, and of one
def test_a_last_batch_of_any_size(batch: int) -> None:
    strategy = make_strategy("replay", "class", None, train_mb_size=batch)
    benchmark = build("class")
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert strategy.clock.train_exp_counter == 3


def test_learning_works() -> None:
    benchmark = digits(input_config=InputConfig(img_size=8), n_experiences=1)
    evaluator = EvaluationPlugin(metrics.accuracy_metrics(stream=True), loggers=[BaseLogger()])
    strategy = make_strategy("naive", "class", evaluator, train_mb_size=32, train_epochs=5)
    strategy.train(benchmark.train_stream[0])
    (accuracy,) = strategy.eval(benchmark.test_stream).values()
    assert accuracy > 0.85


def test_only_the_seen_part_of_the_stream_is_evaluated() -> None:
    benchmark = build("class")
    evaluator = EvaluationPlugin(metrics.accuracy_metrics(experience=True), loggers=[BaseLogger()])
    strategy = make_strategy("naive", "class", evaluator)
    strategy.train(benchmark.train_stream[0])
    results = strategy.eval(benchmark.test_stream[:2])
    assert [key[-6:] for key in sorted(results)] == ["Exp000", "Exp001"]
