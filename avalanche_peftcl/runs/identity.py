"""What makes two runs the same: settings, versions, weights and data."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from avalanche_peftcl.checkpoints.differences import comparable, differences
from avalanche_peftcl.config.plan import Plan
from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.registry.packages import Entry
from avalanche_peftcl.runs.earlier_settings import as_now
from avalanche_peftcl.runs.facts import describe_versions

_FREE = (
    "output",
    "checkpoint_every",
    "stop_after",
    "floor",
    "tuned",
    "loggers",
)  # keys that may change when a run goes on
HOW = ("num_threads", "num_workers")  # keys that do not matter once it is finished
# places of files, which may have moved; their contents are compared
_PLACES = {
    "backbone": ("checkpoint", "checkpoint_text", "checkpoint_projections"),
    "benchmark": ("root", "manifest", "class_names"),
}
_KINDS = (
    ("settings", "other settings", "set them back"),
    ("versions", "other versions", "install those versions again"),
    ("weights", "other weights of the backbone", "use those weights"),
    ("stream", "other data", "give it the same images and classes"),
)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What makes a run the one that it is; ``None`` where nobody knows it yet.

    Args:
        settings: What :func:`settings_of` returns.
        versions: What :func:`versions_of` returns.
        weights: Hash of the backbone's weights.
        stream: What there is to learn, as plain values.
    """

    settings: Mapping[str, Any]
    versions: Mapping[str, str] | None = None
    weights: str | None = None
    stream: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Return what is known before anything is built."""
        return cls(settings=settings_of(plan.settings), versions=versions_of(plan.entries))

    def saved(self) -> dict[str, Any]:
        """Return it as a checkpoint keeps it."""
        return asdict(self)

    def check(self, saved: Any, output: Path) -> None:
        """Refuse to go on with a run that is not the same, as far as this is known.

        Args:
            saved: What :meth:`saved` returned when that run was taken down.
            output: Its folder.

        Raises:
            CheckpointError: With what differs.
        """
        for kind, said, way_out in _KINDS:
            here = getattr(self, kind)
            if here is None:
                continue
            now = comparable(here)
            was = saved.get(kind) if isinstance(saved, dict) else None
            if kind == "settings" and isinstance(was, dict):
                was = as_now(was)
            if now != was:
                raise CheckpointError(
                    f"the run in {output} was begun with {said}: {differences(was, now)}; "
                    f"{way_out}, or start anew (--overwrite; in Python, overwrite=True)"
                )


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resolved settings without those that may change when a run goes on.

    An option that is ``None`` is left out: a version that had no such option recorded none.

    Example:
        >>> settings_of({"seed": 1, "output": "a", "benchmark": {"root": "/data", "n": None}})
        {'seed': 1, 'benchmark': {'root': 'a place'}}
    """
    told = as_now(comparable(config))
    kept = {key: _told(value) for key, value in told.items() if key not in _FREE}
    for kind, places in _PLACES.items():
        if isinstance(options := kept.get(kind), dict):
            kept[kind] = {k: "a place" if k in places else v for k, v in options.items()}
    return {key: value for key, value in kept.items() if value is not None}


def versions_of(entries: Iterable[Entry]) -> dict[str, str]:
    """Return the versions of what a result depends on: libraries, and components but loggers."""
    needed = [each for each in entries if each.kind != "logger"]
    libraries = {k: v for k, v in describe_versions(needed).items() if k != "python"}
    return libraries | {each.provider.name: each.provider.version for each in needed}


def _told(value: Any) -> Any:
    """Return what is set to something in nested settings."""
    if isinstance(value, dict):
        return {key: _told(inner) for key, inner in value.items() if inner is not None}
    return [_told(inner) for inner in value] if isinstance(value, list) else value
