"""RanPAC: adapt once or not at all, then ridge regression on random features."""

from avalanche_peftcl import takes
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import (
    Backbone,
    Branch,
    HeadBuilder,
    RandomRidgeHead,
    build_adapters,
)
from avalanche_peftcl.training import PEFTTemplate
from peftcl_adapters.aper import FirstExperienceOptions, first_experience_strategy
from peftcl_adapters.first_experience import FirstExperienceModel
from peftcl_adapters.simplecil import frozen_strategy


@takes(FirstExperienceOptions)
def build_ranpac(
    *,
    backbone: Backbone,
    module: Branch | None = None,
    head: HeadBuilder | None = None,
    phase_one: bool = True,
    anneal: bool | None = None,
    options: FirstExperienceOptions,
) -> PEFTTemplate:
    """Build RanPAC for any PEFT module.

    Phase one adapts in the first experience as APER does; without it the network stays as it is,
    nothing trains and the options of training mean nothing. Phase two fits the head to the adapted
    feature, in each experience.

    Args:
        backbone: The frozen network.
        module: What adapts; ``None``: adapters of width 64 beside each MLP, scale 0.1, dropout 0.1.
        head: What predicts; ``None``: ``random_ridge`` with the published 10,000 random features.
        phase_one: Whether to adapt in the first experience.
        anneal: As of :func:`.build_aper`.
        options: The defaults are the published settings for CIFAR-100: SGD with momentum 0.9 and
            rate 0.01, 20 epochs of minibatches of 48, weight decay 0.0005.

    Raises:
        ConfigError: If there is a module and no phase one to train it.

    Source:
        McDonnell et al., NeurIPS 2023, arXiv 2307.02251; released code 012927f.
        Differs: the penalty of the ridge regression, see :class:`.RandomRidgeHead`; adapters on
        every data set, where the release takes scale and shift for some.
    """
    chosen = head or RandomRidgeHead
    if phase_one:
        module = module or build_adapters(backbone=backbone, r=64)
        model = FirstExperienceModel(backbone, module, chosen, concatenate=False)
        return first_experience_strategy(model, anneal=anneal, options=options)
    if module is not None:
        raise ConfigError("a module adapts in phase one, which is off; leave out one of them")
    return frozen_strategy(backbone, chosen, features="pooled", options=options)
