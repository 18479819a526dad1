"""SD-LoRA: old pairs keep their directions, and how far each goes is learnt again and again."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from avalanche_peftcl import takes
from avalanche_peftcl.models import Backbone, HeadBuilder
from avalanche_peftcl.training import OptimizerName, PEFTTemplate
from peftcl_lora.pairs import PairedLoRA, Part
from peftcl_lora.strategy import PairOptions, Rank, Rate, Size, pair_strategy


@dataclass(frozen=True, kw_only=True)
class SDLoRAOptions(PairOptions):
    """Options of SD-LoRA's training."""

    lr: Rate = 0.008
    train_mb_size: Size = 128


@takes(SDLoRAOptions)
def build_sd_lora(
    *,
    backbone: Backbone,
    head: HeadBuilder | None = None,
    r: Rank | list[Rank] = 10,
    parts: tuple[Part, ...] = ("q", "v"),
    blocks: list[int] | None = None,
    start: Annotated[float, Field(ge=1e-6, le=1e6)] = 0.8,
    continuous: bool = False,
    optimizer: OptimizerName = "sgd",
    anneal: bool = False,
    options: SDLoRAOptions,
) -> PEFTTemplate:
    r"""Build SD-LoRA for a vision transformer.

    Each experience trains a LoRA pair of its own. Those of earlier ones stay as directions of
    Frobenius norm 1, and train on in length alone:

    .. math:: W_0 x + \sum_{s < t} \alpha_s \frac{B_s A_s x}{\lVert B_s \rVert \lVert A_s \rVert}
              + \alpha_t B_t A_t x

    Args:
        backbone: The frozen network.
        head: The classifier; ``None`` is linear.
        r: Rank of a pair; or a list, that of each experience's pair and the last for all further
            ones. The variant RR is ``[10, 10, 10, 10, 8, 8, 8, 8, 6]``.
        parts: Which of ``q``, ``k`` and ``v`` have pairs.
        blocks: Which blocks, from 0; ``None`` takes all.
        start: What every :math:`\alpha` begins an experience with.
        continuous: Let an experience begin with the network that the last one ended with. Each
            pair then has a factor in each layer and part, and an old one's takes over the length
            that it was divided by. As released there is one for all of them, they all begin anew
            at ``start``, and what the network computes jumps when an experience begins.
        optimizer: Of pairs, factors and head; it starts anew in each experience.
        anneal: Whether the learning rate falls as a cosine over the epochs of an experience.
        options: The defaults are those published for CIFAR-100: SGD with momentum 0.9 and a
            constant rate of 0.008, no weight decay, 20 epochs of minibatches of 128. On ImageNet-R
            the rate is 0.01.

    Needs:
        No number of experiences in advance.

    Costs:
        One pass a training step and image, one pass a test image, of a network whose pairs grow
        with the stream. Stored: nothing a class beside the head's row; an experience
        ``P L R (D + E) + 1`` floats, ``P`` parts and ``L`` blocks; if ``continuous``, ``P L`` in
        place of the 1.

    Source:
        Wu et al., ICLR 2025; released code WuYichen-97/SD-Lora-CL 8bacded.

    Differs:
        ``continuous=True`` is not published in this form; the paper's text has length and direction
        apart for all pairs, the release normalises old ones only, as here. The release computes an
        orthogonality loss that it does not add: it is not here. Ranks that shrink with the stream
        (RR) are commented out there; a pair of lower rank takes as much room here as another. KD,
        which drops a direction that is a combination of old ones, is left out: how is known from
        memory only.
    """
    branch = PairedLoRA(
        backbone,
        r=r,
        parts=parts,
        blocks=blocks,
        scales="each" if continuous else "shared",
        start=start,
    )
    return pair_strategy(
        backbone, branch, head, (), optimizer=optimizer, anneal=anneal, options=options
    )
