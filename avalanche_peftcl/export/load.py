"""A trained network from a file: for prediction, without Avalanche.

The file is a safetensors file: tensors ``model.*`` (all but the frozen backbone), tensors
``backbone.*`` if the backbone travels along, and one JSON text that says how both are built.
"""

from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.errors import CheckpointError, ConfigError
from avalanche_peftcl.export.backbone import WAY_OUT, build_backbone, limited
from avalanche_peftcl.export.file import MODEL_FILE, ExportInfo, is_spec, read_export
from avalanche_peftcl.functional.finite import not_finite
from avalanche_peftcl.models.backbones.images import eval_transform
from avalanche_peftcl.models.backbones.weights import weights_sha256
from avalanche_peftcl.models.exportable import OnlyLearns, is_exportable, takes_backbone
from avalanche_peftcl.models.heads.head import Head
from avalanche_peftcl.models.heads.rows import MASK_VALUE, Growing
from avalanche_peftcl.registry.isolation import ForeignError, isolated
from avalanche_peftcl.registry.offers import BackboneOffers, ModelOffers
from avalanche_peftcl.registry.packages import plugin_modules
from avalanche_peftcl.registry.schema import Schema
from avalanche_peftcl.registry.wording import join, say


class ExportedModel(nn.Module):
    """A trained network that predicts classes of images, in eval mode; made by :func:`load`.

    Attributes:
        class_names: Name of each class id.
        input_config: What it expects of an image.
        transform: From a PIL image to ``(3, H, W)``.
        task_labels: Task labels, of which a prediction needs one; empty if it needs none.
        score_name: What :meth:`scores` returns, see :attr:`.Head.score_name`.
        info: All that the file says.
    """

    def __init__(self, model: nn.Module, info: ExportInfo) -> None:
        super().__init__()
        self.model = model
        self.info = info
        self.class_names = list(info.class_names)
        self.task_labels = list(info.task_labels)
        self.input_config = info.input_config
        self.transform = eval_transform(info.input_config)
        self.score_name = "probability" if (head := self._head()) is None else head.score_name
        self.eval()

    def class_name(self, number: int) -> str:
        """Return the name of a class id, the id itself where it has none."""
        return self.class_names[number] if number < len(self.class_names) else str(number)

    @torch.no_grad()
    def scores(self, logits: Tensor) -> Tensor:
        """Return what to tell of logits, ``(B, C)``: probabilities, or what the head says."""
        head = self._head()
        return logits.softmax(dim=1) if head is None else head.scores(logits)

    def _head(self) -> Head | None:
        """Return what predicts, if it is a head of this package."""
        heads = ModelOffers.of(self.model).heads
        return heads[-1] if heads and isinstance(heads[-1], Head) else None

    @torch.no_grad()
    def forward(self, images: Tensor, task_labels: Tensor | int | None = None) -> Tensor:
        """Return logits by class id, as in the run's own evaluation; no gradient is kept.

        Args:
            images: ``(B, 3, H, W)``, each as :attr:`transform` makes it.
            task_labels: ``(B,)``, or one for all images; ``None`` where none is needed.

        Returns:
            ``(B, C)`` in float32; -1000 for classes that were not trained, or not in that task.

        Raises:
            ConfigError: If a task label is missing, unknown or not needed.
        """
        tasks = self._tasks(task_labels, images)
        kind, precision = images.device.type, self.info.mixed_precision
        dtype = torch.float16 if precision == "fp16" else torch.bfloat16
        with torch.autocast(kind, dtype=dtype, enabled=precision != "no"):
            logits: Tensor = self.model(images, tasks)
        missing = len(self.class_names) - logits.shape[1]
        return F.pad(logits.float(), (0, max(missing, 0)), value=MASK_VALUE)

    def _tasks(self, task_labels: Tensor | int | None, images: Tensor) -> Tensor | None:
        given = task_labels is not None
        if given != bool(self.task_labels):
            raise ConfigError(
                "this network takes no task label; leave it out"
                if given
                else "this network was trained task by task and needs to be told which: give the "
                f"task label, one of {join(map(str, self.task_labels))}"
            )
        if task_labels is None:
            return None
        tasks = torch.as_tensor(task_labels, device=images.device).expand(len(images))
        if unknown := sorted(set(tasks.tolist()) - set(self.task_labels)):
            raise ConfigError(
                f"there is no task label {join(map(str, unknown))}; there is "
                f"{join(map(str, self.task_labels))}"
            )
        return tasks


def load(
    path: str | Path,
    *,
    backbone: nn.Module | None = None,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
) -> ExportedModel:
    """Load a trained network, ready to predict.

    Nothing in the file is executed, and nothing that it names is opened or fetched; only builders
    that an installed plugin package offers with :func:`~avalanche_peftcl.models.exportable` are
    called. torch's random generator stays as it is.

    Args:
        path: A file of ``peftcl export``, or the folder of a run.
        backbone: The frozen network; ``None`` builds it as the file says.
        checkpoint: The weights of the backbone, where they are not in the file.
        pretrained: Whether the backbone's builder may download them, by the name of its model.

    Returns:
        The network in eval mode, on the CPU.

    Raises:
        CheckpointError: The file is missing, unreadable or of another version, or the network
            cannot be built or is another one than was trained.

    Example:
        >>> load("no/such.safetensors")
        Traceback (most recent call last):
        avalanche_peftcl.errors.CheckpointError: there is no file no/such.safetensors
    """
    path = Path(path)
    path = path / MODEL_FILE if path.is_dir() else path
    info, trained, frozen = read_export(path)
    with torch.random.fork_rng(devices=[]):
        if backbone is None:
            allowed = {"checkpoint": checkpoint, "pretrained": pretrained}
            backbone = build_backbone(path, info, frozen, allowed)
        _check_sizes(path, info, backbone)
        if weights_sha256(backbone) != info.weights_sha256:
            raise CheckpointError(
                f"{path} was trained on other weights of the backbone {info.backbone.name!r} "
                f"(sha256 {info.weights_sha256[:12]}...) than there are here "
                f"({weights_sha256(backbone)[:12]}...); {WAY_OUT}"
            )
        return assemble(path, info, trained, backbone)


def assemble(
    path: Path, info: ExportInfo, trained: Mapping[str, Tensor], backbone: nn.Module
) -> ExportedModel:
    """Build the network around ``backbone`` and give it its trained weights.

    Raises:
        CheckpointError: If it cannot be built, or the weights do not fit.
    """
    with limited({**trained, **backbone.state_dict()}, f"the network of {path}"):
        model = rebuild(info.model, backbone)
    keys = set(trained_keys(model, backbone))
    own = {k: v for k, v in model.state_dict().items() if k not in keys}
    try:
        model.load_state_dict(own | dict(trained))
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {path} do not fit the network that it describes: "
            f"{' '.join(str(error).split())}"
        ) from error
    if names := not_finite(model.state_dict().items()):
        raise CheckpointError(
            f"{path} holds weights that are not finite numbers, in {join(names[:3])}: it is damaged"
        )
    return ExportedModel(model, info)


def _check_sizes(path: Path, info: ExportInfo, backbone: nn.Module) -> None:
    own = BackboneOffers.of(backbone).input_config or info.input_config
    if own.img_size != info.input_config.img_size:
        raise CheckpointError(
            f"{path} is damaged: it says that images have {info.input_config.img_size} pixels a "
            f"side, its backbone {info.backbone.name!r} takes {own.img_size}"
        )


def rebuild(spec: Mapping[str, Any], backbone: nn.Module) -> nn.Module:
    """Build a network around ``backbone``, with fresh weights.

    Args:
        spec: What :meth:`BuildSpec.to_json` returned.
        backbone: The frozen network.

    Raises:
        CheckpointError: If no installed plugin package offers the builder, or it refuses.
    """
    offered = dict(builders(spec))
    if not takes_backbone(offered[spec["build"]]):
        raise CheckpointError(f"{spec['build']} takes no backbone: it builds a part, no network")

    def build(spec: Mapping[str, Any]) -> nn.Module:
        options = {k: build(v) if is_spec(v) else v for k, v in spec["options"].items()}
        target = offered[spec["build"]]
        given = {"backbone": backbone} if takes_backbone(target) else {}
        schema = Schema.of(target, given=frozenset(given), title=spec["build"])
        network: nn.Module = target(**given, **schema.check(options))
        return network

    try:
        with isolated():
            return build(spec)
    except ForeignError as caught:
        raise CheckpointError(
            f"the installed packages cannot build the network again: {say(caught.error)}"
        ) from caught.error


def builders(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the builder of ``spec`` and of each network in it, if it may be called."""
    yield from _builders(spec, plugin_modules())


def _builders(spec: Any, allowed: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Yield what :func:`builders` does; the installed packages are looked through once for all."""
    if not is_spec(spec):
        raise CheckpointError(f"{str(spec)[:80]} does not say how a network is built")
    path: str = spec["build"]
    module, _, name = path.partition(":")
    if module.partition(".")[0] not in allowed:
        raise CheckpointError(
            f"{path} belongs to no plugin package that is installed and may be loaded; there are "
            f"modules of {join(sorted(allowed))}"
        )
    try:
        with isolated():
            target = getattr(import_module(module), name)
    except ForeignError as caught:
        raise CheckpointError(f"{path} cannot be imported: {say(caught.error)}") from caught.error
    if not is_exportable(target):
        raise CheckpointError(f"{path} is not marked as exportable in the installed version")
    yield path, target
    for value in spec["options"].values():
        if is_spec(value):
            yield from _builders(value, allowed)


def trained_keys(model: nn.Module, backbone: nn.Module) -> list[str]:
    """Return the names in the model's state dict that a file holds.

    They are not the backbone's, nor those that only learning needs (:attr:`.Growing.statistics`).
    """
    prefixes = tuple(
        f"{name}." for name, m in model.named_modules(remove_duplicate=False) if m is backbone
    )
    skip = learning_keys(model)
    return [k for k in model.state_dict() if not k.startswith(prefixes) and k not in skip]


def learning_keys(model: nn.Module) -> set[str]:
    """Return the names in the model's state dict that prediction does not need."""
    modules = dict(model.named_modules(remove_duplicate=False))
    learners = tuple(f"{path}." for path, m in modules.items() if isinstance(m, OnlyLearns))
    return {k for k in model.state_dict() if k.startswith(learners)} | {
        f"{path}.{name}".removeprefix(".")
        for path, module in modules.items()
        if isinstance(module, Growing)
        for name in module.statistics
    }
