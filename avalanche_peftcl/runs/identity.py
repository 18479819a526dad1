"""What must be the same where a run goes on: settings, versions, weights and data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_peftcl.checkpoints.differences import comparable as comparable
from avalanche_peftcl.checkpoints.differences import differences
from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.runs.record import describe_versions

_FREE = ("output", "checkpoint_every", "loggers")  # keys that may change when a run goes on
# places of files, which may have moved; their contents are compared
_PLACES = {"backbone": ("checkpoint",), "benchmark": ("root", "manifest")}
_KINDS = (
    ("settings", "other settings", "set them back"),
    ("versions", "other versions", "install those versions again"),
    ("weights", "other weights of the backbone", "use those weights"),
    ("protocol", "other data", "give it the same images and classes"),
)


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
                f"the run in {output} was begun with {said}: {differences(was, now)}; "
                f"{way_out}, or start anew (--overwrite; in Python, overwrite=True)"
            )
