"""LoRA in some blocks: W x + s B A x, with a learnable s."""

from collections.abc import Iterator
from typing import Any, Literal

import peft
import torch
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.modules.choose_blocks import choose_blocks
from avalanche_peftcl.models.modules.injection import PEFT_PREFIX, TunedBranch
from avalanche_peftcl.models.modules.layer_names import layer_names
from avalanche_peftcl.models.modules.tuned_text import Tower, tune_text, with_peft
from avalanche_peftcl.models.modules.tuner_sites import ADAPTER
from avalanche_peftcl.models.projection.sites import ProjectionSite, column
from avalanche_peftcl.registry.ranges import Dropout, Scale, Width


class LoRABranch(TunedBranch):
    r"""A pass through layers with a low-rank update beside their weight.

    .. math:: h = W x + b + s\,B y, \qquad y = A x

    It stays as it is on old tokens if :math:`\Delta A\,x = 0`, :math:`\Delta B\,y = 0` and
    :math:`\Delta s\,\lVert B y \rVert = 0`.

    Args:
        backbone: The frozen network; it is not changed.
        config: peft's configuration of LoRA.
        learn_scale: Whether :math:`s` of each layer trains, from peft's ``lora_alpha / r`` on.

    Raises:
        ConfigError: See :class:`TunedBranch`.

    Source:
        Hu et al., arXiv 2106.09685, eq. (3), by the library peft; in PEGP: Qiao et al., arXiv
        2405.13383, eqs. (7) and (14), released code f6515bf (``pet/lora.py``).
        Differs: :math:`s` has a site too, so it stays after the first experience; the released
        code lets it train on, which changes the output on old tokens.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> branch = build_lora(backbone=backbone, r=2, blocks=[1])
        >>> for site in branch.projection_sites():
        ...     print(site.name, tuple(site.view(site.parameter).shape))
        tuners.blocks_1_attn_qkv.lora_A.default.weight (1, 2, 192)
        tuners.blocks_1_attn_qkv.lora_B.default.weight (1, 576, 2)
        tuners.blocks_1_attn_qkv.scaling.default (1, 1, 1)
    """

    def __init__(
        self, backbone: Backbone, config: peft.LoraConfig, *, learn_scale: bool = True
    ) -> None:
        super().__init__(backbone, config)
        if not learn_scale:
            return
        for (_, layer), brought in zip(self.tuned_layers(), self.tuners.values(), strict=True):
            self.peft_scale = float(layer.scaling[ADAPTER])
            start = torch.full((1,), self.peft_scale).to(layer.lora_A[ADAPTER].weight)
            layer.scaling = nn.ParameterDict({ADAPTER: start})  # in place of peft's plain dict
            brought.add_module("scaling", layer.scaling)

    def adapter_state(self) -> dict[str, Tensor]:
        r"""Return what peft reads; it knows no learnt :math:`s`, which goes into :math:`B`."""
        state = super().adapter_state()
        for name, layer in self.tuned_layers():
            if isinstance(scale := layer.scaling[ADAPTER], nn.Parameter):
                key = f"{PEFT_PREFIX}{name}.lora_B.weight"
                state[key] = state[key] * (scale / self.peft_scale)
        return state

    def sites_of(self, layer: Any) -> Iterator[ProjectionSite]:
        """Return the sites of a tuned layer, that of its scale included, without names."""
        yield from super().sites_of(layer)
        down, up, scale = (part[ADAPTER] for part in (layer.lora_A, layer.lora_B, layer.scaling))

        def length(x: Tensor) -> Tensor:
            """Return how far the output moves with the scale: ``(..., D)`` to ``(..., 1)``."""
            moved: Tensor = up.forward(down.forward(x))  # unheard by those who listen at up
            norm: Tensor = moved.norm(dim=-1, keepdim=True)
            return norm

        if isinstance(scale, nn.Parameter):
            yield ProjectionSite("", scale, layer, view=column, features=length)


@exportable
def build_lora(
    *,
    backbone: Backbone,
    r: Width = 5,
    alpha: Scale | None = None,
    target_modules: tuple[str, ...] = ("qkv",),
    blocks: list[int] | None = None,
    dropout: Dropout = 0.0,
    init: Literal["kaiming", "gaussian"] = "kaiming",
    learn_scale: bool = True,
    tower: Tower = "image",
    text_modules: tuple[str, ...] | None = None,
) -> Branch:
    """Build a :class:`LoRABranch`; the defaults are PEGP's: q, k and v share one ``A``.

    Args:
        backbone: The frozen network.
        r: Rank ``R``.
        alpha: The scale starts at ``alpha / r``; ``None`` takes ``r``, so that it starts at 1.
        target_modules: Layers to tune in each chosen block, by the end of their names.
        blocks: Which blocks, from 0; ``None`` takes the first five.
        dropout: Probability of the dropout in front of ``A``, in training.
        init: Of ``A``: Kaiming-uniform, or normal with deviation ``1 / r``. ``B`` starts at zero.
        learn_scale: Whether the scale trains; that in a text tower never does.
        tower: Where: ``"text"``, in the text tower, see :class:`.TunedText`, or ``"both"``.
        text_modules: Linear layers to tune in each chosen block of the text tower; ``None``: those
            of its MLP.

    Raises:
        ConfigError: If a layer or block is not there, or a value out of range.
    """
    if init not in ("kaiming", "gaussian"):
        raise ConfigError(f"init must be kaiming or gaussian, not {init!r}")

    def config(layers: list[str]) -> peft.LoraConfig:
        return peft.LoraConfig(
            r=r,
            lora_alpha=r if alpha is None else alpha,
            lora_dropout=dropout,
            init_lora_weights=True if init == "kaiming" else init,
            target_modules=layers,
        )

    branch = Branch()
    if tower != "text":
        chosen = choose_blocks(blocks, backbone.depth, default=5)
        layers = layer_names(backbone, target_modules, chosen)
        branch = LoRABranch(backbone, config(layers), learn_scale=learn_scale)
    if tower == "image":
        return branch
    return tune_text(branch, backbone, with_peft(config, text_modules=text_modules, blocks=blocks))
