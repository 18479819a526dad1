"""NTK-CL on digits in plain Python: no registry, no YAML, every piece in sight.

python examples/plain_python.py
"""

import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin

from avalanche_peftcl.benchmarks import digits
from avalanche_peftcl.evaluation import AccuracyMatrix
from avalanche_peftcl.models import NTKCLModel, vit_glyph
from avalanche_peftcl.training import NTKCL


def main(train_epochs: int = 2) -> AccuracyMatrix:
    """Train on five experiences of two digits and return the accuracy matrix."""
    torch.manual_seed(0)
    backbone = vit_glyph()
    benchmark = digits(input_config=backbone.input_config, n_experiences=5, seed=0)

    model = NTKCLModel(backbone, recipe="corrected", r=8, prompt_length=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
    matrix = AccuracyMatrix()
    evaluator = EvaluationPlugin(
        matrix,
        accuracy_metrics(stream=True),
        loss_metrics(epoch=True),
        loggers=[InteractiveLogger()],
    )
    strategy = NTKCL(
        model=model,
        optimizer=optimizer,
        plugins=[ReplayPlugin(mem_size=50)],  # any Avalanche plugin
        evaluator=evaluator,
        train_mb_size=32,
        train_epochs=train_epochs,
    )
    for t, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        strategy.eval(benchmark.test_stream[: t + 1])
    return matrix


if __name__ == "__main__":
    result = main()
    print(result.matrix)
    print(result.summary())
