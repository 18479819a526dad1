"""The only file that imports timm: all that the package uses of it, with types."""

from typing import Any, cast

import timm
from timm.data import ImageNetInfo
from timm.layers import Attention as Attention
from timm.models import _hub, _registry, vision_transformer
from timm.models.deit import VisionTransformerDistilled as VisionTransformerDistilled
from timm.models.vision_transformer import Block as Block
from timm.models.vision_transformer import VisionTransformer as VisionTransformer
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError

LABEL_SETS = ("imagenet-1k", "imagenet-12k", "imagenet-21k")


def create_model(model_name: str, **options: Any) -> Any:
    """Build a model of timm's registry."""
    return timm.create_model(model_name, **options)


def architecture_at(source: str, place: str) -> str:
    """Return what model a repository (``"hf-hub"``) or a folder (``"local-dir"``) says it holds."""
    if source == "hf-hub":
        _, architecture, _ = _hub.load_model_config_from_hf(place)
    else:
        _, architecture, _ = _hub.load_model_config_from_path(place)
    return cast(str, architecture)


def model_names() -> list[str]:
    """Return the names of all models, without the tags of their weights."""
    return cast(list[str], timm.list_models())


def weight_names(model_name: str) -> list[str]:
    """Return the names with a tag of all pretrained weights of a model."""
    return cast(list[str], timm.list_pretrained(f"{model_name}.*"))


def given_up_names() -> dict[str, str | None]:
    """Return what each name that timm has given up is called today, ``None`` if it is gone."""
    return cast(dict[str, str | None], _registry._deprecated_models)


def data_config(vit: nn.Module) -> dict[str, Any]:
    """Return what a model expects of an image: mean, std, interpolation, crop_pct."""
    return cast(dict[str, Any], timm.data.resolve_model_data_config(vit))


def pretrained_config(vit: nn.Module) -> dict[str, Any]:
    """Return what timm knows of a model's weights; empty for a network that it did not build."""
    return cast(dict[str, Any], vars(vit).get("pretrained_cfg")) or {}


def weights_tag(model_name: str) -> str:
    """Return timm's name of the weights of a model; empty if it knows none.

    Args:
        model_name: Name in timm's registry, with the tag of its weights or without.
    """
    config = timm.models.get_pretrained_cfg(model_name)
    return str(config.tag or "") if config is not None else ""


def imagenet_labels(data_set: str) -> dict[str, str]:
    """Return the names of each label of a set of ImageNet's, parted by commas, by WordNet's id.

    Args:
        data_set: ``"imagenet-1k"``, ``"imagenet-12k"`` or ``"imagenet-21k"``.

    Raises:
        ConfigError: If it is another one.
    """
    if data_set not in LABEL_SETS:
        raise ConfigError(
            f"pretrained_on names {data_set!r}, of which no labels are known; there are "
            f"{', '.join(LABEL_SETS)}, and None for what nobody knows"
        )
    info = ImageNetInfo(data_set)
    return {synset: info.label_name_to_description(synset) for synset in info.label_names()}


def convert_weights(state: dict[str, Tensor], vit: VisionTransformer) -> dict[str, Tensor]:
    """Return published weights under the names and in the sizes of ``vit``, as timm loads them."""
    options = _as_timm_reads(str(pretrained_config(vit).get("architecture") or ""))
    converted = vision_transformer.checkpoint_filter_fn(state, vit, **options)
    return cast(dict[str, Tensor], converted)


def _as_timm_reads(architecture: str) -> dict[str, Any]:
    """Return how timm's own loading of these models resamples and renames."""
    options: dict[str, Any] = {}
    if architecture.startswith("deit"):
        options["adapt_layer_scale"] = True
    if "flexi" in architecture or "radio" in architecture:
        options |= {"interpolation": "bilinear", "antialias": False}
    aligned = vars(vision_transformer).get("_RADIO_ALIGN_CORNERS", ())  # not in every timm
    if "radio" in architecture and aligned:
        options["align_corners"] = any(part in architecture for part in aligned)
    return options
