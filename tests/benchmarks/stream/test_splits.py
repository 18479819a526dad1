import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avalanche_peftcl.benchmarks.stream.splits import experience_sizes, hold_out, order_classes
from avalanche_peftcl.errors import ConfigError, DataError


@given(n=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_drawn_order_is_that_of_the_papers(n: int, seed: int) -> None:
    state = np.random.get_state()
    order = order_classes(n, seed=seed, class_order=None)
    assert np.array_equal(np.random.get_state()[1], state[1])
    np.random.seed(seed)
    expected = np.random.permutation(n).tolist()
    np.random.set_state(state)
    assert order == expected


def test_natural_order_is_that_of_the_labels() -> None:
    assert order_classes(4, seed=3, class_order="natural") == [0, 1, 2, 3]


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 3], [0, 1, 2, 3]])
def test_order_must_be_a_permutation(order: list[int]) -> None:
    with pytest.raises(ConfigError, match="give each of the classes 0 to 2 once"):
        order_classes(3, seed=0, class_order=order)


def test_uneven_split_is_refused_with_the_ways_out() -> None:
    with pytest.raises(DataError) as caught:
        experience_sizes(10, n_experiences=3, classes_per_experience=None)
    assert str(caught.value) == (
        "10 classes do not divide into 3 experiences; give n_experiences one of [1, 2, 5, 10] or "
        "the sizes yourself, for example classes_per_experience=[4, 3, 3]"
    )
    assert experience_sizes(10, n_experiences=None, classes_per_experience=[4, 3, 3]) == [4, 3, 3]


def test_more_experiences_than_classes_are_refused() -> None:
    with pytest.raises(DataError, match=r"give n_experiences one of \[1, 2, 4\]$"):
        experience_sizes(4, n_experiences=5, classes_per_experience=None)
    with pytest.raises(DataError, match=r"give n_experiences one of \[1, 2, 4\]$"):
        experience_sizes(4, n_experiences=10**18, classes_per_experience=None)  # at once


@pytest.mark.parametrize(
    ("n", "sizes", "error", "message"),
    [
        (None, [4, 3], DataError, "adds up to 7, but there are 10 classes"),
        (None, [10, 0], ConfigError, "not a list of positive numbers"),
        (None, [], ConfigError, "not a list of positive numbers"),
        (0, None, ConfigError, "n_experiences=0 is not a positive number"),
        (None, None, ConfigError, "neither of n_experiences and classes_per_experience"),
        (2, [5, 5], ConfigError, "both of n_experiences and classes_per_experience"),
    ],
)
def test_wrong_sizes(
    n: int | None, sizes: list[int] | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        experience_sizes(10, n_experiences=n, classes_per_experience=sizes)


@given(
    counts=st.lists(st.integers(3, 9), min_size=1, max_size=5),
    seed=st.integers(0, 2**32 - 1),
    train=st.none() | st.integers(1, 12),
    held=st.integers(0, 2),
)
def test_held_out_images_are_apart_and_counted(
    counts: list[int], seed: int, train: int | None, held: int
) -> None:
    groups = np.repeat(np.arange(len(counts)), counts)
    names = [str(g) for g in range(len(counts))]

    def choose(train: int | None) -> tuple[np.ndarray, np.ndarray]:
        return hold_out(groups, names, seed=seed, train_per_class=train, validation_per_class=held)

    train_on, validate_on = choose(train)
    assert not (train_on & validate_on).any()
    for group, count in enumerate(counts):
        assert validate_on[groups == group].sum() == held
        assert train_on[groups == group].sum() == min(count - held, train or count)
    assert np.array_equal(validate_on, choose(None)[1])


def test_holding_out_must_leave_an_image() -> None:
    with pytest.raises(DataError, match="nothing to train on: dog has 1 training images"):
        hold_out(
            np.array([0, 0, 1]),
            ["cat", "dog"],
            seed=0,
            train_per_class=None,
            validation_per_class=1,
        )


@pytest.mark.parametrize(("train", "held"), [(0, 0), (-1, 0), (None, -1)])
def test_negative_counts_are_refused(train: int | None, held: int) -> None:
    with pytest.raises(ConfigError, match=r"positive number or None|is negative"):
        hold_out(np.zeros(3, int), ["a"], seed=0, train_per_class=train, validation_per_class=held)
