"""Where to compute."""

import torch

from avalanche_peftcl.errors import ConfigError


def check_device(device: str | torch.device) -> torch.device:
    """Return ``device`` if it is there.

    Raises:
        ConfigError: If it is not; the message lists those that are.

    Example:
        >>> check_device("cpu")
        device(type='cpu')
    """
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if str(device) not in there:
        raise ConfigError(f"there is no device {str(device)!r} here; there is: {', '.join(there)}")
    return torch.device(device)
