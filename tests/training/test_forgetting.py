import pytest
import torch

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    GaussianHead,
    LDAHead,
    PrototypeHead,
    RandomRidgeHead,
    RidgeHead,
    build_kernel_ridge,
)
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training import forget_experience
from avalanche_peftcl.training.closed_form import build_closed_form
from avalanche_peftcl.training.naive import build_naive

HEADS = {
    "prototypes": PrototypeHead,
    "lda": LDAHead,
    "gaussian": GaussianHead,
    "ridge": RidgeHead,
    "random_ridge": lambda width: RandomRidgeHead(width, n_features=50, seed=0),
    "kernel_ridge": lambda width: build_kernel_ridge(
        in_features=width, n_features=50, seed=0, bandwidth=3.0
    ),
    "exact": lambda width: build_kernel_ridge(in_features=width, exact=True, bandwidth=3.0),
}
SIZES = {"eval_mb_size": 7}


def trained(head, experiences):
    strategy = build_closed_form(backbone=toy_backbone(), head=head, **SIZES)
    for experience in experiences:
        strategy.train(experience)
    strategy.model.eval()
    return strategy


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("scenario", ["class", "domain", "task"])
def test_an_experience_that_is_forgotten_was_never_seen(name, scenario):
    stream = list(toy_benchmark(scenario).train_stream)
    strategy = trained(HEADS[name], stream)
    others = [stream[0], *stream[2:]]
    before = trained(HEADS[name], others)
    forget_experience(strategy, stream[1])
    images = torch.rand(6, *stream[0].dataset[0][0].shape, generator=seeded())
    for task in {int(each.task_label) for each in others}:
        tasks = torch.full((6,), task)
        with torch.no_grad():
            expected, logits = before.model(images, tasks), strategy.model(images, tasks)
        width = min(expected.shape[1], logits.shape[1])
        torch.testing.assert_close(logits[:, :width], expected[:, :width], atol=1e-3, rtol=1e-3)
        assert logits[:, width:].eq(-1000).all()


@pytest.mark.parametrize("name", HEADS)
def test_what_was_not_observed_cannot_be_forgotten_and_leaves_the_head_as_it_was(name):
    stream = toy_benchmark("class").train_stream
    strategy = trained(HEADS[name], stream)
    forget_experience(strategy, stream[1])
    before = {key: value.clone() for key, value in strategy.model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"remove each image once|was not observed"):
        forget_experience(strategy, stream[1])
    after = strategy.model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    strategy.train(stream[1])  # and it learns it again
    whole = trained(HEADS[name], stream)
    images = torch.rand(6, *stream[0].dataset[0][0].shape, generator=seeded())
    with torch.no_grad():
        torch.testing.assert_close(
            strategy.model(images), whole.model(images), atol=1e-3, rtol=1e-3
        )


def test_a_trained_head_has_nothing_to_forget_with():
    strategy = build_naive(backbone=toy_backbone(), train_epochs=1)
    stream = toy_benchmark("class").train_stream
    strategy.train(stream[0])
    with pytest.raises(ConfigError, match="no head of the network is fitted"):
        forget_experience(strategy, stream[0])
