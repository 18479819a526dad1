"""S-Prompts: centroids and the nearest of them by scikit-learn and SciPy, the rest by hand."""

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EvaluationPlugin
from peftcl_prompts.experience_heads import ExperienceHeads
from peftcl_prompts.s_prompts import build_s_prompts, nearest
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from torch.nn import functional as F

from avalanche_peftcl.testing import learnable_benchmark, seeing_backbone


def test_the_nearest_centroid_is_the_one_of_kmeans():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 6)).astype(np.float32)
    kmeans = KMeans(5, n_init=2, random_state=0).fit(features)
    new = rng.normal(size=(30, 6)).astype(np.float32)
    centroids = torch.from_numpy(kmeans.cluster_centers_)
    by_l2 = nearest(torch.from_numpy(new), centroids, distance="l2").numpy()
    by_l1 = nearest(torch.from_numpy(new), centroids, distance="l1").numpy()
    assert np.array_equal(by_l2, kmeans.predict(new))
    assert np.array_equal(by_l1, cdist(new, centroids.numpy(), "cityblock").argmin(axis=1))
    assert not np.array_equal(by_l1, by_l2)


@pytest.fixture(scope="module")
def trained():
    """A strategy after three domains, what it held after each, the images of each."""
    torch.manual_seed(0)
    backbone = seeing_backbone()
    strategy = build_s_prompts(
        backbone=backbone,
        evaluator=EvaluationPlugin(),
        length=3,
        centroids=2,
        train_epochs=1,
        train_mb_size=16,
        mixed_precision="no",
        lr=0.5,
    )
    benchmark = learnable_benchmark("domain", classes_per_experience=(2, 1, 1), per_class=4)
    kept, images = [], []
    for experience in benchmark.train_stream:
        strategy.train(experience)
        kept.append({n: t.clone() for n, t in strategy.network.state_dict().items()})
        images.append(torch.stack([x for x, *_ in experience.dataset.eval()]))
    return strategy, kept, images


@torch.no_grad()
def test_centroids_are_those_of_each_experience(trained):
    strategy, _, images = trained
    branch, backbone = strategy.network.branch, strategy.network.backbone
    for number, seen in enumerate(images):
        features = F.normalize(backbone(seen), dim=1).numpy()
        expected = KMeans(2, n_init=10, random_state=0).fit(features).cluster_centers_
        own = branch.centroids.values[branch.centroids.owners == number].numpy()
        np.testing.assert_allclose(own, expected, atol=1e-5)


@torch.no_grad()
def test_an_image_has_the_prompt_and_the_classifier_of_its_domain(trained):
    strategy, kept, images = trained
    network = strategy.network.eval()
    backbone, branch = network.backbone, network.branch
    test = torch.cat(images)
    features = F.normalize(backbone(test), dim=1).numpy()
    away = cdist(features, branch.centroids.values.numpy(), "cityblock")
    owners = branch.centroids.owners.numpy()[away.argmin(axis=1)]
    assert len(set(owners.tolist())) == 3
    expected = []
    for image, owner in zip(test, owners, strict=True):
        then = kept[owner]  # what trained in this domain, as it was when that ended
        tokens = backbone.embed(image[None])
        tokens = torch.cat(
            [tokens[:, :1], then["branch.parts.prompts"][None], tokens[:, 1:]], dim=1
        )
        feature = backbone.vit.norm(backbone.vit.blocks(tokens))[0, 0]
        weight, bias = then["head.current.weight"], then["head.current.bias"]
        expected.append(weight @ feature + bias)
    torch.testing.assert_close(network(test), torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_nothing_of_earlier_domains_trains(trained):
    strategy, kept, _ = trained
    named = {n for n, p in strategy.network.named_parameters() if p.requires_grad}
    assert named == {"branch.parts.prompts", "head.current.weight", "head.current.bias"}
    assert torch.equal(kept[2]["branch.parts.past_prompts"][0], kept[0]["branch.parts.prompts"])
    assert torch.equal(kept[2]["head.past.weight"][:4], kept[0]["head.current.weight"])
    assert not torch.equal(kept[1]["head.current.weight"], kept[0]["head.current.weight"])


def test_a_classifier_that_began_begins_once():
    heads = ExperienceHeads(3)
    for number, rows in enumerate([[0, 1], [2]]):
        heads.learn_rows(rows)
        heads.begin_experience(number)
        held = heads.current.weight
        heads.begin_experience(number)
        assert heads.current.weight is held
    assert heads.past.classes.tolist() == [0, 1]
    assert heads.current.classes.tolist() == [2]
