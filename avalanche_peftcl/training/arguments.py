"""The arguments that every strategy here takes, so that each signature need not repeat them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from avalanche_peftcl.models.precision import MixedPrecision
from avalanche_peftcl.training.local_loss import LossOver

PluginOrder = Literal["before", "after"]


class TemplateArguments(TypedDict, total=False):
    """What a strategy hands on to :class:`.PEFTTemplate`, which describes them.

    Example:
        A strategy of your own, with another default::

            class Mine(PEFTTemplate):
                def __init__(self, *, alpha: float = 1.0, **template: Unpack[TemplateArguments]):
                    defaults = TemplateArguments(train_epochs=5)
                    super().__init__(**(defaults | template))
                    self.alpha = alpha
    """

    criterion: Callable[..., Tensor] | None
    loss: LossOver
    train_mb_size: int
    train_epochs: int
    eval_mb_size: int | None
    device: str | torch.device
    plugins: Sequence[Any] | None
    plugin_order: PluginOrder
    evaluator: Any
    eval_every: int
    peval_mode: str
    max_grad_norm: float | None
    accumulation_steps: int
    mixed_precision: MixedPrecision
