"""Any tuner of peft inside a frozen ViT: layers are replaced in a view, the original stays."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError, ExportError
from avalanche_peftcl.files import write_file
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.backbones.vit import ViTBackbone, as_vit
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.modules.layer_names import layers_of_a_block
from avalanche_peftcl.models.modules.tuner_sites import ADAPTER, tuner_sites
from avalanche_peftcl.models.projection.sites import ProjectionSite
from avalanche_peftcl.registry.wording import join

OTHER_TARGETS = ("target_parameters", "modules_to_save", "trainable_token_indices")
"""What some configurations of peft name beside whole layers."""

PEFT_PREFIX = "base_model.model."


def view_of(
    backbone: ViTBackbone, change: Callable[[nn.Module], object] | None = None
) -> ViTBackbone:
    """Return a copy of ``backbone`` that shares its parameters and buffers.

    Modules can be replaced in the view. The two stay in step through ``.to()``, a loaded state dict
    and a deep copy that holds both.

    Args:
        backbone: The network; it is not changed.
        change: Called with the view's ViT. A module whose parameters it changes, or sets to train,
            gets parameters of its own; all others are shared.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32, depth=1)
        >>> view = view_of(backbone)
        >>> view.vit is backbone.vit, view.vit.pos_embed is backbone.vit.pos_embed
        (False, True)
    """
    return shared_copy(backbone, None if change is None else lambda view: change(view.vit)).train(
        False
    )


_Kind = TypeVar("_Kind", bound=nn.Module)


def shared_copy(module: _Kind, change: Callable[[_Kind], object] | None = None) -> _Kind:
    """Return a copy of a frozen network that shares its parameters and buffers.

    Args:
        module: The network; it is not changed.
        change: As of :func:`view_of`, called with the copy.
    """
    memo: dict[int, Any] = {}
    view = copy.deepcopy(module, memo)
    if change is not None:
        change(view)
    for each in module.modules():
        twin = memo[id(each)]
        if each._parameters and _same(each._parameters, twin._parameters):
            twin._parameters = each._parameters  # the dictionary, so that what is put in it ...
        if each._buffers:
            twin._buffers = each._buffers  # ... by .to() is in both
    return view


class TunedBranch(Branch):
    """A pass through layers that a tuner of peft has replaced.

    The tuner acts in a view of the network, see :func:`view_of`; only what it brings belongs to
    the branch. To copy a branch, copy the model that holds it together with its backbone; peft's
    ``merge`` writes into the weights that all passes share.

    Args:
        backbone: The frozen network; it is not changed.
        config: Any configuration of peft whose tuner replaces layers of the blocks.

    Attributes:
        tuners: What the tuner brought to each layer, under the layer's name with ``_`` for dots;
            the layer's own weights too, where the tuner's initialisation has changed them (PiSSA).

    Raises:
        ConfigError: If peft refuses, if no layer is found, if one is outside the blocks and the
            final norm, or if parameters outside the tuned layers would train.

    Source:
        Library peft, https://github.com/huggingface/peft. Differs: its layers only. What peft does
        around a model is not there: AdaLoRA's reallocation of ranks and its regularisation, tuners
        that share weights between layers (VeRA), ``modules_to_save``.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> config = peft.LoHaConfig(r=2, target_modules=["blocks.0.attn.proj"])
        >>> branch = TunedBranch(backbone, config)
        >>> [name for name, _ in branch.named_parameters()][0]
        'tuners.blocks_0_attn_proj.hada_w1_a.default'
        >>> len(branch.unprotected())
        4
        >>> list(branch.adapter_state())[0]
        'base_model.model.blocks.0.attn.proj.hada_w1_a'
    """

    _view: ViTBackbone

    def __init__(self, backbone: Backbone, config: peft.PeftConfig) -> None:
        super().__init__()
        vit = as_vit(backbone, "peft")
        if wrong := [name for name in OTHER_TARGETS if vars(config).get(name)]:
            raise ConfigError(
                f"{type(config).__name__} sets {', '.join(wrong)}, but here only whole layers are "
                "tuned; name them in target_modules"
            )
        try:
            view = view_of(vit, lambda module: peft.inject_adapter_in_model(config, module))
        except Exception as error:  # each tuner raises its own kind
            raise ConfigError(
                f"peft refuses {type(config).__name__}: {str(error) or repr(error)} "
                f"(layers of a block: {layers_of_a_block(vit)})"
            ) from error
        object.__setattr__(self, "_view", view)  # no child: its weights are the backbone's
        for _, layer in self.tuned_layers():
            for name, part in layer.named_children():
                if name in layer.other_param_names:  # AdaLoRA's ranknum trains once it has moved
                    part.requires_grad_(False)
        shared = {id(module._parameters) for module in backbone.modules()}
        self.tuners = nn.ModuleDict(
            {key_of(name): brought_by(layer, shared) for name, layer in self.tuned_layers()}
        )
        names = [name for name, _ in self.tuned_layers()]
        self._check(config, names)
        self.shares_start = all(
            name.startswith("blocks.") and not name.startswith("blocks.0.") for name in names
        )
        self.train()

    def network(self, backbone: Backbone) -> Backbone:
        """Return the view with the tuned layers, whatever ``backbone`` is."""
        return self._view

    def tuned_layers(self) -> Iterator[tuple[str, Any]]:
        """Return the name in the ViT and the module of every layer that the tuner has replaced."""
        for name, module in self._view.vit.named_modules():
            if isinstance(module, BaseTunerLayer):
                yield name, module

    def train(self, mode: bool = True) -> "TunedBranch":
        """Set what the tuner brought to training or evaluation; the frozen layers stay as is."""
        super().train(mode)
        for _, layer in self.tuned_layers():
            layer.training = mode  # some tuners look here whether to drop
        return self

    def projection_sites(self) -> Iterator[ProjectionSite]:
        """State what must hold for the output on old tokens to stay.

        For LoRA and its variants, AdaLoRA and IA3. What has no site is in :meth:`unprotected`.
        Of DoRA the sites hold the update's direction only: its norm, by which DoRA divides, moves
        old outputs even where no magnitude does.
        """
        names = {id(p): name for name, p in self.named_parameters() if p.requires_grad}
        for _, layer in self.tuned_layers():
            for site in self.sites_of(layer):
                if id(site.parameter) in names:
                    yield replace(site, name=names[id(site.parameter)])

    def sites_of(self, layer: Any) -> Iterator[ProjectionSite]:
        """Return the sites of a tuned layer, without names."""
        yield from tuner_sites(layer)

    def unprotected(self) -> list[str]:
        """Return the names of the parameters that train and have no site."""
        sited = {site.name for site in self.projection_sites()}
        return [n for n, p in self.named_parameters() if p.requires_grad and n not in sited]

    @property
    def _config(self) -> Any:
        """The configuration as the tuner has completed it."""
        return self._view.vit.peft_config[ADAPTER]

    def adapter_state(self) -> dict[str, Tensor]:
        """Return what the tuner brought, under the names that peft reads.

        Raises:
            ExportError: If the tuner's initialisation has changed the layers' own weights (PiSSA),
                or the text tower is tuned too.
        """
        if self.text is not None:
            raise ExportError(
                "the module is in the text tower too, of which peft's own format of an image tower "
                "holds nothing; take tower: image, or an export of the whole network"
            )
        parts = {name: dict(part.named_children()) for name, part in self.tuners.items()}
        if changed := [name for name, part in parts.items() if "base_layer" in part]:
            raise ExportError(
                f"the initialisation of {type(self._config).__name__} has changed the weights of "
                f"{join(changed, most=3)}, which peft's own format does not hold; take another"
            )
        told = get_peft_model_state_dict(
            self._view.vit, adapter_name=ADAPTER, save_embedding_layers=False
        )
        return {f"{PEFT_PREFIX}{name}": tensor for name, tensor in told.items()}

    def save_pretrained(self, folder: str | Path, *, base_model: str | None = None) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors``, as peft does.

        ``peft.PeftModel.from_pretrained(vit, folder)`` puts them into timm's ViT of the same
        weights, made with ``num_classes=0``, which then returns what the branch pools. A head is
        no part of it.

        Args:
            folder: Where to; it is made if it is not there.
            base_model: Name of the network in timm, for whoever reads the file.

        Raises:
            ExportError: As :meth:`adapter_state`.
            ConfigError: If a file cannot be written.
        """
        state = {n: t.detach().cpu().contiguous().clone() for n, t in self.adapter_state().items()}
        told = self._config.to_dict() | {"inference_mode": True, "peft_version": peft.__version__}
        told["base_model_name_or_path"] = base_model
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in told.items()}
        config = json.dumps(plain, indent=2, sort_keys=True, default=str)
        write_file(Path(folder) / "adapter_config.json", config.encode(), parents=True)
        write_file(Path(folder) / "adapter_model.safetensors", save(state, {"format": "pt"}))

    def _check(self, config: Any, names: list[str]) -> None:
        kind = type(config).__name__
        if not names:
            raise ConfigError(
                f"{kind} replaces no layer; layers of a block: {layers_of_a_block(self._view)}"
            )
        early = [name for name in names if name.startswith(("patch_embed", "norm_pre"))]
        if early:
            raise ConfigError(
                f"{kind} would tune {', '.join(early)}, but the embedding is the same for all "
                "passes; write target_modules so that it is left out (attn.proj instead of proj)"
            )
        own = {id(p) for p in self.parameters()}
        further = [
            name
            for name, p in self._view.vit.named_parameters()
            if p.requires_grad and id(p) not in own
        ]
        if further:
            raise ConfigError(
                f"{kind} would train parameters outside the tuned layers: {', '.join(further)}; "
                "use bias='none'"
            )


def brought_by(layer: Any, shared: set[int]) -> nn.ModuleDict:
    """Return what the tuner brought to ``layer``: all but the parameters that are ``shared``."""
    brought = nn.ModuleDict(
        {
            name: child
            for name, child in layer.named_children()
            if name != "base_layer" or (child._parameters and id(child._parameters) not in shared)
        }
    )
    brought._parameters, brought._buffers = layer._parameters, layer._buffers
    return brought


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Whether two modules hold the same parameters, none of which trains."""
    return ours.keys() == theirs.keys() and all(
        p is None
        or (not theirs[name].requires_grad and (p.is_meta or torch.equal(p, theirs[name])))
        for name, p in ours.items()
    )


def key_of(name: str) -> str:
    """Return a name in a network as the name of a child."""
    return name.replace(".", "_")
