"""What must be the same where a run goes on: settings, versions, weights and data."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.record import describe_versions

_FREE = ("output", "checkpoint_every", "loggers")  # keys that may change when a run goes on
# places of files, which may have moved; their contents are compared
_PLACES = {"backbone": ("checkpoint",), "benchmark": ("root", "manifest")}
_MOST = 5  # differences that one message lists
_ABSENT = object()
_KINDS = (
    ("settings", "other settings", "set them back"),
    ("versions", "other versions", "install those versions again"),
    ("weights", "other weights of the backbone", "use those weights"),
    ("protocol", "other data", "give it the same images and classes"),
)


def comparable(value: Any) -> Any:
    """Return ``value`` as JSON reads it back, so that what was saved compares equal."""
    return json.loads(json.dumps(value, default=str))


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resolved settings without those that may change when a run goes on."""
    kept = {key: value for key, value in comparable(config).items() if key not in _FREE}
    for kind, places in _PLACES.items():
        if isinstance(options := kept.get(kind), dict):
            kept[kind] = {
                k: v if k not in places or v is None else "a place" for k, v in options.items()
            }
    return kept


def versions_of(components: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the versions of what a result depends on: libraries, and components but loggers."""
    libraries = {k: v for k, v in describe_versions().items() if k != "python"}
    return libraries | {
        each["provider"]: each["version"] for each in components if each["kind"] != "logger"
    }


def check_record(metrics: Mapping[str, Any], settings: Mapping[str, Any], output: Path) -> None:
    """Refuse to go on with a record of another configuration.

    Raises:
        CheckpointError: With the keys that differ.
    """
    was = {"settings": settings_of(metrics.get("config", {}))}
    check_identity({"identity": was}, {"settings": settings}, output)


def check_identity(state: Mapping[str, Any], here: Mapping[str, Any], output: Path) -> None:
    """Refuse to go on with a run that is not the same.

    Args:
        state: A checkpoint.
        here: Any of ``settings``, ``versions``, ``weights`` and ``protocol`` of this run.
        output: The run's output folder.

    Raises:
        CheckpointError: With what differs.
    """
    saved = state.get("identity")
    for kind, said, way_out in _KINDS:
        if kind not in here:
            continue
        now = comparable(here[kind])
        was = saved.get(kind) if isinstance(saved, dict) else None
        if now != was:
            raise CheckpointError(
                f"the run in {output} was begun with {said}: {_differences(was, now)}; "
                f"{way_out}, or start anew (--overwrite; in Python, overwrite=True)"
            )


def _differences(was: Any, now: Any) -> str:
    old, new = dict(_leaves(was)), dict(_leaves(now))
    keys = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    told = [f"{k or 'it'} was {_say(old, k)}, is {_say(new, k)}" for k in keys[:_MOST]]
    more = f" and {len(keys) - _MOST} more" if len(keys) > _MOST else ""
    return ", ".join(told) + more


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _say(values: Mapping[str, Any], key: str) -> str:
    text = repr(values[key]) if key in values else "not there"
    return text if len(text) <= 80 else text[:77] + "..."
