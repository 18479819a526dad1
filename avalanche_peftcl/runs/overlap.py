"""Which classes of a stream the backbone's pre-training had labels for, by their names."""

import re
from collections.abc import Iterable
from functools import cache

from avalanche_peftcl.config import ComponentConfig
from avalanche_peftcl.models.backbones.timm_api import imagenet_labels, weights_tag
from avalanche_peftcl.runs.schema import Overlap

_NAMED = {"1k": "imagenet-1k", "12k": "imagenet-12k", "21k": "imagenet-21k", "22k": "imagenet-21k"}
_TAG = re.compile(r"(?<![a-z])in(1k|12k|21k|22k)(?![0-9])")  # in timm's names of weights
_OF_TIMM = ("timm_vit", "dual_encoder")  # backbones whose model_name is timm's
_OF_NOTHING = re.compile(r"[\W\d_]*")  # a name that is a number


def overlap_of(backbone: ComponentConfig, class_names: Iterable[str]) -> Overlap | None:
    """Return what the pre-training of a backbone had of some classes.

    timm's name of the weights says what they were trained on, as ``in21k_ft_in1k`` does; of a
    ``checkpoint`` it is taken that the file holds the weights that timm has under the name.

    Args:
        backbone: Its settings.
        class_names: Of a stream.

    Returns:
        ``None`` where nobody knows: other backbones, weights that were not trained on labels of
        ImageNet, classes that have numbers for names.

    Example:
        >>> settings = {"name": "timm_vit", "model_name": "deit_tiny_patch16_224"}
        >>> names = ["goldfish", "frog", "deer"]
        >>> overlap_of(ComponentConfig(**settings, pretrained=True), names)
        Overlap(pretrained_on=['imagenet-1k'], classes=3, known=['goldfish'], kinds=['frog'])
        >>> overlap_of(ComponentConfig(**settings), names).pretrained_on  # random weights
        []
    """
    names = sorted(set(class_names))
    options = backbone.options
    if backbone.name not in _OF_TIMM or all(map(_OF_NOTHING.fullmatch, names)):
        return None
    if not (options.get("pretrained") or options.get("checkpoint")):
        return Overlap(pretrained_on=[], classes=len(names), known=[], kinds=[])
    sets = pretrained_on(str(options.get("model_name")))
    if not sets:
        return None
    known = [name for name in names if any(_words(name) in _labels(each)[0] for each in sets)]
    kinds = [name for name in names if any(_words(name) in _labels(each)[1] for each in sets)]
    kinds = [name for name in kinds if name not in known]
    return Overlap(pretrained_on=list(sets), classes=len(names), known=known, kinds=kinds)


def pretrained_on(model_name: str) -> tuple[str, ...]:
    """Return the sets of labels that timm's weights of a name were trained on, if it says so.

    Args:
        model_name: With or without the tag of the weights.

    Example:
        >>> pretrained_on("vit_base_patch16_224.augreg2_in21k_ft_in1k")
        ('imagenet-21k', 'imagenet-1k')
        >>> pretrained_on("vit_base_patch14_dinov2"), pretrained_on("hf-hub:a/b")
        ((), ())
    """
    tag = "" if ":" in model_name else weights_tag(model_name)
    return tuple(dict.fromkeys(_NAMED[found] for found in _TAG.findall(tag)))


@cache
def _labels(data_set: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return all names of a set's labels, its synsets' ids among them, and what these end with."""
    labels = imagenet_labels(data_set)
    names = [_words(name) for text in labels.values() for name in text.split(",")]
    ends = (name.split(" ") for name in names)
    heads = frozenset(" ".join(words[i:]) for words in ends for i in range(1, len(words)))
    return frozenset([*names, *labels]), heads


def _words(name: str) -> str:
    """Return a name in small letters, its words parted by one space.

    Example:
        >>> _words("Great_White-Shark ")
        'great white shark'
    """
    return " ".join(re.split(r"[\W_]+", name.lower())).strip()
