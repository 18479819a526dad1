"""A builder's signature as the schema of its options."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, create_model

from avalanche_peftcl.errors import ConfigError, PEFTCLError
from avalanche_peftcl.registry.annotations import resolved, say_type, takes_path
from avalanche_peftcl.registry.described import descriptions
from avalanche_peftcl.registry.isolation import ForeignError, isolated
from avalanche_peftcl.registry.wording import clip, did_you_mean, say, show

_MOST = 20  # problems that one message lists
_LONGEST = 4096  # letters of a text; no path may be longer either


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a builder, in words and as a schema of JSON.

    Args:
        name: Its name; ``"**name"`` stands for further ones.
        type: Its type with its range, as one says it.
        default: As Python writes it; empty if it is required.
        required: Whether it has none.
        text: What the docstring says of it; may be empty.
        schema: What JSON may stand for it; empty where anything may.
    """

    name: str
    type: str
    default: str
    required: bool
    text: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Schema:
    """What a builder takes; made by :meth:`of`.

    Args:
        builder: The callable.
        title: How messages name it.
        options: The arguments that a configuration may set, with their resolved annotations.
        given: The arguments that the run hands in, of those that the builder names.
        reserved: All names that a run may hand in.
        further: Name of the ``**`` argument, if it accepts further options.
        wanted: What a message says of what should have been built.

    Example:
        >>> from typing import Annotated
        >>> def build(*, backbone, r: Annotated[int, Field(ge=1)] = 4): ...
        >>> Schema.of(build, given=frozenset({"backbone"}), title="module 'x'").describe()
        [('r', 'int (>= 1)', '4')]
    """

    builder: Callable[..., Any]
    title: str
    options: Mapping[str, inspect.Parameter]
    given: Mapping[str, inspect.Parameter]
    reserved: frozenset[str]
    further: str | None
    wanted: str = ""

    @classmethod
    def of(
        cls, builder: Callable[..., Any], *, given: frozenset[str], title: str, wanted: str = ""
    ) -> "Schema":
        """Read the signature of ``builder``.

        Raises:
            ConfigError: If it has none, or an annotation cannot be resolved.
        """
        try:
            with isolated():
                parameters = inspect.signature(builder).parameters.values()
                named = {
                    p.name: p
                    for p in parameters
                    if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
                }
                options = {k: p for k, p in named.items() if k not in given}
                options = resolved(builder, options)
        except ForeignError as caught:
            raise ConfigError(
                f"the signature of {title} cannot be read: {say(caught.error)}"
            ) from caught.error
        return cls(
            builder=builder,
            title=title,
            options=options,
            given={k: p for k, p in named.items() if k in given},
            reserved=given,
            further=next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None),
            wanted=wanted,
        )

    def describe(self) -> list[tuple[str, str, str]]:
        """Return name, type and default of every option; the default is empty if required."""
        rows = [
            (name, say_type(p.annotation), "" if p.default is p.empty else show(p.default))
            for name, p in self.options.items()
        ]
        return rows + ([(f"**{self.further}", "further options", "")] if self.further else [])

    def told(self) -> list[Option]:
        """Return every option with what is known of it."""
        texts = descriptions(self.builder)
        told = [
            Option(
                name=name,
                type=kind,
                default=default,
                required=name in self.options and not default,
                text=texts.get(name, ""),
                schema={} if name not in self.options else _json_schema(self.options[name]),
            )
            for name, kind, default in self.describe()
        ]
        return told

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``values`` converted to the annotations.

        Raises:
            ConfigError: With one line for every problem, and the options there are.
        """
        checked, problems = self._convert(values)
        unknown = [
            name
            for name in values
            if name in self.reserved or (name not in self.options and not self.further)
        ]
        total = len(unknown) + len(problems)
        if not total:
            return checked
        problems = [self._unknown(name) for name in unknown[:_MOST]] + problems
        problems = [clip(problem, 1000) for problem in problems[:_MOST]]
        problems += [f"and {total - _MOST} more"] if total > _MOST else []
        rows = [
            f"  {name}: {kind}" + (f" = {default}" if default else "")
            for name, kind, default in self.describe()
        ]
        there = ["the options there are:", *rows] if rows else ["it has no options"]
        raise ConfigError("\n".join([f"{self.title}:", *(f"  {p}" for p in problems), *there]))

    def handed_in(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of ``given`` that the builder names.

        Raises:
            ConfigError: If the builder needs one that is not there.
        """
        missing = [k for k, p in self.given.items() if p.default is p.empty and k not in given]
        if missing:
            raise ConfigError(
                f"{self.title} needs {', '.join(missing)}, which the run does not give"
            )
        return {k: given[k] for k in self.given if k in given}

    def build(self, options: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        """Call the builder.

        Args:
            options: Values as :meth:`check` returns them.
            given: What the run hands in; passed if the builder names it.

        Raises:
            ConfigError: The builder needs what is not there, raises or returns ``None``.
            PEFTCLError: Whatever else of this kind the builder raises, as it is.
        """
        arguments = dict(options) | self.handed_in(given)
        try:
            with isolated():
                built = self.builder(**arguments)
        except ForeignError as caught:
            if isinstance(caught.error, PEFTCLError):
                raise caught.error from caught.error.__cause__
            raise ConfigError(
                f"{self.title} cannot be built: {say(caught.error)}"
            ) from caught.error
        if built is None:
            raise ConfigError(
                f"{self.title} cannot be built: its builder returned None{self.wanted}"
            )
        return built

    def _convert(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        fields: dict[str, Any] = {}
        for index, (name, p) in enumerate(self.options.items()):
            # private names and aliases: an option may be called like an attribute of BaseModel
            default = ... if p.default is p.empty else None  # the builder has its own
            annotation = Any if p.annotation is p.empty else p.annotation
            fields[f"option_{index}"] = (annotation, Field(default, alias=name))
        config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        try:
            with isolated():
                model = create_model("Options", __config__=config, **fields)
                checked = model.model_validate(dict(values))
        except ForeignError as caught:
            error = caught.error
            if isinstance(error, ValidationError):
                return {}, _plain(error)
            raise ConfigError(
                f"the signature of {self.title} cannot be read: {say(error)}"
            ) from error
        long = {
            name: f"option {name!r} holds a text of more than {_LONGEST} letters: {show(value)}"
            for name, value in values.items()
            if _holds_long_text(value)
        }
        converted, homeless = dict(values), []
        for index, name in enumerate(self.options):
            if name in values:
                converted[name] = getattr(checked, f"option_{index}")
                if not _holds_long_text(values[name]) and takes_path(self.options[name].annotation):
                    try:
                        converted[name] = _expanded(converted[name])
                    except RuntimeError as failed:
                        homeless.append(f"option {name!r}: {failed}, got {show(values[name])}")
        turned = [
            name
            for name, value in values.items()
            if _scalar(value) and _scalar(converted[name]) not in (None, _scalar(value))
        ]
        return converted, list(long.values()) + homeless + [
            f"option {name!r} should be {say_type(self.options[name].annotation)}, "
            f"got {show(values[name])}"
            for name in turned
        ]

    def _unknown(self, name: str) -> str:
        if name in self.reserved:
            return f"{name!r} is handed in by the run and is not an option"
        return f"unknown option {show(name)}{did_you_mean(name, self.options)}"


def _json_schema(option: inspect.Parameter) -> dict[str, Any]:
    """Return what JSON may stand for an option, with its default where JSON has it."""
    if option.annotation is option.empty:
        found: dict[str, Any] = {}
    else:
        try:
            with isolated(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a type that pydantic cannot say
                config = ConfigDict(arbitrary_types_allowed=True)
                model = create_model("Option", __config__=config, value=(option.annotation, ...))
                whole = model.model_json_schema()
                found = whole["properties"]["value"] | {k: whole[k] for k in whole if k == "$defs"}
        except ForeignError:  # a type that JSON does not have
            found = {}
        found.pop("title", None)
    if option.default is not option.empty and _in_json(option.default):
        found["default"] = option.default
    return found


def _in_json(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_in_json, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and _in_json(v) for k, v in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _holds_long_text(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_long_text, value))
    if isinstance(value, dict):
        return any(map(_holds_long_text, [*value, *value.values()]))
    return isinstance(value, str) and len(value) > _LONGEST


def _expanded(value: Any) -> Any:
    """Return paths, alone, in a list or in a map, with the home folder for a leading ``~``."""
    if isinstance(value, dict):  # beside maps of paths there may be maps of texts
        return {k: _expanded(v) if isinstance(v, Path) else v for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_expanded, value))
    if isinstance(value, str | Path) and str(value).startswith("~"):
        return type(value)(Path(value).expanduser())
    return value


def _scalar(value: Any) -> str | None:
    """Return the kind of a single value; pydantic turns one kind into another where we must not."""
    kinds = {bool: "truth", int: "number", float: "number", str: "text"}
    return kinds.get(type(value))


def _plain(error: ValidationError) -> list[str]:
    """Return one line for each option that pydantic refused."""
    lines: dict[str, list[str]] = {}
    given: dict[str, Any] = {}
    for problem in error.errors(include_url=False):
        option = str(problem["loc"][0])
        index = "".join(f"[{i}]" for i in problem["loc"][1:] if isinstance(i, int))
        if problem["type"] == "missing" and len(problem["loc"]) == 1:
            lines[option] = [f"option {option!r} is required"]
            continue
        given[option] = problem["input"]
        text = problem["msg"].removeprefix("Input ").removeprefix("Value error, ")
        text = text.replace("Field required", "is required")
        lines.setdefault(option, []).append(f"{index} {text}".strip())
    return [
        f"option {option!r} {' or '.join(dict.fromkeys(texts))}, got {show(given[option])}"
        if option in given
        else texts[0]
        for option, texts in lines.items()
    ]
