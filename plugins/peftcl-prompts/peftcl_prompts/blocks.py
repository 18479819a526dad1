"""Which blocks of a network get prompts."""

from typing import Annotated

from pydantic import Field

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Backbone

Block = Annotated[int, Field(ge=0, le=4095)]


def chosen_blocks(
    backbone: Backbone, blocks: list[int] | None, *, default: range, what: str
) -> list[int]:
    """Return the numbers of blocks, in order.

    Args:
        backbone: The frozen network.
        blocks: From 0; ``None`` takes the default.
        default: Those of it that the network has.
        what: Which option they are.

    Raises:
        ConfigError: If there are none, one twice, or one that the network has not; or the attention
            of one takes no further keys.

    Example:
        >>> from avalanche_peftcl.testing import toy_backbone
        >>> chosen_blocks(toy_backbone(), None, default=range(2, 5), what="blocks")
        [2]
    """
    chosen = [i for i in default if i < backbone.depth] if blocks is None else sorted(blocks)
    if (
        not chosen
        or len(set(chosen)) < len(chosen)
        or not 0 <= chosen[0] <= chosen[-1] < backbone.depth
    ):
        raise ConfigError(
            f"{what}={chosen} must be at least one block, each once, of 0 to {backbone.depth - 1}"
        )
    for index in chosen:
        backbone.attention(index)
    return chosen
