import json

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from sklearn.decomposition import PCA

from avalanche_peftcl.benchmarks import make_benchmark
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import InputConfig, PEFTModel
from avalanche_peftcl.models.modules.attention_adapter import build_attention_adapters
from avalanche_peftcl.models.modules.lora import build_lora
from avalanche_peftcl.models.modules.prefix import build_prefix
from avalanche_peftcl.models.modules.prompt import build_prompt
from avalanche_peftcl.models.projection.sites import listen, projection_sites
from avalanche_peftcl.testing import toy_backbone, toy_benchmark, toy_images
from avalanche_peftcl.training import PEFTTemplate
from avalanche_peftcl.training.plugins import ReleasedProjectionPlugin

DIM = 24
BRANCHES = {
    "adapter": lambda b: build_attention_adapters(backbone=b, r=5),
    "lora": lambda b: build_lora(backbone=b, r=5),
}


@pytest.fixture
def small():
    """A ViT of 5 tokens and 24 dimensions, fewer than an experience has images."""
    return toy_backbone(img_size=8, embed_dim=DIM, num_heads=2)


def stream(per_class=15):
    return make_benchmark(
        toy_images(6, per_class),
        toy_images(6, 1, seed=1),
        input_config=InputConfig(img_size=8),
        scenario="class",
        classes_per_experience=(2, 2, 2),
        augment="none",
        class_order=list(range(6)),
    ).train_stream


def make(backbone, branch, plugins, **options):
    torch.manual_seed(0)
    model = PEFTModel(backbone, branch(backbone))
    return PEFTTemplate(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        train_mb_size=10,
        eval_mb_size=7,
        plugins=plugins,
        evaluator=EvaluationPlugin(),
        **options,
    )


def features_of(model, experience):
    """The tokens of all images at every site, ``(B, N, D)``."""
    data, seen = experience.dataset.eval(), {}
    with (
        torch.no_grad(),
        listen(projection_sites(model), lambda site, x: seen.update({site.name: x.clone()})),
    ):
        model.eval().embed(torch.stack([data[i][0] for i in range(len(data))]))
    model.train()
    return seen


def gpm(basis, tokens, threshold, error):
    """Extend a basis as the release does: PCA over images, Gram over components, GPM.

    The release computes in float32, where the singular vectors are as uncertain as their values
    are close; in float64 the reference is sharp. ``error`` bounds that of the span of ``basis``;
    returned with the new basis is the bound for its own: rounding of the Gram and the old error,
    over the gap at the cut (Davis and Kahan).
    """
    dim = tokens.shape[2]
    pca = PCA(n_components=dim, svd_solver="full")
    scores = pca.fit_transform(tokens.flatten(1).double().numpy())
    gram = scores.T @ scores
    largest = np.linalg.svd(gram)[1]
    total = (largest**2).sum()

    def bound(values, count):
        if not 0 < count < len(values):
            return error
        gap = values[count - 1] - values[count]
        return error + largest[0] / gap * (10 * dim * np.finfo(float).eps + error)

    if basis is None:
        vectors, values, _ = np.linalg.svd(gram)
        count = int((np.cumsum(values**2) / total < threshold).sum())
        return vectors[:, :count], bound(values, count)
    rest = gram - basis @ basis.T @ gram
    vectors, values, _ = np.linalg.svd(rest)
    held, count = (total - (values**2).sum()) / total, 0
    for value in values:
        if held >= threshold:
            break
        held, count = held + value**2 / total, count + 1
    return np.hstack([basis, vectors[:, :count]])[:, :dim], bound(values, count)


@pytest.mark.parametrize("threshold", [0.9999, 0.2])  # at 0.2 the first masks are empty
@pytest.mark.parametrize("kind", BRANCHES)
def test_the_mask_is_the_span_that_the_release_computes(small, kind, threshold):
    plugin = ReleasedProjectionPlugin(threshold)
    strategy = make(small, BRANCHES[kind], [plugin])
    expected, errors, sizes = {}, {}, []
    for experience in stream():
        strategy.train(experience)
        for name, tokens in features_of(strategy.model, experience).items():
            if not name.endswith("weight"):
                continue
            old = expected.get(name), errors.get(name, 0.0)
            expected[name], errors[name] = gpm(old[0], tokens, threshold, old[1])
            (basis,) = plugin.bases[name]
            span, size = (basis @ basis.T).numpy(), basis.shape[1]
            assert np.array_equal(span, np.diag([1.0] * size + [0.0] * (len(span) - size)))
            spanned = expected[name] @ expected[name].T
            np.testing.assert_allclose(span, spanned, rtol=0, atol=errors[name] + 1e-14)
            sizes.append((size, len(span)))
    assert len(expected) == 6
    assert any(0 < size < dim for size, dim in sizes)
    assert max(errors.values()) < 1e-3  # or the comparison would say nothing


class Gradients(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.kept = []

    def before_update(self, strategy, **kwargs):
        parameters = strategy.model.named_parameters()
        self.kept.append({n: p.grad.clone() for n, p in parameters if p.grad is not None})


@pytest.mark.parametrize("kind", BRANCHES)
def test_the_first_coordinates_of_the_gradient_are_zeroed_and_nothing_else(small, kind):
    before, after, plugin = Gradients(), Gradients(), ReleasedProjectionPlugin(0.9999)
    strategy = make(small, BRANCHES[kind], [before, plugin, after])
    first, second, _ = stream()
    strategy.train(first)
    masks = {name: groups[0].shape[1] for name, groups in plugin.bases.items()}
    assert len(masks) == 6
    assert max(masks.values()) > 0
    n = len(before.kept)
    strategy.train(second)
    for i, (old, new) in enumerate(zip(before.kept, after.kept, strict=True)):
        assert any("scal" in name for name in new)
        for name, gradient in old.items():
            expected = gradient.clone()
            if i >= n and name in masks:
                expected[:, : masks[name]] = 0
            assert torch.equal(new[name], expected), name
    assert any("scal" in name for name in plugin.unprotected)
    assert not any(name.endswith("weight") and "branch" in name for name in plugin.unprotected)


@pytest.mark.parametrize(
    ("branch", "site"),
    [
        (lambda b: build_prefix(backbone=b), "branch.extensions.0.keys"),
        (lambda b: build_prefix(backbone=b, against="inputs"), "branch.extensions.0.keys"),
        (lambda b: build_prompt(backbone=b, against="queries"), "branch.extensions.0.tokens"),
        (lambda b: build_prompt(backbone=b, project_values=True), "branch.extensions.0.tokens"),
    ],
)
def test_nothing_was_released_for_prefix_and_prompts_of_other_conditions(small, branch, site):
    strategy = make(small, branch, [ReleasedProjectionPlugin()])
    words = rf'for adapters, LoRA and prompts .*, not for {site}; take recipe="corrected"'
    with pytest.raises(ConfigError, match=words):
        strategy.train(stream(1)[0])


def test_fewer_images_than_dimensions_and_chunks_of_an_experience(backbone):
    plugin = ReleasedProjectionPlugin(0.999)
    strategy = make(backbone, BRANCHES["adapter"], [plugin])
    for chunk in toy_benchmark("online", experience_size=5).train_stream:
        strategy.train(chunk)
    experiences = plugin.summary()["experiences"]
    assert len(experiences) == plugin.n_experiences_done == 3
    for sites in zip(*experiences, strict=True):
        sizes = [site["size"] for site in sites]
        assert sizes == sorted(sizes)
        assert sizes[-1] <= sites[0]["dim"]
    assert not plugin._features  # nothing of the images is kept


def test_what_is_reported(small):
    plugin = ReleasedProjectionPlugin(0.9999)
    strategy = make(small, BRANCHES["adapter"], [plugin])
    for experience in stream():
        strategy.train(experience)
    summary = json.loads(json.dumps(plugin.summary()))
    assert summary["where"] == "gradient"
    assert [len(sites) for sites in summary["experiences"]] == [6, 6, 6]
    last = {site["site"]: site for site in summary["experiences"][-1]}
    site = last["branch.adapters.0.down.weight"]
    assert site["size"] == plugin.bases["branch.adapters.0.down.weight"][0].shape[1]
    assert site["dim"] == DIM
    tokens = features_of(strategy.model, experience)["branch.adapters.0.down.weight"]
    scores = PCA(svd_solver="full").fit_transform(tokens.flatten(1).double().numpy())
    energy = ((scores**2).sum(0) ** 2)[:DIM]
    captured = energy[: site["size"]].sum() / energy.sum()
    assert site["captured_energy"] == pytest.approx(captured, abs=1e-6)
    assert 0 < site["removed_share"] < 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"threshold": 2}, r"threshold must be in \[0, 1\], not 2"),
        ({"n_samples": 0}, "n_samples must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        ReleasedProjectionPlugin(**options)
