import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from avalanche_peftcl.functional.released_projection import (
    coordinate_basis,
    released_mask,
    released_spectrum,
)
from avalanche_peftcl.functional.subspace import extend_basis, gram, remove_component

SEEDS = st.integers(0, 10_000)
# 0, 1 and shares that a few equal energies do not reach exactly
THRESHOLDS = st.integers(0, 997).map(lambda i: i / 997)


def make_features(seed, b, n, d, rank=None):
    """Return tokens with a mean, of this rank over all rows."""
    generator = torch.Generator().manual_seed(seed)
    rank = d if rank is None else rank
    tokens = torch.randn(b, n, rank, generator=generator) + 1
    return tokens @ torch.randn(rank, d, generator=generator)


def released_update(mask_size, energies, threshold):
    """Take the update of GPM on a diagonal matrix of these energies in steps, as its code does."""
    total = sum(energies)
    if mask_size is None:
        return sum(sum(energies[: i + 1]) / total < threshold for i in range(len(energies)))
    rest = sorted(energies[mask_size:], reverse=True)
    accumulated = (total - sum(rest)) / total
    for energy in rest:
        if not accumulated < threshold:
            break
        accumulated += energy / total
        mask_size += 1
    return mask_size


@given(seed=SEEDS, b=st.integers(2, 12), n=st.integers(1, 4), d=st.integers(1, 5))
def test_gram_of_the_released_scores_is_diagonal_and_is_the_spectrum(seed, b, n, d):
    features = make_features(seed, b, n, d)
    rows = features.flatten(1).double().numpy()
    scores = PCA(n_components=min(b, n * d), svd_solver="full").fit_transform(rows)
    reference = scores.T @ scores
    diagonal = np.diag(reference)
    np.testing.assert_allclose(reference, np.diag(diagonal), atol=1e-10 * diagonal.max())
    ours = released_spectrum(features, components=len(diagonal) + 2)
    assert ours.dtype == torch.float64
    assert ours.shape == (len(diagonal) + 2,)
    np.testing.assert_allclose(ours[:-2], diagonal, rtol=1e-7, atol=1e-10 * diagonal.max())
    assert torch.equal(ours[-2:], torch.zeros(2).double())
    assert (ours.diff() <= 0).all()
    fewer = released_spectrum(features, components=1)
    assert torch.equal(fewer, ours[:1])


@pytest.mark.parametrize("b", [0, 1])
def test_spectrum_of_no_or_one_image_is_zero(b):
    assert torch.equal(
        released_spectrum(torch.randn(b, 2, 3), components=4), torch.zeros(4).double()
    )


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=12),
    st.none() | st.integers(0, 12),
    THRESHOLDS,
)
def test_mask_is_the_update_of_gpm_in_steps(spectrum, mask_size, threshold):
    spectrum = sorted(spectrum, reverse=True)
    mask_size = None if mask_size is None else min(mask_size, len(spectrum))
    ours = released_mask(mask_size, torch.tensor(spectrum).double(), threshold=threshold)
    # a share within rounding of the threshold may fall on either side of it
    around = [
        released_update(mask_size, [s**2 for s in spectrum], threshold + shift)
        for shift in (-1e-12, 0, 1e-12)
    ]
    assert ours in around
    assert (mask_size or 0) <= ours <= len(spectrum)


@pytest.mark.parametrize(
    ("mask_size", "threshold", "expected"),
    [
        (None, 0.5, 0),
        (None, 0.8, 1),
        (None, 0.98, 2),
        (0, 0.0, 0),
        (0, 0.5, 1),
        (0, 0.98, 3),
        (1, 0.7, 1),
        (1, 0.98, 3),
        (2, 0.98, 3),
        (4, 0.98, 4),
    ],
)
def test_mask_by_hand(mask_size, threshold, expected):
    # the energies are 64, 16, 4 and 1 of 85; held by the first 1, 2, 3: 0.753, 0.941, 0.988
    spectrum = torch.tensor([8.0, 4.0, 2.0, 1.0])
    assert released_mask(mask_size, spectrum, threshold=threshold) == expected


def test_a_share_equal_to_the_threshold_is_not_below_it():
    assert released_mask(None, torch.ones(4), threshold=0.5) == 1
    assert released_mask(1, torch.ones(4), threshold=0.5) == 2
    assert released_mask(2, torch.ones(4), threshold=0.5) == 2


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), THRESHOLDS)
def test_energy_of_the_fourth_power_protects_no_more_than_of_the_second(spectrum, threshold):
    spectrum = torch.tensor(sorted(spectrum, reverse=True)).double()
    fourth = released_mask(None, spectrum, threshold=threshold)
    second = released_mask(None, spectrum.sqrt(), threshold=threshold)  # sqrt(s)^2 = sigma^2
    assert fourth <= second


def test_the_fourth_power_can_protect_nothing_at_a_high_threshold():
    spectrum = torch.tensor([100.0] + [4.0] * 9)  # sigma = 10, then 2
    assert released_mask(None, spectrum, threshold=0.9) == 0
    assert released_mask(None, spectrum.sqrt(), threshold=0.9) == 6
    assert released_mask(0, spectrum, threshold=0.9) == 1  # the next task does, see GPM's update


@given(seed=SEEDS, b=st.integers(2, 12))
def test_the_order_of_images_does_not_matter(seed, b):
    features = make_features(seed, b, 3, 5)
    shuffled = features[torch.randperm(b, generator=torch.Generator().manual_seed(seed))]
    ours, other = (released_spectrum(x, components=5) for x in (features, shuffled))
    torch.testing.assert_close(ours, other, rtol=1e-7, atol=1e-7)
    sizes = [released_mask(None, x, threshold=0.99) for x in (ours, other)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("seed", range(5))
def test_an_update_passing_the_mask_changes_old_outputs(seed):
    features = make_features(seed, b=20, n=4, d=16, rank=3)  # 13 directions are free
    spectrum = released_spectrum(features, components=16)
    size = None
    for _ in range(3):
        size = released_mask(size, spectrum, threshold=0.999)
    assert 3 < size < 16  # more coordinates than the features have directions
    weight = torch.randn(2, 16, generator=torch.Generator().manual_seed(seed))
    masked = remove_component(weight, coordinate_basis(16, size))
    assert torch.equal(masked[:, :size], torch.zeros(2, size))
    assert torch.equal(masked[:, size:], weight[:, size:])
    basis, _ = extend_basis(torch.zeros(16, 0), gram(features)[0], threshold=1)
    projected = remove_component(weight, basis)
    assert basis.shape == (16, 3)
    assert (features @ masked.mT).abs().max() > 1
    torch.testing.assert_close(features @ projected.mT, torch.zeros(20, 4, 2), rtol=0, atol=1e-4)


def test_a_zero_spectrum_leaves_the_mask():
    assert released_mask(None, torch.zeros(4), threshold=0.99) == 0
    assert released_mask(0, torch.zeros(4), threshold=0.99) == 0
    assert released_mask(2, torch.zeros(4), threshold=0.99) == 2


@pytest.mark.parametrize("size", [0, 2, 4])
def test_coordinate_basis_is_unit_vectors(size):
    assert torch.equal(coordinate_basis(4, size), torch.eye(4)[:, :size])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: released_spectrum(torch.zeros(2, 3), components=1), r"\(B, N, D\)"),
        (lambda: released_spectrum(torch.zeros(2, 3, 4), components=0), "positive"),
        (lambda: released_spectrum(torch.full((2, 3, 4), torch.nan), components=1), "finite"),
        (lambda: released_mask(-1, torch.ones(3), threshold=0.5), "mask_size"),
        (lambda: released_mask(4, torch.ones(3), threshold=0.5), "mask_size"),
        (lambda: released_mask(0, torch.ones(3, 3), threshold=0.5), "mask_size"),
        (lambda: released_mask(0, torch.ones(3), threshold=1.5), "threshold"),
        (lambda: coordinate_basis(3, 4), "between 0 and 3"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
