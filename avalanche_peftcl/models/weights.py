"""A fingerprint of weights."""

import hashlib

import torch
from torch import nn


def weights_sha256(module: nn.Module) -> str:
    """Return a hash of the names and bytes of all weights, sorted by name.

    Example:
        >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> _ = b.load_state_dict(a.state_dict())
        >>> weights_sha256(a) == weights_sha256(b) != weights_sha256(nn.Linear(2, 2))
        True
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
