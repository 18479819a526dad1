"""Ranges of the numbers in a configuration: wider than any use, narrow enough for float32."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field


@dataclass(frozen=True, slots=True)
class Searched:
    """Says in an annotation that an option is searched for unless others are named.

    Args:
        factor: From the value that is there divided by this to its product with it, by ratios.

    Example:
        >>> Annotated[float, Field(gt=0), Searched(10)].__metadata__[-1]
        Searched(factor=10)
    """

    factor: float


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(ge=1, le=10**9)]  # of images or experiences
CountOrNone = Annotated[int, Field(ge=0, le=10**9)]  # the same, of which there may be none
Memory = Annotated[int, Field(ge=1, le=10**8)]  # of images that are kept
Width = Annotated[int, Field(ge=1, le=4096)]  # a rank, or a number of tokens
FeatureWidth = Annotated[int, Field(ge=1, le=2**20)]  # of what a head classifies
Draws = Annotated[int, Field(ge=0, le=2**14)]  # of prototypes, in each step
MinibatchSize = Annotated[int, Field(ge=1, le=2**20)]
Epochs = Annotated[int, Field(ge=1, le=10**6)]
EpochsOrNone = Annotated[int, Field(ge=0, le=10**6)]
Steps = Annotated[int, Field(ge=1, le=10**6)]

LearningRate = Annotated[float, Field(gt=0, le=1e6), Searched(10)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
WeightDecay = Annotated[float, Field(ge=0, le=1e6)]
GradNorm = Annotated[float, Field(ge=1e-9, le=1e9)]
Weight = Annotated[float, Field(ge=0, le=1e9), Searched(10)]  # of a term of the loss
Penalty = Annotated[float, Field(ge=0, le=1e9)]  # of a ridge regression, relative to its scale
Offset = Annotated[float, Field(ge=0, le=1e6)]
Scale = Annotated[float, Field(ge=1e-6, le=1e6)]  # of a module's output; with 0 it never trains
InitBound = Annotated[float, Field(ge=1e-8, le=100)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
Margin = Annotated[float, Field(ge=0, le=0.5)]  # of a cosine
Dropout = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
TestShare = Annotated[float, Field(gt=0, lt=1)]
_Area = Annotated[float, Field(ge=1e-4, le=1)]
CropScale = tuple[_Area, _Area]
