"""Templates of pages and pictures; whatever is put into one is escaped."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from avalanche_peftcl.console import visible


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return a template with values in it.

    Text is shown as it is: it makes no tag, its control characters are seen, see
    :func:`.visible`, and no line ends before a percent sign. What a template marks as ``safe`` or
    the caller as ``Markup`` is left alone.

    Args:
        template: Name of a file in the package's folder ``assets``.
        values: By their names in the template; one that it lacks is an error.
    """
    return _environment().get_template(template).render(values)


def asset(name: str) -> str:
    """Return the text of a file in the package's folder ``assets``."""
    return files("avalanche_peftcl").joinpath(f"assets/{name}").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(asset),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> Any:
    return value if isinstance(value, Markup) else visible(value).replace(" %", "\u00a0%")
