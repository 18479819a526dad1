"""HiDe-Prompt: which prompts an image gets, clusters by NumPy, the contrast and the alignment."""

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from peftcl_prompts.clusters import Clusters, align, cluster
from peftcl_prompts.hide_branch import build_hide_prompts
from peftcl_prompts.hide_prompt import HiDePromptPlugin, build_hide_prompt
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional as F

from avalanche_peftcl.models import forward_branches
from avalanche_peftcl.testing import learnable_benchmark, seeing_backbone


@pytest.fixture(scope="module")
def trained():
    """A strategy after two experiences, what it held after each, the images of each."""
    torch.manual_seed(0)
    strategy = build_hide_prompt(
        backbone=seeing_backbone(),
        evaluator=EvaluationPlugin(),
        train_epochs=4,
        train_mb_size=8,
        lr=0.05,
        head_lr=0.02,
        identity_lr=0.02,
        mix=0.25,
        centroids=2,
        align_epochs=5,
        align_samples=16,
        mixed_precision="no",
    )
    kept, images = [], []
    for experience in learnable_benchmark(per_class=6).train_stream:
        strategy.train(experience)
        kept.append({n: t.clone() for n, t in strategy.network.state_dict().items()})
        images.append(torch.stack([x for x, *_ in experience.dataset.eval()]))
    (plugin,) = (p for p in strategy.plugins if isinstance(p, HiDePromptPlugin))
    return strategy, kept, images, plugin


@torch.no_grad()
def test_an_image_has_the_prompts_of_the_experience_that_its_class_came_with(
    trained, feature_by_hand
):
    strategy, _, images, _ = trained
    network = strategy.network.eval()
    backbone, branch = network.backbone, network.branch
    test = torch.cat([each[::3] for each in images])
    told = branch.identity
    query = backbone(test)
    read = F.layer_norm(query + told.mlp(query), (32,), told.norm.weight, told.norm.bias)
    guessed = (read @ told.head.weight.T + told.head.bias).argmax(dim=1)
    owners = [int(row) // 2 for row in guessed]  # two classes each
    assert set(owners) == {0, 1}
    prompts = branch.parts.every("prompts")
    hand = torch.stack(
        [
            feature_by_hand(
                backbone, image, {i: (prompts[t, i, 0], prompts[t, i, 1]) for i in range(3)}
            )
            for image, t in zip(test, owners, strict=True)
        ]
    )
    (found,) = forward_branches(backbone, [branch], test)
    torch.testing.assert_close(found, hand, atol=1e-5, rtol=1e-5)
    expected = hand @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(test), expected, atol=1e-4, rtol=1e-4)


def test_prompts_are_drawn_to_the_mean_of_the_earlier_ones_and_written_back():
    torch.manual_seed(0)
    branch = build_hide_prompts(backbone=seeing_backbone(), mix=0.25)
    first = branch.parts.prompts.detach().clone()
    assert torch.equal(branch.prompts()[0], first)
    for number in (1, 2, 3):
        branch.start_experience(number)
        with torch.no_grad():
            branch.parts.prompts.uniform_(-1, 1)
        past, raw = branch.parts.past("prompts"), branch.parts.prompts.detach().clone()
        expected = raw if number == 1 else 0.75 * raw + 0.25 * past.mean(dim=0)
        torch.testing.assert_close(branch.prompts()[-1], expected)
        branch.write_back()
        torch.testing.assert_close(branch.parts.prompts.detach(), expected)
        torch.testing.assert_close(branch.prompts()[-1], expected)  # not a second time
    branch.start_experience(4)
    torch.testing.assert_close(branch.parts.prompts.detach(), expected)  # from the one before


def test_earlier_prompts_do_not_move(trained):
    _, (first, second), _, _ = trained
    name = "branch.parts.past_prompts"
    assert torch.equal(second[name][0], first["branch.parts.prompts"])
    assert not torch.equal(second["branch.parts.prompts"], first["branch.parts.prompts"])
    assert second["branch.identity.head.owners"].tolist() == [0, 0, 1, 1]


def test_clusters_are_those_of_kmeans():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(30, 4)).astype(np.float32)
    rows = np.repeat([2, 0], 15)
    found = cluster(torch.from_numpy(features), torch.from_numpy(rows), count=3, seed=1)
    for row in (0, 2):
        own = features[rows == row]
        kmeans = KMeans(3, n_init=10, random_state=1).fit(own)
        mine = found.rows.numpy() == row
        np.testing.assert_allclose(
            found.centroids[mine].numpy(), kmeans.cluster_centers_, atol=1e-5
        )
        variances = [own[kmeans.labels_ == k].var(axis=0) for k in range(3)]
        np.testing.assert_allclose(found.variances[mine].numpy(), variances, atol=1e-5)
    again = cluster(torch.ones(2, 4), torch.tensor([2, 2]), count=1, seed=0)
    both = found.replaced(again)
    assert both.rows.tolist() == [0, 0, 0, 2]
    assert torch.equal(both.centroids[-1], torch.ones(4))


def test_draws_have_the_moments_of_the_clusters():
    clusters = Clusters(
        torch.tensor([1, 0]), torch.tensor([[3.0], [-1.0]]), torch.tensor([[4.0], [0.0]])
    )
    drawn, rows = clusters.draw(20_000, torch.Generator().manual_seed(0))
    one = drawn[rows == 1]
    assert one.mean().item() == pytest.approx(3, abs=5 * 2 / 20_000**0.5)
    assert one.std().item() == pytest.approx(2, rel=0.05)
    assert drawn[rows == 0].std().item() == pytest.approx(1e-2, rel=0.05)  # of the jitter


def test_an_alignment_brings_a_head_to_all_classes():
    torch.manual_seed(0)
    head = nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 5.0]))  # it knows the newest class alone
    clusters = Clusters(
        torch.tensor([0, 1]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.full((2, 2), 0.01)
    )
    align(
        head,
        clusters,
        read=lambda features: 10 * features,
        epochs=20,
        samples=32,
        lr=0.05,
        weight_decay=0.0,
        generator=torch.Generator().manual_seed(0),
    )
    drawn, rows = clusters.draw(50, torch.Generator().manual_seed(1))
    assert (head(10 * drawn).argmax(dim=1) == rows).float().mean() > 0.95


def test_statistics_are_of_each_class_with_its_prompts_and_without(trained):
    strategy, _, images, plugin = trained
    assert plugin.prompted["rows"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    with torch.no_grad():
        frozen = strategy.network.backbone(images[1])
    ones = frozen[:6]  # of the first class of the second experience
    kmeans = KMeans(2, n_init=10, random_state=0).fit(ones.numpy())
    own = plugin.frozen["centroids"][plugin.frozen["rows"] == 2].numpy()
    np.testing.assert_allclose(
        np.sort(own, axis=0), np.sort(kmeans.cluster_centers_, axis=0), atol=1e-4
    )


def test_the_contrast_holds_features_and_stored_centroids_apart(trained):
    *_, plugin = trained
    features = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    every = np.concatenate([plugin.prompted["centroids"].numpy(), features.numpy()])
    apart = every.astype(np.float64) @ every.T / 0.8
    top = apart.max(axis=1)
    loss = top + np.log(np.exp(apart - top[:, None]).sum(axis=1)) - np.diag(apart)
    assert plugin._contrast(features).item() == pytest.approx(loss.mean(), rel=1e-4)
