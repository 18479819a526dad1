"""The optimizers that a configuration can name."""

from typing import Literal

import torch
from torch import nn

from avalanche_peftcl.errors import ConfigError

OptimizerName = Literal["sgd", "adam", "adamw"]


def make_optimizer(
    name: OptimizerName, model: nn.Module, *, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return an optimizer over the parameters of ``model`` that train.

    Args:
        name: Which one.
        model: Holds the parameters.
        lr: Learning rate.
        momentum: Of SGD; of Adam and AdamW the first beta.
        weight_decay: Added to the gradient (SGD, Adam) or taken off the weights (AdamW).

    Raises:
        ConfigError: If there is no such optimizer.

    Example:
        >>> sgd = make_optimizer("sgd", nn.Linear(2, 2), lr=0.1, momentum=0.9, weight_decay=0.0)
        >>> sgd.param_groups[0]["lr"]
        0.1
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(trainable, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name not in ("adam", "adamw"):
        raise ConfigError(f"optimizer must be sgd, adam or adamw, not {name!r}")
    adam = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return adam(trainable, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)
