import pytest

from avalanche_peftcl.runs.pace import Pace


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_what_is_left_follows_from_what_was_done(clock):
    pace = Pace(now=clock)
    pace.begin(here=10, later=20)
    clock.now = 8.0
    for _ in range(4):
        pace.count(16)
    assert pace.speed == 8.0
    assert pace.left == (12.0, 52.0)  # 6 and 20 minibatches of 2 s


def test_earlier_experiences_count_for_those_to_come(clock):
    pace = Pace(now=clock)
    pace.begin(here=1, later=3)
    clock.now = 1.0
    pace.count(8)
    clock.now = 100.0  # an evaluation, which is no training
    pace.begin(here=2, later=2)
    clock.now = 103.0
    pace.count(8)
    assert pace.left == (3.0, 3.0 + 2 * (1.0 + 3.0) / 2)


def test_evaluation_is_left_too_as_long_as_it_took_before(clock):
    pace = Pace(now=clock)
    pace.begin(here=2, later=4, tests=(10, 50))
    clock.now = 6.0
    pace.count(8)
    guess = 6.0 / 8 / 3  # a third of the time of an image that is trained
    assert pace.left == (6.0 + 10 * guess, 6.0 + 4 * 6.0 + 60 * guess)
    clock.now = 12.0
    pace.count(8)
    clock.now = 52.0  # 4 s an image
    pace.begin(here=2, later=2, tests=(20, 30))
    clock.now = 58.0
    pace.count(8)
    assert pace.left == (6.0 + 80.0, 6.0 + 80.0 + 12.0 + 120.0)


def test_nothing_is_told_that_is_not_known(clock):
    pace = Pace(now=clock)
    assert (pace.speed, pace.left, pace.text(loss=None, lr=None)) == (None, None, "")
    pace.begin(here=None, later=0)  # a chunk of an online stream
    clock.now = 1.0
    pace.count(4)
    assert pace.text(loss=1.0, lr=None) == "loss 1.000 4 img/s"


def test_more_minibatches_than_were_expected_leave_none(clock):
    pace = Pace(now=clock)
    pace.begin(here=1, later=0)
    clock.now = 2.0
    pace.count(1)
    pace.count(1)
    assert pace.text(loss=None, lr=0.001) == "lr 0.001 1.0 img/s, 0 s left"


def test_a_long_line_leaves_room_for_the_bar(clock):
    pace = Pace(now=clock)
    pace.begin(here=10**5, later=10**6)
    clock.now = 1.0
    pace.count(1234)
    text = pace.text(loss=12.3456, lr=0.00012)
    assert text == "loss 12.346 lr 0.00012 1,234 img/s, 1 day of 12 days left"
    assert len(text) <= 58
