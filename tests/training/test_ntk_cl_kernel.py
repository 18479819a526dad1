"""NTK-CL's recipe "kernel" against sums and maps that are made by hand."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    AdapterBranch,
    Branch,
    LinearHead,
    PEFTModel,
    PrototypeHead,
    RandomRidgeHead,
    RidgeHead,
    forward_branches,
)
from avalanche_peftcl.testing import toy_backbone, toy_benchmark
from avalanche_peftcl.training.ntk_cl import build_ntk_cl
from avalanche_peftcl.training.ntk_cl_kernel import NTKCLKernel, build_kernel_model

SETTINGS = {"recipe": "kernel", "train_epochs": 2, "train_mb_size": 6, "lr": 0.02, "r": 4}
SETTINGS |= {"optimizer": "adam", "mixed_precision": "no"}
WIDTH, BLOCKS = 32, 3


def images_and_classes(experience):
    data = experience.dataset.eval()
    pairs = [(x, int(y)) for x, y, *_ in (data[i] for i in range(len(data)))]
    return torch.stack([x for x, _ in pairs]), torch.tensor([y for _, y in pairs])


@torch.no_grad()
def read(model, images):
    """Return the frozen blocks and the adapted ones above the first, each on unit norm."""
    model.eval()
    both = forward_branches(
        model.backbone, [Branch(), model.branch], images, features=["blocks", [1, 2]]
    )
    return torch.cat([F.normalize(z, dim=1) for z in both], dim=1).double()


class Reader(SupervisedPlugin):
    """Reads the features of an experience's images before and after it is trained."""

    def __init__(self):
        super().__init__()
        self.read = []

    def before_training_exp(self, strategy, **kwargs):
        self.images, self.classes = images_and_classes(strategy.experience)
        self.before = read(strategy.model, self.images)
        strategy.model.train()

    def after_training_exp(self, strategy, **kwargs):
        after = read(strategy.model, self.images)
        strategy.model.train()
        self.read.append((self.before, after, self.classes))


def by_hand(experiences, *, mu, penalty):
    """Return the weights of a ridge regression whose earlier rows were mapped one by one."""
    moving, rows, classes = slice(2 * WIDTH * BLOCKS, None), [], []
    for before, after, of in experiences:
        if rows:
            a, b = before[:, moving], after[:, moving]
            level = mu * a.square().sum() / a.shape[1]
            eye = torch.eye(a.shape[1]).double()
            m = torch.linalg.solve(a.T @ a + level * eye, a.T @ (b - a))
            for row in rows:
                row[:, moving] = row[:, moving] @ (eye + m)
        rows.append(after.clone())
        classes.append(of)
    h, y = torch.cat(rows), F.one_hot(torch.cat(classes)).double()
    return torch.linalg.solve(h.T @ h + penalty * torch.eye(h.shape[1]).double(), h.T @ y)


@pytest.mark.parametrize("mu", [1.0, 0.01])
def test_the_head_is_the_regression_over_all_rows_moved_by_hand(mu):
    torch.manual_seed(0)
    reader, benchmark = Reader(), toy_benchmark()
    strategy = build_ntk_cl(
        backbone=toy_backbone(),
        plugins=[reader],
        head=lambda width: RidgeHead(width, penalty=0.1),
        drift_ridge=mu,
        **SETTINGS,
    )
    assert isinstance(strategy, NTKCLKernel)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    moved = [(b - a)[:, 2 * WIDTH * BLOCKS :].norm() / a.norm() for a, b, _ in reader.read]
    assert min(moved) > 0.01  # or there is nothing to map
    expected = by_hand(reader.read, mu=mu, penalty=0.1)
    # features are float32; the regression is as well-posed as 1 + n / penalty
    torch.testing.assert_close(strategy.model.head.weight.T.double(), expected, atol=1e-3, rtol=0)
    images, _ = images_and_classes(benchmark.test_stream[0])
    torch.testing.assert_close(
        strategy.model.eval()(images).double(), read(strategy.model, images) @ expected,
        atol=2e-3, rtol=0,
    )  # fmt: skip


def test_without_a_map_sums_stay_where_they_were():
    torch.manual_seed(0)
    reader, benchmark = Reader(), toy_benchmark()
    model = build_kernel_model(toy_backbone(), r=4)
    strategy = NTKCLKernel(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.02),
        drift_ridge=None,
        plugins=[reader],
        evaluator=None,
        mixed_precision="no",
        train_epochs=2,
        train_mb_size=6,
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
    h = torch.cat([after for _, after, _ in reader.read])
    assert [len(each) for _, each, _ in reader.read] == [12, 12, 12]
    torch.testing.assert_close(strategy.model.head.gram, h.T @ h, atol=1e-5, rtol=0)


def test_its_network_and_its_penalty():
    strategy = build_ntk_cl(backbone=toy_backbone(), **SETTINGS)
    model = strategy.model
    assert [type(head) for head in model.heads] == [LinearHead, RidgeHead]
    assert model.head.criterion == "scale_free"
    assert model.head.penalty_factor == 3.0
    assert model.moving == [slice(2 * WIDTH * BLOCKS, 2 * WIDTH * (BLOCKS + 2))]
    assert strategy.loss_over == "local"
    assert model.forward_passes == 2
    alone = build_kernel_model(toy_backbone(), frozen_section=None, features="pooled")
    assert alone.head.in_features == WIDTH


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_copies": 2, "temperature": 0.2}, "'kernel' has no n_copies and no temperature"),
        ({"recipe": "corrected", "features": "blocks"}, "'corrected' has no features"),
        ({"recipe": "released", "drift_ridge": 2.0}, "'released' has no drift_ridge"),
        ({"head": LinearHead}, "proxies are trained for a head that is fitted"),
        ({"features": [3]}, "block numbers from 0 to 2"),
    ],
)
def test_what_a_recipe_has_not_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_ntk_cl(backbone=toy_backbone(), **(SETTINGS | options))


def test_a_head_that_cannot_move_is_refused_before_anything_trains():
    strategy = build_ntk_cl(
        backbone=toy_backbone(), head=lambda width: RandomRidgeHead(width, n_features=8), **SETTINGS
    )
    with pytest.raises(ConfigError, match="a RandomRidgeHead cannot move"):
        strategy.train(toy_benchmark().train_stream[0])


def test_a_model_without_proxies_is_refused():
    backbone = toy_backbone()
    model = PEFTModel(backbone, AdapterBranch(WIDTH, BLOCKS), PrototypeHead)
    with pytest.raises(ConfigError, match="take build_kernel_model"):
        NTKCLKernel(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
