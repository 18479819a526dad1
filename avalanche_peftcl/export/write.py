"""What a run keeps of its network, and a file of it to take away."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import save
from torch import Tensor, nn

from avalanche_peftcl.config import ComponentConfig
from avalanche_peftcl.errors import ConfigError, PEFTCLError, RecordError
from avalanche_peftcl.export.backbone import build_backbone, needs_weights
from avalanche_peftcl.export.file import (
    BACKBONE_PREFIX,
    FORMAT,
    INFO_KEY,
    MODEL_FILE,
    MODEL_PREFIX,
    ExportInfo,
    names_a_place,
    read_export,
)
from avalanche_peftcl.export.load import ExportedModel, assemble, builders, load, trained_keys
from avalanche_peftcl.files import check_writable, write_file
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.models.backbones.weights import weights_sha256
from avalanche_peftcl.models.exportable import export_spec, places, takes_backbone
from avalanche_peftcl.registry.offers import ModelOffers, StrategyOffers
from avalanche_peftcl.registry.wording import join
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.schema import RECORD, Record


def not_exported(model: nn.Module) -> str | None:
    """Return why ``model`` cannot be written to a file, ``None`` if it can."""
    try:
        spec = export_spec(model).to_json()
        offered = dict(builders(spec))
        if not takes_backbone(offered[spec["build"]]):
            return f"{spec['build']} takes no backbone, around which a network is built again"
    except PEFTCLError as error:
        return str(error)
    if names_a_place(spec):
        return "an option of it names a file, an address or a repository, which no export may"
    odd = [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]
    return f"its state dict holds what is no tensor: {join(odd)}" if odd else None


def write_model(folder: Path, record: Record, *, strategy: Any, backbone: nn.Module) -> None:
    """Write the trained part of a strategy's network into a run's folder, in one step.

    Nothing is written if the record says why not, see :func:`not_exported`. Should the backbone
    have changed, its weights are written too.

    Args:
        folder: The run's folder.
        record: The run's record.
        strategy: Its ``model`` is written.
        backbone: The frozen network, part of the model.

    Raises:
        ConfigError: If the file cannot be written.
    """
    if record.not_exported is not None:
        return
    model, config = strategy.model, record.config
    names = {
        c: name
        for experience in record.protocol.experiences
        for c, name in zip(experience.classes, experience.class_names, strict=True)
    }
    entry = next(c for c in record.components if c.kind == "backbone")
    options = config.backbone.options
    left_out = list(places(options))
    digest = weights_sha256(backbone)
    changed = digest != record.weights_sha256
    kept = {k: v for k, v in options.items() if k not in left_out}
    info = ExportInfo(
        format=FORMAT,
        finished=record.experiences.finished,
        total=record.experiences.total,
        backbone=ComponentConfig.model_validate(kept | {"name": f"{entry.provider}/{entry.name}"}),
        left_out=left_out,
        backbone_included=changed,
        weights_sha256=digest,
        seed=record.seed,
        model=export_spec(model).to_json(),
        class_names=[names.get(c, str(c)) for c in range(max(names, default=-1) + 1)],
        task_labels=_task_labels(model) if record.protocol.task_label_at_test else [],
        input_config=TypeAdapter(InputConfig).validate_python(record.protocol.normalisation),
        mixed_precision=StrategyOffers.of(strategy).mixed_precision or "no",
        strategy=config.strategy.model_dump(),
        module=None if config.module is None else config.module.model_dump(),
        versions=record.versions,
    )
    keys, state = trained_keys(model, backbone), model.state_dict()
    content = _encode(info, {k: state[k] for k in keys}, backbone.state_dict() if changed else {})
    write_file(folder / MODEL_FILE, content)


def export_run(
    folder: Path,
    path: Path,
    *,
    with_backbone: bool = False,
    overwrite: bool = False,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    backbone: nn.Module | None = None,
) -> ExportInfo:
    """Check the network of a run and write it to a file of its own.

    Args:
        folder: The run's folder.
        path: The new file.
        with_backbone: Whether the backbone's weights go into it.
        overwrite: Whether a file that is there is replaced.
        checkpoint: The backbone's weights, if they have to go into the file and are not bundled.
        pretrained: Whether they may be downloaded, instead.
        backbone: The frozen network itself, instead: one whose weights come from several files.

    Raises:
        ConfigError: The folder holds no network, or the file cannot be written.
        CheckpointError: As :func:`load`.
    """
    check_writable(path)
    refuse_present(path, overwrite)
    check_holds_network(folder)
    source = folder / MODEL_FILE
    info, trained, frozen = read_export(source)
    allowed = {"checkpoint": checkpoint, "pretrained": pretrained}
    given = with_backbone or checkpoint or pretrained or backbone is not None
    if given or not needs_weights(info):  # refuses what cannot be loaded
        load(source, backbone=backbone, checkpoint=checkpoint, pretrained=pretrained)
    else:
        bare_network(folder)
    if with_backbone and not frozen:
        info = info.model_copy(update={"backbone_included": True})
        frozen = (backbone or build_backbone(source, info, {}, allowed)).state_dict()
    write_file(path, _encode(info, trained, frozen))
    return info


def bare_network(folder: Path) -> ExportedModel:
    """Return the network of a run; weights of a backbone that come from elsewhere are random.

    Raises:
        CheckpointError: As :func:`load`.
    """
    source = folder / MODEL_FILE
    info, trained, frozen = read_export(source)
    with torch.random.fork_rng(devices=[]):
        return assemble(source, info, trained, build_backbone(source, info, frozen))


def refuse_present(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file that nobody gave up.

    Raises:
        ConfigError: If it is there, and ``overwrite`` is false.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} is there already; name another file or add --overwrite")


def check_holds_network(folder: Path) -> None:
    """Refuse a folder without a trained network.

    Raises:
        ConfigError: With the reason.
    """
    if not (folder / MODEL_FILE).is_file():
        raise ConfigError(_why_missing(folder))


def _encode(info: ExportInfo, trained: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> bytes:
    named = {MODEL_PREFIX + k: v for k, v in trained.items()} | {
        BACKBONE_PREFIX + k: v for k, v in frozen.items()
    }
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in named.items()}
    told = info.model_dump(exclude={"input_config"}) | {"input_config": asdict(info.input_config)}
    # one key: safetensors writes several in no fixed order
    return save(tensors, {INFO_KEY: json.dumps(told, sort_keys=True)})


def _task_labels(model: Any) -> list[int]:
    classes = ModelOffers.of(model).classes
    return [] if classes is None else list(classes.task_labels)


def _why_missing(folder: Path) -> str:
    """Say why a run's folder holds no network."""
    if not (folder / RECORD).is_file():
        return f"{folder} holds no run record; give the folder of a run"
    try:
        record = read_record(folder)
    except RecordError as error:
        return f"the run record in {folder} cannot be read: {error}"
    if reason := record.not_exported:
        method = record.config.strategy.name
        return f"the network of strategy {method!r} in {folder} was not kept: {reason}"
    if not record.experiences.finished:
        return f"the run in {folder} has finished no experience; run it again"
    return f"the run in {folder} is of a version that kept no network; run it again"
