"""Ranges and options that several of the methods share."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypedDict

from pydantic import Field

from avalanche_peftcl import Searched
from avalanche_peftcl.training import TrainingOptions

Positive = Annotated[float, Field(gt=0, le=1e6)]
LearningRate = Annotated[float, Field(gt=0, le=1e6), Searched(10)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Share = Annotated[float, Field(ge=0, le=1)]
Margin = Annotated[float, Field(ge=0, le=0.5)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(ge=1, le=4096)]
Samples = Annotated[int, Field(ge=1, le=2**14)]
MinibatchSize = Annotated[int, Field(ge=1, le=2**20)]
Epochs = Annotated[int, Field(ge=1, le=10**6)]
EpochsOrNone = Annotated[int, Field(ge=0, le=10**6)]
Loops = Annotated[int, Field(ge=1, le=1000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


@dataclass(frozen=True, kw_only=True)
class LocalOptions(TrainingOptions):
    """Options of a method whose loss is among the classes of the experience."""

    loss: Literal["local", "seen"] = field(default="local", init=False)
    train_mb_size: MinibatchSize = 48


class Alignment(TypedDict):
    """What an alignment is built with."""

    epochs: int
    samples_per_class: int
    lr: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class AlignmentOptions:
    """Options of the alignment of a head on drawn features.

    Attributes:
        covariance: Of the Gaussians: ``"class"``, one each, or ``"shared"`` by all.
        align_epochs: Epochs of the alignment.
        align_samples: Features that are drawn of each class in an epoch.
        align_lr: Learning rate of the alignment.
        align_seed: Of the draws; no global generator is touched.
    """

    covariance: Literal["class", "shared"] = "class"
    align_epochs: Epochs = 5
    align_samples: Samples = 256
    align_lr: LearningRate = 0.01
    align_seed: Seed = 0

    def alignment(self) -> Alignment:
        """Return those that are arguments of the plugin under other names."""
        return Alignment(
            epochs=self.align_epochs,
            samples_per_class=self.align_samples,
            lr=self.align_lr,
            seed=self.align_seed,
        )
