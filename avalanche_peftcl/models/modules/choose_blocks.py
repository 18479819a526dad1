"""Which blocks of a network a PEFT module tunes."""

from collections.abc import Sequence

from avalanche_peftcl.errors import ConfigError


def choose_blocks(blocks: Sequence[int] | None, depth: int, *, default: int) -> list[int]:
    """Return the blocks to tune, in order.

    Args:
        blocks: Which blocks, from 0; ``None`` takes the first ``default``, or all if there are
            fewer.
        depth: Number ``L`` of blocks that the network has.
        default: How many blocks ``None`` stands for.

    Raises:
        ConfigError: If ``blocks`` is empty, names a block twice, or one that is not there.

    Example:
        >>> choose_blocks(None, 12, default=5)
        [0, 1, 2, 3, 4]
        >>> choose_blocks([7, 2], 12, default=5)
        [2, 7]
    """
    if blocks is None:
        return list(range(min(default, depth)))
    chosen = sorted(blocks)
    counted = f"blocks count from 0 to {depth - 1}"
    if not chosen:
        raise ConfigError(
            f"blocks={list(blocks)} tunes nothing; {counted}, and None takes the first {default}"
        )
    if chosen[0] < 0 or chosen[-1] >= depth:
        raise ConfigError(f"blocks={list(blocks)} has one that the network lacks; {counted}")
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"blocks={list(blocks)} names a block twice; {counted}, each once")
    return chosen
