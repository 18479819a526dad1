import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from avalanche_peftcl.functional import contrastive_loss


def by_hand(z, w, scale, same):
    """One pair after the other, in NumPy."""
    z, w = (
        z / np.linalg.norm(z, axis=1, keepdims=True),
        w / np.linalg.norm(w, axis=1, keepdims=True),
    )
    total, n = 0.0, len(z)
    for i in range(n):
        kept = [j for j in range(n) if j == i or not same[i, j]]
        at = kept.index(i)
        to_texts = log_softmax([scale * z[i] @ w[j] for j in kept])[at]
        to_images = log_softmax([scale * z[j] @ w[i] for j in kept])[at]
        total -= (to_texts + to_images) / 2
    return total / n


@pytest.mark.parametrize("pairs", [[], [(0, 3)], [(0, 3), (0, 4), (3, 4)]])
def test_is_what_is_computed_pair_by_pair(pairs):
    rng = np.random.default_rng(0)
    z, w = 3 * rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    same = np.zeros((6, 6), bool)
    for i, j in pairs:
        same[i, j] = same[j, i] = True
    given = torch.from_numpy(same) if pairs else None
    loss = contrastive_loss(torch.from_numpy(z), torch.from_numpy(w), 14.0, same=given)
    assert float(loss) == pytest.approx(by_hand(z, w, 14.0, same), rel=1e-5)


def test_what_is_the_same_pushes_nothing():
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(3, 5, generator=rng)
    w = torch.randn(3, 5, generator=rng, requires_grad=True)
    pair = torch.zeros(3, 3, dtype=torch.bool)
    pair[0, 2] = True  # in one order only
    whole = contrastive_loss(z, w, 10.0, same=pair)
    assert torch.autograd.grad(whole, w, retain_graph=True)[0].isfinite().all()
    assert float(whole) < float(contrastive_loss(z, w, 10.0))
    # images 0 and 2 see each other nowhere: only image 1 is compared with both
    z1, w1 = (torch.nn.functional.normalize(x, dim=1) for x in (z, w))
    s = 10 * z1 @ w1.T
    ones = [[0, 1], [0, 1, 2], [1, 2]]
    by_row = sum(s[i, kept].logsumexp(0) + s[kept, i].logsumexp(0) for i, kept in enumerate(ones))
    assert float(whole) == pytest.approx(float(by_row - 2 * s.trace()) / 6, rel=1e-5)


def test_the_diagonal_of_same_does_not_count():
    z, w = torch.randn(4, 5), torch.randn(4, 5)
    assert torch.equal(
        contrastive_loss(z, w, 5.0), contrastive_loss(z, w, 5.0, same=torch.eye(4).bool())
    )


def test_nothing_to_compare_with_is_no_loss_and_no_gradient():
    z = torch.randn(1, 5, requires_grad=True)
    loss = contrastive_loss(z, torch.randn(1, 5), 5.0)
    loss.backward()
    assert float(loss) == 0
    assert not z.grad.any()


def test_chance_is_the_logarithm_of_the_number():
    z = torch.ones(8, 3)
    assert float(contrastive_loss(z, z, 20.0)) == pytest.approx(math.log(8), rel=1e-6)


def test_half_precision_is_computed_in_float32():
    z, w = torch.randn(4, 5).bfloat16(), torch.randn(4, 5).bfloat16()
    loss = contrastive_loss(z, w, 100.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrastive_loss(z.float(), w.float(), 100.0))


@pytest.mark.parametrize(
    ("images", "texts", "scale", "same", "message"),
    [
        ((2, 3), (3, 3), 1.0, None, r"\(B, E\), one at least, not \(2, 3\) and \(3, 3\)"),
        ((0, 3), (0, 3), 1.0, None, "one at least"),
        ((2, 3), (2, 3), 0.0, None, "scale must be positive, not 0.0"),
        ((2, 3), (2, 3), 1.0, [[1, 1, 1]], r"same must be \(2, 2\), not \(1, 3\)"),
    ],
)
def test_what_cannot_be_compared_is_refused(images, texts, scale, same, message):
    given = None if same is None else torch.tensor(same).bool()
    with pytest.raises(ValueError, match=message):
        contrastive_loss(torch.zeros(images), torch.zeros(texts), scale, same=given)
