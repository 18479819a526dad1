"""Weights as a whole: their fingerprint, and whether they are numbers."""

import hashlib
from collections.abc import Collection

import torch
from torch import nn

from avalanche_peftcl.errors import NotFiniteError
from avalanche_peftcl.functional.finite import not_finite
from avalanche_peftcl.registry.wording import join

_SHOWN = 3  # names in a message


def weights_sha256(module: nn.Module, *, only: Collection[str] | None = None) -> str:
    """Return a hash of the names and bytes of all weights, sorted by name.

    Args:
        module: Any network.
        only: Names in its state dict, if not all count.

    Example:
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> _ = b.load_state_dict(a.state_dict())
        >>> weights_sha256(a) == weights_sha256(b) != weights_sha256(nn.Linear(2, 2))
        True
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if only is not None and name not in only:
            continue
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_weights(module: nn.Module, what: str) -> None:
    """Refuse a network whose weights are not all finite numbers; reads its device once.

    Args:
        module: The network.
        what: What it is called in the message.

    Raises:
        NotFiniteError: If a parameter or buffer holds not-a-number or infinity.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> check_weights(layer, "the layer")
        >>> _ = nn.init.constant_(layer.bias, float("nan"))
        >>> check_weights(layer, "the layer")
        Traceback (most recent call last):
        avalanche_peftcl.errors.NotFiniteError: the layer has weights that are not finite \
numbers, in bias: the file or download they are from is damaged, or training diverged; \
take weights from elsewhere
    """
    tensors = [(k, v) for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)]
    if names := not_finite(tensors):
        raise NotFiniteError(
            f"{what} has weights that are not finite numbers, in {join(names, most=_SHOWN)}: the "
            "file or download they are from is damaged, or training diverged; take weights from "
            "elsewhere"
        )
