"""Ranges of the options."""

from typing import Annotated

from pydantic import Field

from avalanche_peftcl import Searched

Width = Annotated[int, Field(ge=1, le=4096)]  # of a pool, or a number of tokens
Weight = Annotated[float, Field(ge=0, le=1e9)]  # of a term of the loss
LearningRate = Annotated[float, Field(gt=0, le=1e6), Searched(10)]
WeightDecay = Annotated[float, Field(ge=0, le=1e6)]
MinibatchSize = Annotated[int, Field(ge=1, le=2**20)]
Epochs = Annotated[int, Field(ge=1, le=10**6)]
GradNorm = Annotated[float, Field(ge=1e-9, le=1e9)]
InitBound = Annotated[float, Field(ge=1e-8, le=100)]
