"""The JSON schema of a run's YAML, for editors: from the same signatures that check the options."""

import json
import re
from collections.abc import Mapping
from typing import Any

from avalanche_peftcl.config.run_config import ComponentConfig, RunConfig
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry import Registry
from avalanche_peftcl.registry.described import descriptions
from avalanche_peftcl.registry.kinds import KINDS
from avalanche_peftcl.registry.packages import Entry
from avalanche_peftcl.registry.registry import schema_of


def json_schema(registry: Registry) -> dict[str, Any]:
    """Return the schema of a configuration with the components on offer.

    A component whose builder cannot be read may have any options. Places and names of other
    components are not looked up: the command checks more than an editor.

    Args:
        registry: Components to choose from.

    Example:
        >>> from avalanche_peftcl.registry import discover
        >>> schema = json_schema(discover())
        >>> "ntk_cl" in schema["$defs"]["strategy"]["anyOf"][0]["enum"]
        True
    """
    whole = RunConfig.model_json_schema()
    texts = descriptions(RunConfig)
    properties = {
        key: _described(value, texts.get(key, "")) for key, value in whole["properties"].items()
    }
    properties["seeds"] = {
        "description": texts["seeds"],
        "anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}],
    }
    definitions = {k: v for k, v in whole["$defs"].items() if k != ComponentConfig.__name__}
    for name, kind in KINDS.items():
        one = {"$ref": f"#/$defs/{name}"}
        many = kind.key in ("plugins", "metrics", "loggers")
        absent = [] if kind.key in whole["required"] else [{"type": "null"}]
        shape = {"type": "array", "items": one} if many else {"anyOf": [one, *absent]}
        properties[kind.key] = _described(shape, texts.get(kind.key, ""))
        definitions[name] = _component(registry, name, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a run of avalanche_peftcl",
        "type": "object",
        "properties": properties,
        "required": whole["required"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _component(registry: Registry, kind: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return what may stand for a component: a name alone, or a mapping of that name's options."""
    entries = registry.entries(kind)
    names = [
        list(dict.fromkeys([name, entry.spelling]))
        for name, entry in zip(registry.names(kind), entries, strict=True)
    ]
    mappings = [
        _mapping(spellings, entry, definitions)
        for spellings, entry in zip(names, entries, strict=True)
    ]
    return {"anyOf": [{"enum": [name for each in names for name in each]}, *mappings]}


def _mapping(names: list[str], entry: Entry, definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "name": {"enum": names, "description": f"{entry.component.source} ({entry.provider})"}
    }
    shape: dict[str, Any] = {"type": "object", "properties": properties, "required": ["name"]}
    try:
        schema = schema_of(entry)
        told = schema.told()
    except ConfigError:
        return shape
    for option in told:
        if option.name.startswith("**"):
            continue
        found = dict(option.schema)
        for inner, value in found.pop("$defs", {}).items():
            definitions[_inner(entry, inner)] = _moved(value, entry)
        properties[option.name] = _described(_moved(found, entry), option.text)
    shape["required"] = ["name", *(option.name for option in told if option.required)]
    shape["additionalProperties"] = schema.further is not None
    return shape


def _inner(entry: Entry, name: str) -> str:
    return re.sub(r"\W", "_", f"{entry.kind}_{entry.spelling}_{name}")


def _moved(value: Any, entry: Entry) -> Any:
    """Return a schema whose references lead to where its definitions are now."""
    text = json.dumps(value)
    moved = re.sub(
        r'"#/\$defs/([^"]+)"', lambda found: f'"#/$defs/{_inner(entry, found[1])}"', text
    )
    return json.loads(moved)


def _described(value: Mapping[str, Any], text: str) -> dict[str, Any]:
    plain = {k: v for k, v in value.items() if k != "title"}
    return plain | ({"description": text} if text else {})
