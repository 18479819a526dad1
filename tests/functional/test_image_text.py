import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from avalanche_peftcl.functional import (
    matching_auc,
    modality_gap,
    retrieval_recall,
    wrong_match_rate,
)

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=8)


@given(SCORES, SCORES)
def test_area_equals_that_of_scikit_learn(matched: list[int], swapped: list[int]) -> None:
    ours = matching_auc(torch.tensor(matched), torch.tensor(swapped))
    theirs = roc_auc_score([1] * len(matched) + [0] * len(swapped), matched + swapped)
    assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_recall_equals_a_sort(k: int) -> None:
    rng = np.random.default_rng(0)
    similarity, owner = rng.standard_normal((20, 12)), rng.integers(0, 4, 12)
    asked = rng.integers(0, 4, 20)
    matches = owner[None] == asked[:, None]
    found = [
        bool(set(np.argsort(-row)[:k]) & set(np.flatnonzero(own)))
        for row, own in zip(similarity, matches, strict=True)
    ]
    ours = retrieval_recall(torch.tensor(similarity), torch.tensor(matches), k=k)
    assert ours == pytest.approx(np.mean(found), abs=1e-12)


def test_a_model_for_which_all_are_alike_finds_nothing() -> None:
    assert retrieval_recall(torch.zeros(3, 4), torch.eye(3, 4, dtype=torch.bool), k=3) == 0
    assert retrieval_recall(torch.zeros(3, 4), torch.eye(3, 4, dtype=torch.bool), k=4) == 1


@pytest.mark.parametrize(
    ("similarity", "matches", "k", "words"),
    [
        (torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool), 1, "same queries and candidates"),
        (torch.zeros(0, 3), torch.ones(0, 3, dtype=torch.bool), 1, "one query at least"),
        (torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), 4, "k=4 must be from 1 to the 3"),
        (torch.zeros(2, 3), torch.eye(2, 3, dtype=torch.bool) & False, 1, "needs a match"),
    ],
)
def test_what_cannot_be_retrieved_is_refused(similarity, matches, k, words) -> None:
    with pytest.raises(ValueError, match=words):
        retrieval_recall(similarity, matches, k=k)


def test_gap_is_that_of_unit_vectors() -> None:
    images, texts = torch.randn(5, 3), torch.randn(7, 3) + 2
    unit = [(x / x.norm(dim=1, keepdim=True)).double().mean(dim=0) for x in (images, texts)]
    assert modality_gap(4 * images, texts) == pytest.approx(
        float((unit[0] - unit[1]).norm()), rel=1e-6
    )
    assert modality_gap(images, images.flip(0)) == pytest.approx(0, abs=1e-12)


def test_wrong_matches_are_of_later_texts_alone() -> None:
    scores = torch.eye(4)[[0, 1, 2, 3]]
    assert wrong_match_rate(scores, torch.tensor([False, False, True, True])) == 0.5
    own = torch.tensor([[False] * 4, [True] * 4, [True, True, False, True], [False] * 3 + [True]])
    assert wrong_match_rate(scores, own) == 0.5
    assert wrong_match_rate(torch.zeros(0, 4), torch.zeros(4, dtype=torch.bool)) == 0


def test_scores_of_one_kind_alone_have_no_area() -> None:
    with pytest.raises(ValueError, match="a score each"):
        matching_auc(torch.zeros(0), torch.zeros(2))
