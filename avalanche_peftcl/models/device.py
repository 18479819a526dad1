"""Where to compute."""

import warnings

import torch
from torch import nn

from avalanche_peftcl.errors import ConfigError, ConfigWarning

AUTO = "auto"


def check_device(device: str | torch.device) -> torch.device:
    """Return ``device`` if it is there; of ``"auto"`` CUDA where there is any, else the CPU.

    Apple's GPU is never taken by itself: it has no float64, which statistics are summed in.

    Raises:
        ConfigError: If it is not; the message lists those that are.

    Warns:
        ConfigWarning: If it is Apple's GPU, on which nothing here has been tried.

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
    found = torch.device(device)
    if found.type == "mps":
        warnings.warn(
            "device=mps: nothing of this package has ever been run on Apple's GPU; hold a short "
            "run against one with device=cpu before you trust it",
            ConfigWarning,
            stacklevel=2,
        )
    return found


def check_doubles(network: nn.Module, device: str | torch.device) -> None:
    """Refuse a network that keeps numbers in float64 on Apple's GPU, which has none.

    Raises:
        ConfigError: If it does; the message names the parts.

    Example:
        >>> check_doubles(torch.nn.Linear(2, 2), "mps")
        >>> check_doubles(torch.nn.Linear(2, 2).double(), "mps")
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: device=mps has no float64, in which Linear keeps ...
    """
    if torch.device(device).type != "mps":
        return
    for part in network.modules():
        own = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        kept = [name for name, values in own if values.dtype == torch.float64]
        if kept:
            raise ConfigError(
                f"device=mps has no float64, in which {type(part).__name__} keeps "
                f"{', '.join(kept)}; choose device=cpu, or another head (prototypes sums up on the "
                "CPU)"
            )


def warn_of_idle_gpu(device: torch.device) -> None:
    """Say that a GPU lies idle where the CPU computes, with a :class:`.ConfigWarning`."""
    if device.type == "cpu" and torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        warnings.warn(
            f"a GPU ({name}) lies idle, for the run computes on the CPU; device=auto takes the GPU",
            ConfigWarning,
            stacklevel=2,
        )
