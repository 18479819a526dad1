"""What a configuration says of how its options were searched for."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from avalanche_peftcl.registry.ranges import CountOrNone

FIRST_EXPERIENCE = "first_experience"
OTHER = "other"
Score = Annotated[float, Field(ge=0, le=1)]


class Tuned(BaseModel):
    """How options were searched for; written by ``peftcl tune``, kept in the record of each run.

    Args:
        phase: ``"first_experience"``, or ``"other"`` for another stream.
        benchmark: The stream that was searched on, with its options.
        tested_on: Images that scores are of.
        trials: How many were asked for, the first with the values that were there.
        failed: How many of them ended without a score.
        seed: Of the runs, and of the search.
        searched: By option what was searched.
        values: By option what was chosen.
        score: Last accuracy of the best trial, as a fraction.
        score_before: That of the values that were there; ``None`` if that trial failed.

    Example:
        >>> on = {"name": "digits", "validation_per_class": 20}
        >>> tuned = Tuned(
        ...     phase="first_experience", benchmark=on, tested_on="held-out training images",
        ...     trials=8, seed=0, searched={"strategy.lr": "0.01 to 1, log"},
        ...     values={"strategy.lr": 0.2}, score=0.9,
        ... )
        >>> tuned.said()
        '8 trials of strategy.lr on held-out training images of the first experience of digits'
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    phase: str
    benchmark: dict[str, Any]
    tested_on: str
    trials: CountOrNone
    failed: CountOrNone = 0
    seed: CountOrNone
    searched: dict[str, str]
    values: dict[str, Any]
    score: Score
    score_before: Score | None = None

    def said(self) -> str:
        """Return how many trials there were of what, on which images, in words."""
        of = ", ".join(self.searched)
        first = "the first experience of " if self.phase == FIRST_EXPERIENCE else ""
        return f"{self.trials} trials of {of} on {self.tested_on} of {first}{self.stream}"

    @property
    def stream(self) -> str:
        """Name of the benchmark, and its folder if it has one."""
        name, root = str(self.benchmark.get("name")), self.benchmark.get("root")
        return name if root is None else f"{name} {root}"
