"""Double precision, wherever a tensor lies."""

from torch import Tensor


def in_double(values: Tensor) -> Tensor:
    """Return ``values`` in float64, on the CPU where their device has no float64 (Apple's).

    Args:
        values: Of any shape and dtype.

    Example:
        >>> import torch
        >>> in_double(torch.ones(2))
        tensor([1., 1.], dtype=torch.float64)
    """
    return (values.cpu() if values.device.type == "mps" else values).double()
