"""A trained network as a graph, for programs without this package: ``torch.export`` and ONNX."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.errors import ConfigError, ExportError
from avalanche_peftcl.export.file import INFO_KEY
from avalanche_peftcl.export.load import ExportedModel
from avalanche_peftcl.models.heads.rows import MASK_VALUE
from avalanche_peftcl.models.networks.dynamic import DynamicModel
from avalanche_peftcl.registry.wording import say

TOLERANCE = 1e-5  # of logits, relative to the largest where that is above 1
_LARGEST = 2**31 - 2**20  # bytes of a file of protobuf


def _distances(a: Tensor, b: Tensor, p: float = 2, mode: int | None = None) -> Tensor:
    """Return ``torch.cdist``, of which ONNX has no operator, from differences."""
    if p != 2:
        raise ExportError(f"distances of order {p} have no operator in ONNX; take p=2")
    return (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1).sqrt()


_FURTHER: dict[Any, Any] = {torch.ops.aten.cdist.default: _distances}


class Graph(nn.Module):
    """What is written of an exported network: tensors to tensors, in float32, nothing checked.

    Args:
        model: What :func:`.load` returned.
    """

    def __init__(self, model: ExportedModel) -> None:
        super().__init__()
        self.model = model.model
        self.num_classes = len(model.class_names)
        self.eval()

    def forward(self, images: Tensor, task_labels: Tensor | None = None) -> Tensor:
        """Return logits by class id, ``(B, C)``; -1000 for what may not be predicted.

        Args:
            images: ``(B, 3, H, W)``, prepared as for the network.
            task_labels: ``(B,)``, of networks that need them.
        """
        if isinstance(self.model, DynamicModel):
            rows = self.model.classify(self.model.embed(images))
            logits = self.model.classes.scatter(rows, task_labels)
        else:
            logits = self.model(images, task_labels)
        missing = self.num_classes - logits.shape[1]
        return F.pad(logits.float(), (0, max(missing, 0)), value=MASK_VALUE)


def export_program(model: ExportedModel) -> torch.export.ExportedProgram:
    """Return the network as a program of ``torch.export``, for any number of images.

    Args:
        model: What :func:`.load` returned, on the CPU. It computes in float32, even where the run
            evaluated in bfloat16.

    Raises:
        ExportError: If a module or head does what no graph can hold, such as to choose by the
            value of a tensor. No built-in one does.
    """
    given = _images(model, 2)
    batch = torch.export.Dim("batch", min=1)
    shapes = {"images": {0: batch}, "task_labels": {0: batch}}
    names = list(shapes)[: len(given)]
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(
                Graph(model), given, dynamic_shapes={n: shapes[n] for n in names}, strict=False
            )
    except Exception as error:  # torch raises many kinds, each its own
        raise _refused(model, error) from error


def onnx_bytes(model: ExportedModel) -> bytes:
    """Return the network as a file of ONNX, computed with onnxruntime and compared before.

    Inputs are ``images``, ``(B, 3, H, W)``, and ``task_labels``, ``(B,)``, where the network needs
    them; the output is ``logits``, ``(B, C)``. Names of classes, what is expected of an image and
    the task labels stand as JSON in the metadata.

    Args:
        model: As of :func:`export_program`.

    Raises:
        ConfigError: If the packages of the extra ``[onnx]`` are missing.
        ExportError: If there is no graph of the network, ONNX has not all that it does, or
            onnxruntime's logits are not the network's to 1e-5.
    """
    try:
        import onnx  # noqa: F401 (what the extra brings, asked for before the work)
        import onnxruntime
        import onnxscript  # noqa: F401 (as onnx)
    except ImportError as error:
        raise ConfigError(
            f"ONNX needs packages that are not here ({say(error)}); install them: "
            "pip install 'avalanche-peftcl[onnx]'"
        ) from error
    program = export_program(model).run_decompositions(_FURTHER)
    names = ["images", "task_labels"][: len(_images(model, 1))]
    try:
        with _quiet(), torch.no_grad():
            made: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=names, output_names=["logits"]
            )
        proto = made.model_proto
    except Exception as error:  # torch's and onnxscript's, each its own
        raise _refused(model, error) from error
    told = {
        "class_names": model.class_names,
        "task_labels": model.task_labels,
        "input_config": asdict(model.input_config),
        "score_name": model.score_name,
    }
    entry = proto.metadata_props.add()
    entry.key, entry.value = INFO_KEY, json.dumps(told, sort_keys=True)
    if (size := proto.ByteSize()) > _LARGEST:
        raise ExportError(
            f"the network has {size:,} bytes, an ONNX file holds {_LARGEST:,}; take export_program"
        )
    content: bytes = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    _compare(model, session, names)
    return content


def _compare(model: ExportedModel, session: Any, names: list[str]) -> None:
    """Refuse a graph whose logits are not those of the network, of another number of images."""
    given = _images(model, 3)
    with torch.no_grad():
        wanted = Graph(model)(*given)
    fed = {name: value.numpy() for name, value in zip(names, given, strict=True)}
    found = torch.from_numpy(session.run(None, fed)[0])
    largest = wanted[wanted > MASK_VALUE].abs().max() if (wanted > MASK_VALUE).any() else 0.0
    error = float((found - wanted).abs().max())
    if not error <= TOLERANCE * max(1.0, float(largest)):
        raise ExportError(
            f"onnxruntime's logits differ from the network's by {error:.1e}, more than "
            f"{TOLERANCE:.0e}; nothing was written"
        )


def _images(model: ExportedModel, n: int) -> tuple[Tensor, ...]:
    """Return images, of noise, and the task labels that a network needs."""
    size = model.input_config.img_size
    images = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    if not model.task_labels:
        return (images,)
    labels = [model.task_labels[i % len(model.task_labels)] for i in range(n)]
    return images, torch.tensor(labels)


def _refused(model: ExportedModel, error: Exception) -> ExportError:
    name = model.info.strategy["name"]
    return ExportError(
        f"the network of strategy {name!r} cannot be written as a graph: {say(error)}; a module "
        "or head that chooses by the value of a tensor, or asks len() of images, cannot"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what torch and onnxscript tell of their own work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
