"""Which classes of a stream the backbone's pre-training had labels for, by their names."""

import re
from collections.abc import Iterable, Sequence
from functools import cache

from avalanche_peftcl.models.backbones.timm_api import imagenet_labels
from avalanche_peftcl.runs.schema import Overlap

_OF_NOTHING = re.compile(r"[\W\d_]*")  # a name that is a number


def overlap_of(pretrained_on: Sequence[str] | None, class_names: Iterable[str]) -> Overlap | None:
    """Return what the pre-training of a backbone had of some classes.

    Args:
        pretrained_on: As of :class:`.BackboneOffers`.
        class_names: Of a stream.

    Returns:
        ``None`` where nobody knows: what the weights were trained on, or what the classes are
        called, which have numbers for names.

    Raises:
        ConfigError: If nobody knows such a set of labels.

    Example:
        >>> overlap_of(["imagenet-1k"], ["goldfish", "frog", "deer"])
        Overlap(pretrained_on=['imagenet-1k'], classes=3, known=['goldfish'], kinds=['frog'])
    """
    names = sorted(set(class_names))
    if pretrained_on is None or all(map(_OF_NOTHING.fullmatch, names)):
        return None
    sets = [_labels(each) for each in pretrained_on]
    known = [name for name in names if any(_words(name) in labels for labels, _ in sets)]
    kinds = [name for name in names if any(_words(name) in heads for _, heads in sets)]
    kinds = [name for name in kinds if name not in known]
    return Overlap(pretrained_on=list(pretrained_on), classes=len(names), known=known, kinds=kinds)


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
