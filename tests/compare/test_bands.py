"""What is drawn of percent ends where percent ends."""

import pytest

from avalanche_peftcl.compare.comparison import compare_runs
from avalanche_peftcl.compare.figures import curve_plot, forgetting_plot, trade_off_plot


@pytest.fixture
def near(write, tmp_path):
    """Two seeds, the one almost perfect and the other far below it; and one that gets better."""
    for seed, start in ((0, 0.97), (1, 0.3)):
        write(f"near/naive_{seed}", {"name": "naive", "train_epochs": 3}, seed, start, 0.01)
    return compare_runs([tmp_path / "near"])


def test_bands_end_at_zero_and_a_hundred(near):
    band = next(each for each in curve_plot(near).figure.data if each.fill == "toself")
    assert max(band.y) == 100
    assert min(band.y) == 0


def test_intervals_end_there_too(near):
    point = trade_off_plot(near, "trainable_parameters").figure.data[0]
    assert point.y[0] + point.error_y.array[0] == 100
    assert point.y[0] - point.error_y.arrayminus[0] == 0


def test_forgetting_below_zero_has_its_band(write, tmp_path):
    for seed, drop in ((0, -0.05), (1, -0.06)):
        write(f"gains/naive_{seed}", {"name": "naive", "train_epochs": 3}, seed, 0.5, drop)
    plot = forgetting_plot(compare_runs([tmp_path / "gains"]))
    band = next(each for each in plot.figure.data if each.fill == "toself")
    assert -100 <= min(band.y) < 0
