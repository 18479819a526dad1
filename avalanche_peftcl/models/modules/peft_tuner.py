"""Any tuner of peft by its name."""

from dataclasses import fields
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.modules.choose_blocks import choose_blocks
from avalanche_peftcl.models.modules.injection import OTHER_TARGETS, TunedBranch
from avalanche_peftcl.models.modules.layer_names import ending_in, layer_names
from avalanche_peftcl.models.modules.tuned_text import Tower, tune_text, with_peft
from avalanche_peftcl.registry.wording import did_you_mean

# options of peft's that import a module by its name or read a file
_REACHING_OUT = {"megatron_config", "megatron_core", "arrow_config", "corda_config"}
_REACHING_OUT |= {"eva_config", "loftq_config", "lora_ga_config", "runtime_config"}


@exportable
def build_peft_tuner(
    *,
    backbone: Backbone,
    tuner: str,
    target_modules: tuple[str, ...] = ("qkv",),
    blocks: list[int] | None = None,
    tower: Tower = "image",
    text_modules: tuple[str, ...] | None = None,
    **options: Any,
) -> Branch:
    """Build a :class:`TunedBranch` with any tuner of peft.

    Args:
        backbone: The frozen network.
        tuner: peft's name of the tuner: ``"lora"`` (with ``use_dora=True`` DoRA), ``"adalora"``,
            ``"ia3"``, ``"loha"``, ``"oft"``, ...
        target_modules: Layers to tune in each chosen block, by the end of their names.
        blocks: Which blocks, from 0; ``None`` takes the first five.
        tower: Where: ``"text"``, in the text tower, see :class:`.TunedText`, or ``"both"``.
        text_modules: Linear layers to tune in each chosen block of the text tower; ``None``: those
            of its MLP.
        **options: Further fields of peft's configuration of this tuner.

    Raises:
        ConfigError: Unknown tuner, layer or option, values that peft refuses, or a tuner that mixes
            the images of a minibatch (``"lily"``).

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> branch = build_peft_tuner(backbone=backbone, tuner="lora", use_dora=True, blocks=[3])
        >>> branch.unprotected()
        ['tuners.blocks_3_attn_qkv.lora_magnitude_vector.default.weight']
    """
    known = _tuners()
    if tuner.lower() == "lily":
        raise ConfigError(
            "peft's tuner 'lily' averages its routing over all images of a minibatch, so a "
            "prediction would depend on the images beside it; take another, such as 'lora'"
        )
    if tuner.lower() not in known:
        raise ConfigError(
            f"peft has no tuner {tuner!r} that replaces layers"
            f"{did_you_mean(tuner.lower(), known)}. There are {', '.join(sorted(known))}; DoRA, "
            "rsLoRA and PiSSA are 'lora' with use_dora=True, use_rslora=True and "
            "init_lora_weights='pissa'"
        )
    config_class = known[tuner.lower()]
    ours = {
        "target_modules",
        "layers_to_transform",
        "layers_pattern",
        *OTHER_TARGETS,
        *_REACHING_OUT,
    }
    ours |= {f.name for f in fields(peft.PeftConfig)}
    allowed = sorted({f.name for f in fields(config_class) if f.init} - ours)
    wrong = sorted(options.keys() - set(allowed))
    if wrong:
        raise ConfigError(
            f"tuner {tuner!r} has no option {', '.join(map(repr, wrong))}"
            f"{did_you_mean(wrong[0], allowed)}. There are {', '.join(allowed)}"
        )
    feedforward = options.pop("feedforward_modules", None)  # of IA3: which to scale before

    def config(layers: list[str]) -> Any:
        given: dict[str, list[str]] = {} if feedforward is None else {"feedforward_modules": []}
        for end in feedforward or ():
            fitting = ending_in(layers, end)
            if not fitting:
                raise ConfigError(
                    f"feedforward_modules names {end!r}, which none of the tuned layers is: "
                    f"{', '.join(layers)}"
                )
            given["feedforward_modules"] += fitting
        try:
            return config_class(**options, **given, target_modules=layers)
        except Exception as error:  # each configuration raises its own kind
            raise ConfigError(f"peft refuses the options of tuner {tuner!r}: {error}") from error

    branch = Branch()
    if tower != "text":
        chosen = choose_blocks(blocks, backbone.depth, default=5)
        layers = layer_names(backbone, target_modules, chosen)
        if feedforward:
            layer_names(backbone, feedforward, chosen)  # refuses those that are not there
        branch = TunedBranch(backbone, config(layers))
    if tower == "image":
        return branch
    return tune_text(branch, backbone, with_peft(config, text_modules=text_modules, blocks=blocks))


def _tuners() -> dict[str, Any]:
    """Return by name the configurations of the tuners that replace layers, each for itself."""
    return {
        peft.PeftType(kind).value.lower(): PEFT_TYPE_TO_CONFIG_MAPPING[kind]
        for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()
        if kind not in ("ADAPTION_PROMPT", "POLY", "SHADOW", "TRAINABLE_TOKENS")  # of text
        and kind != "LILY"  # refused with its reason
        and not getattr(tuner, "uses_shared_state", False)
        and any(f.name == "target_modules" for f in fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind]))
    }
