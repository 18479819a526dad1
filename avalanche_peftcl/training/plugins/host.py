"""Builders of Avalanche's own plugins, so that a configuration can name them."""

from avalanche.training.plugins import EWCPlugin, LwFPlugin, ReplayPlugin

from avalanche_peftcl.registry.ranges import Memory, Temperature, Weight


def replay(*, mem_size: Memory = 200) -> ReplayPlugin:
    """Keep a memory of past images, balanced over experiences, and train on it too.

    Args:
        mem_size: Images in the memory.

    Returns:
        The Avalanche plugin.

    Source:
        Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", arXiv 1902.10486.
        Differs: Avalanche's class, unchanged; one mini-batch of memory beside each new one.

    Example:
        >>> replay(mem_size=50).mem_size
        50
    """
    return ReplayPlugin(mem_size=mem_size)


def ewc(*, ewc_lambda: Weight = 0.4) -> EWCPlugin:
    """Penalise changes of the weights that mattered before (elastic weight consolidation).

    Args:
        ewc_lambda: Weight of the penalty beside the loss.

    Returns:
        The Avalanche plugin, with one penalty for each past experience.

    Source:
        Kirkpatrick et al., PNAS 2017, arXiv 1612.00796, eq. (3).
        Differs: Avalanche's class, unchanged.

    Example:
        >>> ewc(ewc_lambda=1.0).ewc_lambda
        1.0
    """
    return EWCPlugin(ewc_lambda=ewc_lambda)


def lwf(
    *,
    alpha: Weight | list[Weight] = 1.0,
    temperature: Temperature = 2.0,
) -> LwFPlugin:
    """Distil the previous model's outputs on the new images (learning without forgetting).

    Args:
        alpha: Weight of the distillation; a list gives one for each experience.
        temperature: Softmax temperature of the distillation.

    Returns:
        The Avalanche plugin.

    Source:
        Li and Hoiem, ECCV 2016, arXiv 1606.09282, eq. (2).
        Differs: Avalanche's class, unchanged.

    Example:
        >>> lwf(temperature=1.0).lwf.temperature
        1.0
    """
    return LwFPlugin(alpha=alpha, temperature=temperature)
