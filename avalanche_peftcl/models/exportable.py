"""How a network and its parts are built again: a builder by import path, and its options."""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import nn

from avalanche_peftcl.errors import ConfigError

_SAYS_NOT = (
    "does not say how it is built again; decorate its class or builder with "
    "@avalanche_peftcl.models.exportable"
)
# a scheme, a separator of folders, a home folder, an ending of files that hold weights
_PLACE = re.compile(
    r"^[a-z][a-z0-9+._-]*:|[/\\\\]|^~|\.(pth?|bin|ckpt|pkl|npz|npy|safetensors)$", re.IGNORECASE
)
_Build = TypeVar("_Build", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """A builder and the options it was called with, without the backbone.

    Args:
        build: Import path, ``"package.module:attribute"``.
        options: Keyword arguments; a network among them stands as its own ``BuildSpec``.
    """

    build: str
    options: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return what a file holds: ``{"build": ..., "options": {...}}``, nested likewise.

        Raises:
            ConfigError: If an option is nothing that a file can hold.
        """
        options = {name: self._plain(name, value) for name, value in self.options.items()}
        return {"build": self.build, "options": options}

    def _plain(self, name: str, value: Any) -> Any:
        if isinstance(value, BuildSpec):
            return value.to_json()
        if isinstance(value, tuple | list):
            return [self._plain(name, each) for each in value]
        if isinstance(value, Mapping):
            return {str(key): self._plain(name, each) for key, each in value.items()}
        if isinstance(value, float) and math.isfinite(value):
            return value
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, type):
            raise ConfigError(
                f"{self.build} was given as {name} a {value.__name__} that {_SAYS_NOT}"
            )
        raise ConfigError(
            f"{self.build} was given as {name} a {type(value).__name__}, which no file can hold"
        )


@runtime_checkable
class Exportable(Protocol):
    """What :func:`exportable` makes of whatever a builder returns.

    Attributes:
        export_spec: How it is built again.
    """

    export_spec: BuildSpec


class OnlyLearns(nn.Module):
    """A module that no prediction of an exported network needs: its file leaves it out."""


def exportable(build: _Build) -> _Build:
    """Let what ``build`` makes remember how it is built again, so that a run can be exported.

    Args:
        build: A function or class at the top of a module of an installed plugin package. If it
            takes a ``backbone``, that is the frozen network; its other arguments are plain values,
            or networks that are exportable themselves, or functions that make one
            (:data:`.HeadBuilder`), which the built network keeps as its child of the argument's
            name and takes instead of the function when it is built again. What it makes has the
            attribute ``export_spec``, a :class:`BuildSpec`. A network that is to be exported as a
            whole takes a ``backbone``, returns logits by class id, ``(B, 3, H, W)`` and task labels
            ``(B,)`` or ``None`` to ``(B, C)``, and loads its state dict into a network fresh from
            the builder, grown heads included.

    Returns:
        ``build``, which does what it did.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> from avalanche_peftcl.models.modules.adapter import build_adapters
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> build_adapters(backbone=backbone, r=4).export_spec.options["r"]
        4
    """
    path = f"{build.__module__}:{build.__qualname__}"
    signature = inspect.signature(build)

    def remember(built: Any, args: Any, kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        options = {name: value for name, value in bound.arguments.items() if name != "backbone"}
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                options |= options.pop(parameter.name)
            elif parameter.kind is parameter.VAR_POSITIONAL and not options[parameter.name]:
                del options[parameter.name]  # nn.Module's own, where a class has no __init__
        parts = dict(built.named_children())
        built.export_spec = BuildSpec(
            path,
            {
                name: _spec_or_value(parts.get(name, value) if callable(value) else value)
                for name, value in options.items()
            },
        )

    if isinstance(build, type):
        init = build.__init__  # type: ignore[misc]  # of exactly this class, wrapped below

        @functools.wraps(init)
        def remembering_init(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            if type(self) is build:  # a subclass is built otherwise and says so itself
                remember(self, args, kwargs)

        build.__init__ = remembering_init  # type: ignore[misc]  # as said
        build.is_exportable = True  # type: ignore[attr-defined]  # read by is_exportable()
        return build

    @functools.wraps(build)
    def remembering(*args: Any, **kwargs: Any) -> Any:
        built = build(*args, **kwargs)
        remember(built, args, kwargs)
        return built

    remembering.is_exportable = True  # type: ignore[attr-defined]  # read by is_exportable()
    return remembering  # type: ignore[return-value]  # wraps keeps the signature


def is_exportable(target: Any) -> bool:
    """Return whether ``target`` was decorated with :func:`exportable`, itself and no parent."""
    own = vars(target) if isinstance(target, type | FunctionType) else {}
    return own.get("is_exportable") is True


def takes_backbone(build: Callable[..., Any]) -> bool:
    """Return whether ``build`` is handed the frozen network; what is no whole network need not."""
    return "backbone" in inspect.signature(build).parameters


def export_spec(model: nn.Module) -> BuildSpec:
    """Return how ``model`` is built again.

    Raises:
        ConfigError: If it does not say, or with options that no file can hold.

    Example:
        >>> export_spec(nn.Linear(1, 1))
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: a Linear does not say how it is built again; ...
    """
    if not isinstance(model, Exportable):
        raise ConfigError(f"a {type(model).__name__} {_SAYS_NOT}")
    model.export_spec.to_json()
    return model.export_spec


def _spec_or_value(value: Any) -> Any:
    """Keep the way a network was built, not the network itself."""
    if not isinstance(value, nn.Module):
        return value
    return value.export_spec if isinstance(value, Exportable) else type(value)


def places(options: Mapping[str, Any]) -> list[str]:
    """Return the names of options that say where weights come from, which no file may choose.

    They are those named ``pretrained...`` or ``checkpoint...`` that are set, and text that is an
    address, a path, the name of a file of weights or of a repository (``"owner/name"``).

    Args:
        options: Options of a backbone.

    Example:
        >>> places({"pretrained": True, "checkpoint": None, "depth": 2, "url": "hf-hub:a/b"})
        ['pretrained', 'url']
        >>> places({"pretrained": False, "model_name": "vit_tiny_patch16_224.augreg_in21k"})
        []
    """
    return [
        name
        for name, value in options.items()
        if (name.startswith(("pretrained", "checkpoint")) and value) or is_place(value)
    ]


def is_place(value: Any) -> bool:
    """Return whether a text, or one in a list or dictionary, names a file, address or repository.

    Example:
        >>> is_place("weights.pt"), is_place({"a": ["~/b"]}), is_place("attn.qkv")
        (True, True, False)
    """
    if isinstance(value, Mapping):
        return any(is_place(each) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple):
        return any(map(is_place, value))
    return isinstance(value, str) and _PLACE.search(value) is not None
