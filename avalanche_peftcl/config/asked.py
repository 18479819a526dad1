"""A configuration as Python has it: a file, YAML as text, plain values, or one that is checked."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from avalanche_peftcl.config.run_config import RunConfig, load_config
from avalanche_peftcl.config.yaml_text import parse_yaml
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.wording import show

Asked = RunConfig | Mapping[str, Any] | str | Path
_WHERE = "the configuration"


def config_from(asked: Asked, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration of one run.

    Args:
        asked: A :class:`RunConfig`, a mapping with its keys, YAML as text, or the path of a YAML
            file. Text with a line end, a brace at its start or a colon and a space is YAML.
        overrides: Settings that replace it, each ``"key=value"`` as on the command line.

    Raises:
        ConfigError: As :func:`load_config`; also if it is none of these.

    Example:
        >>> parts = {"backbone": "vit_glyph", "benchmark": "digits", "strategy": {"name": "pegp"}}
        >>> config_from({"output": "runs/a"} | parts, ["strategy.train_epochs=2"]).strategy
        ComponentConfig(name='pegp', train_epochs=2)
        >>> config_from("runs/none.yaml")
        Traceback (most recent call last):
        avalanche_peftcl.errors.ConfigError: there is no file runs/none.yaml in the ...
    """
    if isinstance(asked, RunConfig):
        config = asked
        if overrides:
            settings = asked.model_dump(mode="json", exclude_unset=True)
            config = load_config(_WHERE, overrides, settings=settings)
    elif isinstance(asked, Mapping):
        config = load_config(_WHERE, overrides, settings=deepcopy(dict(asked)))
    elif isinstance(asked, str) and _is_yaml(asked):
        config = load_config(_WHERE, overrides, settings=parse_yaml(asked, _WHERE))
    elif isinstance(asked, str | Path):
        config = load_config(asked, overrides)
    else:
        raise ConfigError(
            "a run is a RunConfig, a mapping, YAML as text or the path of a YAML file; got "
            f"{show(asked)}"
        )
    return config


def _is_yaml(text: str) -> bool:
    return "\n" in text or ": " in text or text.lstrip().startswith("{")
