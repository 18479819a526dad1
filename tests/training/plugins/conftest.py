"""A toy model and ways to train and read it, for the tests of gradient projection."""

import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from avalanche_peftcl.models.modules.attention_adapter import AttentionAdapter
from avalanche_peftcl.models.projection.sites import listen, projection_sites

DIM = 32
OPTIMIZERS = {
    "plain": lambda p: torch.optim.SGD(p, lr=0.5),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


class Toy(nn.Module):
    """A frozen layer, an adapter with room to learn, and a head that grows."""

    def __init__(self, adapter=None):
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(3 * 16 * 16, DIM).requires_grad_(False)
        self.adapter = AttentionAdapter(DIM, r=20) if adapter is None else adapter
        self.head = IncrementalClassifier(DIM, initial_out_features=2)

    def adapted(self, x):
        hidden = torch.tanh(self.frozen(x.flatten(1)))
        return hidden + self.adapter(hidden)

    def forward(self, x):
        return self.head(self.adapted(x))


@pytest.fixture(scope="session")
def toy():
    """The class of the toy model, to be called or derived from."""
    return Toy


@pytest.fixture(scope="session")
def make_strategy():
    """Build a strategy that trains a model with these plugins and an optimizer of this name."""

    def make(model, plugins, *, optimizer="adam", strategy=Naive, **options):
        defaults = {"train_mb_size": 4, "train_epochs": 3, "eval_mb_size": 4}
        return strategy(
            model=model,
            optimizer=OPTIMIZERS[optimizer](model.parameters()),
            criterion=nn.CrossEntropyLoss(),
            plugins=plugins,
            **({"evaluator": EvaluationPlugin()} | defaults | options),
        )

    return make


@pytest.fixture(scope="session")
def images():
    """Stack all images of some experiences, without augmentation."""

    def stack(*experiences):
        data = [experience.dataset.eval() for experience in experiences]
        return torch.stack([each[i][0] for each in data for i in range(len(each))])

    return stack


@pytest.fixture(scope="session")
def look():
    """Collect the features of every site and the adapter's output, in eval mode."""

    @torch.no_grad()
    def look(model, x):
        seen, mode = {}, model.training
        sites = projection_sites(model)
        with listen(sites, lambda site, features: seen.update({site.name: features.clone()})):
            seen["output"] = model.eval().adapted(x)
        model.train(mode)
        return seen

    return look
