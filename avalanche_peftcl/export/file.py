"""What a file of a trained network says, before anything is built of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from avalanche_peftcl.config import ComponentConfig
from avalanche_peftcl.errors import CheckpointError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.models.exportable import is_place, places
from avalanche_peftcl.registry.wording import join

FORMAT = 2
MODEL_FILE = "model.safetensors"
INFO_KEY, MODEL_PREFIX, BACKBONE_PREFIX = "avalanche_peftcl", "model.", "backbone."


class ExportInfo(BaseModel):
    """What the file says beside its tensors.

    Args:
        format: Version of the layout.
        finished: Experiences that the network was trained on.
        total: Experiences of the run.
        backbone: Name, ``"package/name"``, and options of the frozen network, without those that
            say where its weights come from.
        left_out: Names of those options, see :func:`~.models.exportable.places`.
        backbone_included: Whether its weights are in the file.
        weights_sha256: Hash of its weights.
        seed: The run's seed, from which a backbone without weights of its own is drawn.
        model: How the network is built around it, see :class:`~.models.BuildSpec`.
        class_names: Name of each class id.
        task_labels: Task labels, of which a prediction needs one; empty if it needs none.
        input_config: What the backbone expects of an image.
        mixed_precision: As in the evaluation of the run.
        strategy: Name and options of the method.
        module: Name and options of the PEFT module, if the run named one.
        versions: Versions of Python and the packages.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: int
    finished: NonNegativeInt
    total: NonNegativeInt
    backbone: ComponentConfig
    left_out: list[str]
    backbone_included: bool
    weights_sha256: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    model: dict[str, Any]
    class_names: list[str]
    task_labels: list[int]
    input_config: InputConfig
    mixed_precision: Literal["no", "bf16", "fp16"]
    strategy: dict[str, Any]
    module: dict[str, Any] | None
    versions: dict[str, str]


def read_export(path: Path) -> tuple[ExportInfo, dict[str, Tensor], dict[str, Tensor]]:
    """Read a file without building or opening anything else.

    Returns:
        What it says, the trained tensors and the backbone's, each by its name in the state dict.

    Raises:
        CheckpointError: The file is missing, unreadable, no export, of another version, or names
            a place where weights come from.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get(INFO_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    try:
        said = json.loads(told or "")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is no exported network: it does not say how it is built"
        ) from error
    version = said.get("format") if isinstance(said, dict) else None
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version!r}, this version of avalanche-peftcl reads {FORMAT}; "
            "export it again with this version, or load it with the one that wrote it"
        )
    try:
        info = ExportInfo.model_validate(said)
    except ValidationError as error:
        where = {".".join(map(str, details["loc"])) for details in error.errors()}
        raise CheckpointError(
            f"{path} is damaged: wrong or missing {join(sorted(where))}"
        ) from error
    if named := [*places(info.backbone.options), *["model"] * names_a_place(info.model)]:
        raise CheckpointError(
            f"{path} names a place where weights come from ({join(named)}), which is never "
            "followed; export the network again with avalanche-peftcl, which leaves it out"
        )
    return info, _part(tensors, MODEL_PREFIX), _part(tensors, BACKBONE_PREFIX)


def names_a_place(spec: Any) -> bool:
    """Return whether an option of a network, its builder's import path aside, is a place."""
    if is_spec(spec):
        return any(map(names_a_place, spec["options"].values()))
    return is_place(spec)


def is_spec(value: Any) -> TypeGuard[Mapping[str, Any]]:
    """Return whether ``value`` says how a network is built, as :class:`~.models.BuildSpec` does."""
    return (
        isinstance(value, Mapping)
        and value.keys() == {"build", "options"}
        and isinstance(value["build"], str)
        and isinstance(value["options"], Mapping)
    )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
