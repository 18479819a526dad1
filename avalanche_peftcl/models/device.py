"""Where to compute."""

import warnings

import torch

from avalanche_peftcl.errors import ConfigError, ConfigWarning

AUTO = "auto"


def check_device(device: str | torch.device) -> torch.device:
    """Return ``device`` if it is there; of ``"auto"`` CUDA where there is any, else the CPU.

    Apple's GPU is never taken by itself: it has no float64, which statistics are summed in.

    Raises:
        ConfigError: If it is not; the message lists those that are.

    Example:
        >>> check_device("cpu")
        device(type='cpu')
    """
    if device == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu"]
    if torch.cuda.is_available():
        there += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if str(device) not in there:
        raise ConfigError(f"there is no device {str(device)!r} here; there is: {', '.join(there)}")
    return torch.device(device)


def warn_of_idle_gpu(device: torch.device) -> None:
    """Say that a GPU lies idle where the CPU computes, with a :class:`.ConfigWarning`."""
    if device.type == "cpu" and torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        warnings.warn(
            f"a GPU ({name}) lies idle, for the run computes on the CPU; device=auto takes the GPU",
            ConfigWarning,
            stacklevel=2,
        )
