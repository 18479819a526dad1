"""What a run has trained, with a model card, in a folder or on the Hugging Face Hub."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from avalanche_peftcl.console import plain
from avalanche_peftcl.errors import ConfigError, ExportError, RecordError
from avalanche_peftcl.export.file import MODEL_FILE
from avalanche_peftcl.export.write import (
    bare_network,
    check_holds_network,
    export_run,
    refuse_present,
)
from avalanche_peftcl.files import write_file
from avalanche_peftcl.models.modules.injection import TunedBranch
from avalanche_peftcl.models.networks.tuned import PEFTModel
from avalanche_peftcl.registry.wording import say
from avalanche_peftcl.runs.card import model_card
from avalanche_peftcl.runs.identity import settings_of
from avalanche_peftcl.runs.reading import read_record
from avalanche_peftcl.runs.schema import RECORD, SEED_FOLDER, Record

CARD = "README.md"


def write_adapter(folder: Path, target: Path) -> None:
    """Write the module of a run in peft's own format.

    Args:
        folder: The run's folder.
        target: The new folder.

    Raises:
        ConfigError: If the folder holds no network, or its module is none of peft's.
        ExportError: As :meth:`.TunedBranch.save_pretrained`.
    """
    check_holds_network(folder)
    branch = _tuned(folder)
    if branch is None:
        raise ConfigError(
            f"the network in {folder} has no module of peft; peft's format holds 'lora' and "
            "'peft_tuner', of others 'peftcl export' writes a file"
        )
    branch.save_pretrained(target, base_model=read_record(folder).model_name)


def adapter_and_show(
    folder: Path, target: Path, *, alone: bool, overwrite: bool, console: Console
) -> None:
    """Write the module of a run in peft's own format, and say so.

    Args:
        folder: The run's folder.
        target: The new folder.
        alone: Whether nothing else was asked for in the same breath.
        overwrite: Whether files that are there are replaced.
        console: Where to.

    Raises:
        PEFTCLError: As :func:`write_adapter`; also if more was asked for, or the folder is there.
    """
    if not alone:
        raise ConfigError("--peft writes an adapter alone; leave out --onnx and --with-backbone")
    refuse_present(target, overwrite)
    write_adapter(folder, target)
    console.print(plain(f"{target}: the module in peft's own format, no head"), soft_wrap=True)


def write_hub_folder(
    folder: Path,
    target: Path,
    *,
    name: str = "owner/name",
    overlap: str | None = None,
    with_backbone: bool = False,
    allowed: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write what is uploaded: network, adapter in peft's format where it is one, model card.

    Args:
        folder: The run's folder.
        target: An empty folder, or one that is not there.
        name: Where it will be found.
        overlap: As of :func:`.model_card`.
        with_backbone: Whether the backbone's weights go into it.
        allowed: ``checkpoint`` or ``pretrained`` of :func:`.export_run`.

    Returns:
        Names of the files.

    Raises:
        ConfigError: If the folder holds no network, or ``target`` holds something.
        CheckpointError: As :func:`.export_run`.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} holds something already; name another folder")
    check_holds_network(folder)
    record = read_record(folder)
    target.mkdir(parents=True, exist_ok=True)
    export_run(folder, target / MODEL_FILE, with_backbone=with_backbone, **(allowed or {}))
    branch = _tuned(folder)
    if branch is not None:
        try:
            branch.save_pretrained(target, base_model=record.model_name)
        except ExportError:  # PiSSA: peft's format does not hold it, the file beside it does
            branch = None
    card = model_card(
        record,
        _other_seeds(folder, record),
        overlap=overlap,
        name=name,
        with_backbone=with_backbone,
        adapter=branch is not None,
    )
    write_file(target / CARD, card.encode())
    return sorted(path.name for path in target.iterdir())


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    overlap: str | None = None,
    with_backbone: bool = False,
    private: bool = True,
    allowed: Mapping[str, Any] | None = None,
    api: Any = None,
) -> str:
    """Upload what a run has trained to the Hugging Face Hub, with a model card.

    No path of this machine and no image goes along. Who may is for huggingface_hub to know
    (``hf auth login``).

    Args:
        folder: The run's folder.
        repo_id: ``"owner/name"``; it is made if it is not there.
        overlap: As of :func:`.model_card`.
        with_backbone: Whether the backbone's weights go along.
        private: Whether a repository that is made is private.
        allowed: ``checkpoint`` or ``pretrained`` of :func:`.export_run`.
        api: An ``HfApi``; ``None`` takes a new one.

    Returns:
        The address of the upload.

    Raises:
        ConfigError: If ``repo_id`` is no ``"owner/name"``, or as :func:`write_hub_folder`.
        ExportError: If the upload fails.
    """
    if len(parts := repo_id.split("/")) != 2 or not all(parts):
        raise ConfigError(f"{repo_id!r} is no repository; write OWNER/NAME")
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "upload"
        write_hub_folder(
            Path(folder),
            target,
            name=repo_id,
            overlap=overlap,
            with_backbone=with_backbone,
            allowed=allowed,
        )
        if api is None:
            from huggingface_hub import HfApi  # needed for an upload alone

            api = HfApi()
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=target,
                commit_message="Upload a network of avalanche_peftcl",
            )
        except Exception as error:  # of huggingface_hub, of its network library, of the system
            raise ExportError(f"the upload to {repo_id} failed: {say(error)}") from error
    return str(done)


def push_and_show(
    folder: Path,
    repo_id: str,
    *,
    only_folder: Path | None,
    overlap: str | None,
    with_backbone: bool,
    private: bool,
    allowed: Mapping[str, Any],
    console: Console,
) -> None:
    """Upload what a run has trained, or write it to a folder, and say what was done.

    Args:
        folder: The run's folder.
        repo_id: ``"owner/name"``.
        only_folder: Write it here, and upload nothing.
        overlap: As of :func:`.model_card`.
        with_backbone: Whether the backbone's weights go along.
        private: Whether a repository that is made is private.
        allowed: ``checkpoint`` or ``pretrained`` of :func:`.export_run`.
        console: Where to.

    Raises:
        PEFTCLError: As :func:`push_to_hub`.
    """
    shared: dict[str, Any] = {"overlap": overlap, "with_backbone": with_backbone}
    shared["allowed"] = allowed
    if only_folder is None:
        told = push_to_hub(folder, repo_id, private=private, **shared)
    else:
        names = write_hub_folder(folder, only_folder, name=repo_id, **shared)
        told = f"{only_folder}: {', '.join(names)}; nothing was uploaded"
    console.print(plain(told), soft_wrap=True)


def _tuned(folder: Path) -> TunedBranch | None:
    """Return the module of a run's network if a tuner of peft is in it."""
    network = bare_network(folder).model
    branch = network.branch if isinstance(network, PEFTModel) else None
    return branch if isinstance(branch, TunedBranch) else None


def _other_seeds(folder: Path, record: Record) -> list[Record]:
    """Return finished runs beside a run of a sweep that differ from it in the seed alone."""
    folder = folder.resolve()
    if not SEED_FOLDER.fullmatch(folder.name):
        return []
    found = []
    for other in sorted(folder.parent.iterdir()):
        if other == folder or not SEED_FOLDER.fullmatch(other.name):
            continue
        if not (other / RECORD).is_file():
            continue
        try:
            read = read_record(other)
        except RecordError:
            continue
        if read.complete and _method(read) == _method(record):
            found.append(read)
    return found


def _method(record: Record) -> dict[str, Any]:
    """Return the settings without seeds, the run's own and those that follow it."""
    settings = settings_of(record.config.model_dump(mode="json"))
    return {
        k: {n: o for n, o in v.items() if n != "seed"} if isinstance(v, dict) else v
        for k, v in settings.items()
        if k != "seed"
    }
