"""What a strategy says that it costs: passes through the backbone, and floats that it keeps."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.registry.wording import join, show

SYMBOLS: Mapping[str, str] = {
    "T": "experiences so far",
    "C1": "classes of the first experience",
    "D": "width of a feature",
    "L": "blocks",
    "M": "random features",
    "P": "floats of the module that trains",
    "r": "width of a bottleneck, or a rank",
}
"""What stands in formulas, and what it is."""

FORMULAS = ("step", "test", "per_class", "per_experience", "once")
_SIGNS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a strategy costs with the defaults of its builder, as formulas in :data:`SYMBOLS`.

    Floats are those kept beside the backbone; a number in float64 is one. Single numbers, such as
    a factor, are left out.

    Args:
        step: Passes through the backbone of an image in a step of training.
        test: Passes of a test image that comes for the first time.
        per_class: Floats kept of each class.
        per_experience: Floats kept of each experience.
        once: Floats kept whatever the stream is.
        at_most: Which of these formulas are the most, as data and options have it.
        needs_length: Whether the number of experiences has to be known in advance.

    Raises:
        ConfigError: If a formula is none, or has a symbol that is not known.

    Example:
        >>> costs = Costs(test="T", per_class="D + D^2", per_experience="2*L*D*r")
        >>> costs.stored(T=3, D=4, L=2, r=1, classes=10)
        248.0
    """

    step: str = "1"
    test: str = "1"
    per_class: str = "0"
    per_experience: str = "0"
    once: str = "0"
    at_most: tuple[str, ...] = ()
    needs_length: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.needs_length, bool):
            raise ConfigError(f"costs: needs_length={show(self.needs_length)} is not true or false")
        for name in FORMULAS:
            formula = getattr(self, name)
            if not isinstance(formula, str):
                raise ConfigError(f"costs: {name}={show(formula)} is no text, such as 'D + D^2'")
            value(formula, **dict.fromkeys(SYMBOLS, 1.0))
        if not isinstance(self.at_most, tuple) or any(n not in FORMULAS for n in self.at_most):
            raise ConfigError(
                f"costs: at_most={show(self.at_most)} is not a tuple of some of "
                f"{join(map(repr, FORMULAS))}"
            )

    def stored(self, *, classes: int, **symbols: float) -> float:
        """Return how many floats are kept.

        Args:
            classes: Classes so far.
            symbols: Values of what stands in the formulas, ``T`` among them.
        """
        each = classes * value(self.per_class, **symbols)
        grown = symbols["T"] * value(self.per_experience, **symbols)
        return each + grown + value(self.once, **symbols)


def value(formula: str, **symbols: float) -> float:
    """Return what a formula comes to.

    Args:
        formula: Numbers and symbols with ``+ - * / ^`` and brackets.
        symbols: Their values.

    Raises:
        ConfigError: If it is no formula, or has a symbol that is not among ``symbols``.

    Example:
        >>> value("2*(D + 1)^2", D=3)
        32.0
    """
    try:
        tree = ast.parse(formula.replace("^", "**"), mode="eval").body
    except SyntaxError as error:
        raise ConfigError(f"costs: {formula!r} is no formula, such as 'D + D^2'") from error
    return _value(tree, formula, symbols)


def _value(node: ast.expr, formula: str, symbols: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.Name):
        if node.id not in symbols:
            raise ConfigError(
                f"costs: {formula!r} has {node.id!r}; there are {join(map(repr, symbols))}"
            )
        return float(symbols[node.id])
    if isinstance(node, ast.BinOp) and isinstance(node.op, _SIGNS):
        left, right = (_value(side, formula, symbols) for side in (node.left, node.right))
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        return left / right if isinstance(node.op, ast.Div) else float(left**right)
    raise ConfigError(f"costs: {formula!r} has more than numbers, symbols and + - * / ^")
