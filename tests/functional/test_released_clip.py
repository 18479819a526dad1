"""What the released code of PEGP computes on CLIP, against its formulas in NumPy."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from avalanche_peftcl.functional import released_basis, released_prompt_matrix

D = 24


def low_rank(seed, *, rank=6, scale=0.5):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(40, rank)) * scale ** np.arange(rank)
    return torch.from_numpy(rows @ generator.normal(size=(rank, D)))


def gpm(held, matrix, threshold):
    """Gradient projection memory as it is published, of a matrix instead of activations."""
    if held is None:
        u, s, _ = np.linalg.svd(matrix)
        return u[:, : int((np.cumsum(s**2) / (s**2).sum() < threshold).sum())]
    total = (np.linalg.svd(matrix, compute_uv=False) ** 2).sum()
    hat = matrix - held @ held.T @ matrix
    u, s, _ = np.linalg.svd(hat)
    accumulated, count = (total - (s**2).sum()) / total, 0
    for share in s**2 / total:
        if accumulated >= threshold:
            break
        accumulated, count = accumulated + share, count + 1
    return np.hstack([held, u[:, :count]])


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_it_is_gradient_projection_memory_of_the_gram_matrix(threshold):
    ours = theirs = None
    for seed in range(3):
        rows = low_rank(seed)
        gram = rows.T @ rows
        ours = released_basis(ours, gram, threshold=threshold)
        theirs = gpm(theirs, gram.numpy(), threshold)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose((ours @ ours.T).numpy(), theirs @ theirs.T, atol=1e-8)
        assert torch.allclose(ours.T @ ours, torch.eye(ours.shape[1]).double(), atol=1e-10)
    assert 0 < ours.shape[1] < D


def test_energies_are_fourth_powers():
    gram = torch.diag(torch.tensor([4.0, 2.0, 1.0])).double()  # squared 16, 4, 1 of 21
    assert released_basis(None, gram, threshold=0.96).shape == (3, 2)
    assert released_basis(None, gram, threshold=0.76).shape == (3, 0)  # of features it were 1
    assert released_basis(None, torch.zeros(3, 3).double(), threshold=1.0).shape == (3, 0)


def test_what_is_rounding_is_not_taken():
    rows = low_rank(0, rank=3)
    gram = rows.T @ rows
    basis = released_basis(None, gram, threshold=1.0)
    for _ in range(3):
        basis = released_basis(basis, gram, threshold=1.0)
        assert basis.shape[1] <= 3


@pytest.mark.parametrize("images", [D, D + 7, D - 9])
def test_scores_of_images_and_of_prompts_are_summed_by_row(images):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(images, 3, D, generator=generator).double()
    prompts = torch.randn(10, D, generator=generator).double()
    rep = np.zeros((D, 5))
    for rows in (tokens[:D].flatten(1), prompts.T):
        scores = PCA(5, svd_solver="full").fit_transform(rows.numpy())
        scores *= np.sign(scores[np.abs(scores).argmax(axis=0), range(5)])
        rep[: len(scores)] += scores
    np.testing.assert_allclose(released_prompt_matrix(tokens, prompts), rep @ rep.T, atol=1e-8)


def test_it_depends_on_the_order_of_images_as_that_of_features_does_not():
    tokens, prompts = torch.randn(D, 3, D), torch.randn(10, D)
    bases = [
        released_basis(None, released_prompt_matrix(each, prompts), threshold=0.9)
        for each in (tokens, tokens.flip(0))
    ]
    assert not torch.allclose(bases[0] @ bases[0].T, bases[1] @ bases[1].T, atol=0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: released_basis(None, torch.ones(2, 3), threshold=0.5), "must be"),
        (lambda: released_basis(None, torch.eye(2), threshold=1.5), "threshold"),
        (lambda: released_prompt_matrix(torch.ones(2, 3), torch.ones(2, 3)), "tokens must be"),
        (lambda: released_prompt_matrix(torch.ones(2, 3, 4), torch.ones(2, 3)), "tokens must be"),
    ],
)
def test_what_does_not_fit_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
