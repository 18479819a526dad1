"""Any tuner of peft inside a frozen ViT: layers are replaced in a view, the original stays."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

import peft
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.modules.blocks import choose_blocks
from avalanche_peftcl.models.modules.tuner_sites import tuner_sites
from avalanche_peftcl.models.projection.sites import ProjectionSite

# options of peft's that import a module by its name or read a file
_REACHING_OUT = {"megatron_config", "megatron_core", "arrow_config", "corda_config"}
_REACHING_OUT |= {"eva_config", "loftq_config", "lora_ga_config", "runtime_config"}
_OTHER_TARGETS = ("target_parameters", "modules_to_save", "trainable_token_indices")


def view_of(backbone: Backbone, change: Callable[[nn.Module], object] | None = None) -> Backbone:
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
    memo: dict[int, Any] = {}
    view = copy.deepcopy(backbone, memo)
    if change is not None:
        change(view.vit)
    for module in backbone.modules():
        twin = memo[id(module)]
        if module._parameters and _same(module._parameters, twin._parameters):
            twin._parameters = module._parameters  # the dictionary, so that what is put in it ...
        if module._buffers:
            twin._buffers = module._buffers  # ... by .to() is in both
    return view.train(False)


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
    """

    _view: Backbone

    def __init__(self, backbone: Backbone, config: peft.PeftConfig) -> None:
        super().__init__()
        if wrong := [name for name in _OTHER_TARGETS if getattr(config, name, None)]:
            raise ConfigError(
                f"{type(config).__name__} sets {', '.join(wrong)}, but here only whole layers are "
                "tuned; name them in target_modules"
            )
        try:
            view = view_of(backbone, lambda vit: peft.inject_adapter_in_model(config, vit))
        except Exception as error:  # each tuner raises its own kind
            raise ConfigError(
                f"peft refuses {type(config).__name__}: {str(error) or repr(error)} "
                f"(layers of a block: {_layers_of_a_block(backbone)})"
            ) from error
        object.__setattr__(self, "_view", view)  # no child: its weights are the backbone's
        for _, layer in self.tuned_layers():
            for part in (getattr(layer, name, None) for name in layer.other_param_names):
                if isinstance(part, nn.Module):  # AdaLoRA's ranknum trains once peft has moved it
                    part.requires_grad_(False)
        shared = {id(module._parameters) for module in backbone.modules()}
        self.tuners = nn.ModuleDict(
            {_key(name): _brought(layer, shared) for name, layer in self.tuned_layers()}
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

    def _check(self, config: Any, names: list[str]) -> None:
        kind = type(config).__name__
        if not names:
            raise ConfigError(
                f"{kind} replaces no layer; layers of a block: {_layers_of_a_block(self._view)}"
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


@exportable
def build_peft_tuner(
    *,
    backbone: Backbone,
    tuner: str,
    target_modules: tuple[str, ...] = ("qkv",),
    blocks: list[int] | None = None,
    **options: Any,
) -> TunedBranch:
    """Build a :class:`TunedBranch` with any tuner of peft.

    Args:
        backbone: The frozen network.
        tuner: peft's name of the tuner: ``"lora"`` (with ``use_dora=True`` DoRA), ``"adalora"``,
            ``"ia3"``, ``"loha"``, ``"oft"``, ...
        target_modules: Layers to tune in each chosen block, by the end of their names.
        blocks: Which blocks, from 0; ``None`` takes the first five.
        **options: Further fields of peft's configuration of this tuner.

    Raises:
        ConfigError: Unknown tuner, layer or option, or values that peft refuses.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> branch = build_peft_tuner(backbone=backbone, tuner="lora", use_dora=True, blocks=[3])
        >>> branch.unprotected()
        ['tuners.blocks_3_attn_qkv.lora_magnitude_vector.default.weight']
    """
    known = _tuners()
    if tuner.lower() not in known:
        near = get_close_matches(tuner.lower(), known, n=1)
        raise ConfigError(
            f"peft has no tuner {tuner!r} that replaces layers"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + f" There are {', '.join(sorted(known))}; DoRA, rsLoRA and PiSSA are 'lora' with "
            "use_dora=True, use_rslora=True and init_lora_weights='pissa'"
        )
    config_class = known[tuner.lower()]
    ours = {
        "target_modules",
        "layers_to_transform",
        "layers_pattern",
        *_OTHER_TARGETS,
        *_REACHING_OUT,
    }
    ours |= {f.name for f in fields(peft.PeftConfig)}
    allowed = sorted({f.name for f in fields(config_class) if f.init} - ours)
    wrong = sorted(options.keys() - set(allowed))
    if wrong:
        near = get_close_matches(wrong[0], allowed, n=1)
        raise ConfigError(
            f"tuner {tuner!r} has no option {', '.join(map(repr, wrong))}"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + f" There are {', '.join(allowed)}"
        )
    chosen = choose_blocks(blocks, backbone.depth, default=5)
    options["target_modules"] = layer_names(backbone, target_modules, chosen)
    if options.get("feedforward_modules"):  # of IA3: those of the target modules to scale before
        options["feedforward_modules"] = layer_names(
            backbone, options["feedforward_modules"], chosen
        )
    try:
        config = config_class(**options)
    except Exception as error:  # each configuration raises its own kind
        raise ConfigError(f"peft refuses the options of tuner {tuner!r}: {error}") from error
    return TunedBranch(backbone, config)


def layer_names(
    backbone: Backbone, target_modules: Iterable[str], blocks: Sequence[int]
) -> list[str]:
    """Return the full names of layers in some blocks, as peft wants them.

    Args:
        backbone: The network.
        target_modules: Ends of names inside a block, such as ``"qkv"`` or ``"mlp.fc1"``.
        blocks: Which blocks, from 0.

    Raises:
        ConfigError: If a block has no layer of such a name.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> layer_names(backbone, ["qkv", "fc1"], [0, 2])
        ['blocks.0.attn.qkv', 'blocks.0.mlp.fc1', 'blocks.2.attn.qkv', 'blocks.2.mlp.fc1']
    """
    found: list[str] = []
    targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    for index in blocks:
        names = [name for name, _ in backbone.blocks[index].named_modules()]
        for target in targets:
            fitting = [n for n in names if target and f".{n}".endswith(f".{target}")]
            if not fitting:
                raise ConfigError(
                    f"block {index} has no layer {target!r}; target_modules names layers inside a "
                    f"block: {_layers_of_a_block(backbone)}"
                )
            found += [f"blocks.{index}.{name}" for name in fitting]
    if not found:
        raise ConfigError(
            f"target_modules is empty; name layers of a block: {_layers_of_a_block(backbone)}"
        )
    return list(dict.fromkeys(found))


def _brought(layer: Any, shared: set[int]) -> nn.ModuleDict:
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


def _key(name: str) -> str:
    return name.replace(".", "_")


def _layers_of_a_block(backbone: Backbone) -> str:
    layers = backbone.blocks[0].named_modules()
    return ", ".join(name for name, module in layers if isinstance(module, nn.Linear))


def _tuners() -> dict[str, Any]:
    """Return by name the configurations of the tuners that replace layers, each for itself."""
    return {
        peft.PeftType(kind).value.lower(): PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if kind not in ("ADAPTION_PROMPT", "POLY", "SHADOW", "TRAINABLE_TOKENS")  # of text
        and not getattr(tuner, "uses_shared_state", False)
        and any(f.name == "target_modules" for f in fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind]))
    }
