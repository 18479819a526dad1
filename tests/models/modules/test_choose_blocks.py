import pytest

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.modules.choose_blocks import choose_blocks


@pytest.mark.parametrize(
    ("blocks", "depth", "expected"),
    [(None, 12, [0, 1, 2, 3, 4]), (None, 3, [0, 1, 2]), ((2, 0), 3, [0, 2])],
)
def test_chosen(blocks, depth, expected):
    assert choose_blocks(blocks, depth, default=5) == expected


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], r"blocks=\[\] tunes nothing; blocks count from 0 to 2, and None takes the first 5"),
        ([0, 3], r"blocks=\[0, 3\] has one that the network lacks; blocks count from 0 to 2"),
        ([-1], r"blocks=\[-1\] has one that the network lacks; blocks count from 0 to 2"),
        ([1, 1], r"blocks=\[1, 1\] names a block twice; blocks count from 0 to 2, each once"),
    ],
)
def test_refused(blocks, message):
    with pytest.raises(ConfigError, match=message):
        choose_blocks(blocks, 3, default=5)
