"""Short names of methods: their components, and of their options as few as tell them apart."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avalanche_peftcl.compare.alike import shorten
from avalanche_peftcl.registry.kinds import KINDS

Identity = Mapping[str, Any]

_LONG = 40  # characters of an option's value in a label
_WHOLE = {kind.key for kind in KINDS.values()} | {"benchmark.root"}  # told by their value alone
_LAST = ("protocol", "provider")  # told only if nothing else tells two methods apart


@dataclass(frozen=True)
class Named:
    """How a method is called.

    Args:
        label: The strategy, components that differ among all methods, and options.
        settings: Components in which it differs from any other, and options in which it differs
            from methods of the same strategy, by their names.
        untold: Options that a method with the same components has too, with another value, and
            that no label tells, as ``"lr=0.1"``.
    """

    label: str
    settings: Mapping[str, Any]
    untold: tuple[str, ...]


def named(identities: Sequence[Identity]) -> list[Named]:
    """Return the name of each method, different and no longer than that takes.

    Components in which any two methods differ are told by all that have them, by name. Among
    methods with the same components one option is told if it alone tells them apart, else the first
    that differs, then one of those that are still alike, and so on.

    Args:
        identities: Everything that makes each method, flat: ``strategy``, ``module.r``, ...

    Example:
        >>> a = {"strategy": "ntk_cl", "strategy.recipe": "kernel", "strategy.lr": 0.1, "head": "x"}
        >>> b = a | {"strategy.recipe": "released", "strategy.lr": 0.03}
        >>> c = {"strategy": "naive", "head": "ridge", "head.penalty": 1.0}
        >>> [each.label for each in named([a, b, c])]
        ['ntk_cl x recipe=kernel', 'ntk_cl x recipe=released', 'naive ridge']
        >>> named([a, b, c])[0].untold
        ('lr=0.1',)
    """
    among_all = _differing(identities)
    parts = [
        [key for key in each if key == "strategy" or (key in among_all and key in _WHOLE)]
        for each in identities
    ]
    groups: dict[str, list[int]] = {}
    for i, (each, keys) in enumerate(zip(identities, parts, strict=True)):
        groups.setdefault(_token([(key, each[key]) for key in keys]), []).append(i)
    found: dict[int, Named] = {}
    for members in groups.values():
        alike = [identities[i] for i in members]
        differing = [key for key in _ordered(alike) if not key.startswith(_LAST)]
        for i, told in zip(members, _split(alike), strict=True):
            identity = identities[i]
            siblings = [each for each in identities if each["strategy"] == identity["strategy"]]
            options = [key for key in _ordered(siblings) if not key.startswith(_LAST)]
            words = [_component(key, identity, identities) for key in parts[i]]
            words += [_option(key, identity, among_all) for key in told]
            untold = [key for key in differing if key in identity and key not in told]
            found[i] = Named(
                _line(words),
                {key: identity[key] for key in (*parts[i], *told, *options) if key in identity},
                tuple(_option(key, identity, among_all) for key in untold),
            )
    return _numbered([found[i] for i in range(len(identities))])


def _split(identities: Sequence[Identity]) -> list[list[str]]:
    """Return the options to be told of each of several methods with the same components."""
    keys = list(_ordered(identities))
    if len(identities) < 2 or not keys:
        return [[] for _ in identities]
    alone = (key for key in keys if len(_values(key, identities)) == len(identities))
    key = next(alone, keys[0])
    told: dict[int, list[str]] = {}
    for members in _values(key, identities).values():
        rest = _split([identities[i] for i in members])
        told |= {i: [key, *more] for i, more in zip(members, rest, strict=True)}
    return [[k for k in told[i] if k in each] for i, each in enumerate(identities)]


def _ordered(identities: Sequence[Identity]) -> Iterator[str]:
    """Yield the options that differ, those of the protocol and of providers last."""
    differing = _differing(identities)
    keys = dict.fromkeys(key for each in identities for key in each if key in differing)
    yield from (key for key in keys if not key.startswith(_LAST))
    yield from (key for key in keys if key.startswith(_LAST))


def _values(key: str, identities: Sequence[Identity]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, each in enumerate(identities):
        found.setdefault(_token(each.get(key)), []).append(i)
    return found


def _differing(identities: Sequence[Identity]) -> set[str]:
    keys = {key for identity in identities for key in identity}
    return {key for key in keys if len(_values(key, identities)) > 1}


def _component(key: str, identity: Identity, others: Sequence[Identity]) -> str:
    """Return the name of a component, with that of its kind where two kinds have such a name."""
    value = identity[key]
    if value == []:
        return ""
    names = value if isinstance(value, list) else [value]
    elsewhere = {
        name
        for other in others
        for kind in _WHOLE & other.keys() - {key}
        for name in (other[kind] if isinstance(other[kind], list) else [other[kind]])
    }
    text = ",".join(map(str, names))
    return f"{key}={text}" if elsewhere.intersection(names) else text


def _option(key: str, identity: Identity, others: set[str]) -> str:
    """Return an option with its value, and with its component where several have such an option."""
    kind, _, name = key.partition(".")
    if kind == "protocol":
        return f"{name}={_text(identity[key])}"
    short = key.rpartition(".")[2]
    same = [other for other in others if other.rpartition(".")[2] == short]
    alone = kind != "provider" and len(same) == 1
    return f"{short if alone or kind == 'strategy' else key}={_text(identity[key])}"


def _numbered(found: Sequence[Named]) -> list[Named]:
    labels = [each.label for each in found]
    return [
        each
        if labels.count(each.label) == 1
        else Named(
            f"{each.label} ({labels[: i + 1].count(each.label)})", each.settings, each.untold
        )
        for i, each in enumerate(found)
    ]


def _line(words: Sequence[str]) -> str:
    """Return words as one line that controls no terminal."""
    shown = "".join(sign if sign.isprintable() else " " for sign in " ".join(words))
    return " ".join(shown.split())


def _token(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _text(value: Any) -> str:
    """Return an option's value as a label shows it."""
    if isinstance(value, Mapping):
        told = [f"{key}={_text(each)}" for key, each in value.items() if key != "name"]
        return f"{value.get('name', '')}({','.join(told)})" if told else str(value.get("name"))
    if isinstance(value, list):
        return ",".join(map(_text, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    text = " ".join(shorten(value).split())
    return text if len(text) <= _LONG else text[: _LONG - 3] + "..."
