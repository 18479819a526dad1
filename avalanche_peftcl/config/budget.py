"""What an experience's training may use, the same for every method."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

_PASSES = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
_SECONDS = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
_FLOATS = Annotated[int, Field(ge=1, le=2**60)]


class BudgetConfig(BaseModel):
    """One or more limits beside the number of epochs; whatever ends first ends the training.

    Training steps of an experience end after the one with which ``passes`` or ``seconds`` are used
    up. What a method does after its last step (settling heads, class means, statistics) still
    happens, is counted and told.

    Args:
        passes: Images through the backbone for each training image of an experience, by all that
            its training does: epochs, second views, statistics, images of a memory.
        seconds: Of an experience's training, without evaluations; no run ends twice alike.
        stored_floats: The most that may be kept beside the backbone after an experience, images of
            a memory not counted; a run that keeps more ends with an error.

    Example:
        >>> BudgetConfig(passes=2).said()
        '2 passes a training image'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    passes: _PASSES | None = None
    seconds: _SECONDS | None = None
    stored_floats: _FLOATS | None = None

    @model_validator(mode="after")
    def _one_at_least(self) -> "BudgetConfig":
        if not self.limits:
            raise ValueError(f"must have one of {', '.join(type(self).model_fields)}, or be null")
        return self

    @property
    def limits(self) -> dict[str, Any]:
        """The limits that are given, by name."""
        return {name: value for name, value in self if value is not None}

    def said(self) -> str:
        """Return it in words."""
        words = {
            "passes": "{:g} passes a training image",
            "seconds": "{:g} s of training an experience",
            "stored_floats": "{:,} floats beside the backbone",
        }
        return ", ".join(words[name].format(value) for name, value in self.limits.items())
