"""How well captioned images and their captions find each other, as training goes on."""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from avalanche_peftcl.evaluation.image_sets import CaptionedImages, captioned_images, read_batches
from avalanche_peftcl.evaluation.joint_space import JointSpace, StandingMetric, Summary, Values
from avalanche_peftcl.functional.image_text import modality_gap, retrieval_recall
from avalanche_peftcl.registry.ranges import MinibatchSize, Seed

Images = Annotated[int, Field(ge=2, le=10**6)]

KS = (1, 5, 10)
_QUERIES = 1024  # at a time


class RetrievalMetric(StandingMetric):
    """Measure retrieval between images and captions that are never trained on.

    Image to text: whether one of an image's own captions is among the ``k`` nearest of all by
    cosine; text to image: whether a caption's image is among the ``k`` nearest. Ties count against.
    The numbers depend on how many images there are: compare those of the same choice. The modality
    gap is the distance between the mean image and the mean caption.

    It is measured before the stream, of the frozen backbone, and after each experience, of the
    network's adapted pass, before any head. ``Image_To_Text_R1``, ``_R5``, ``_R10``,
    ``Text_To_Image_R1``, ``_R5``, ``_R10`` and ``Modality_Gap`` are emitted each time; those for a
    ``k`` beyond the number of candidates are undefined.

    No method sees the images, and a run is the same to the bit with this metric and without. Cost:
    a pass over the images, decoding included, once more than there are experiences, and one over
    the captions.

    Args:
        images: With captions.
        chunk_size: Images at a time.

    Raises:
        ConfigError: In training, if the backbone has no text side, or the network several adapted
            passes.
        DataError: In training, if an image cannot be decoded.
        NotFiniteError: In training, if an embedding is not of finite numbers.

    Source:
        Recall as reported with CLIP (Radford et al., arXiv 2103.00020); gap: Liang et al., NeurIPS
        2022. Differs: ties count against; images with several captions count once.

    Example:
        >>> import json
        >>> import tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> from avalanche.logging import BaseLogger
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> from avalanche_peftcl.testing import toy_benchmark, toy_image_text
        >>> from avalanche_peftcl.training.naive import build_naive
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root, captions = Path(folder), Path(folder, "captions.json")
        ...     for grey in (0, 99, 255):
        ...         image = Image.fromarray(np.full((16, 16, 3), grey, np.uint8))
        ...         image.save(root / f"{grey}.png")
        ...     told = {"0.png": ["night", "a dark sky"], "99.png": ["fog"], "255.png": ["snow"]}
        ...     _ = captions.write_text(json.dumps(told))
        ...     metric = retrieval_metrics(root=root, captions=captions)
        ...     evaluator = EvaluationPlugin(metric, loggers=[BaseLogger()])
        ...     strategy = build_naive(
        ...         backbone=toy_image_text(), train_epochs=1, evaluator=evaluator
        ...     )
        ...     for experience in list(toy_benchmark().train_stream)[:2]:
        ...         _ = strategy.train(experience)
        >>> found = metric.summary()
        >>> found["images"], found["captions"], len(found["after"])
        (3, 4, 2)
        >>> gap = [each["modality_gap"] for each in (found["before"], found["after"][1])]
        >>> abs(gap[1] - gap[0]) < 1e-5  # no module is trained
        True
    """

    name = "retrieval"

    def __init__(self, images: CaptionedImages, *, chunk_size: int = 64) -> None:
        super().__init__()
        self.images, self.chunk_size = images, chunk_size

    def measure(self, space: JointSpace, *, adapted: bool) -> Values:
        """Return recall both ways, and the gap."""
        paths, captions, owners = self.images
        batches = read_batches(paths, space.backbone.input_config, self.chunk_size)
        images = space.images(batches, adapted=adapted)
        texts = space.texts(captions, adapted=adapted)
        own = torch.tensor(owners)
        there, back = torch.arange(len(paths)), own
        found: Values = {}
        for way, sides in (
            ("image_to_text", (images, texts, there, back)),
            ("text_to_image", (texts, images, back, there)),
        ):
            for k in KS:
                found[f"{way}_r{k}"] = _recall(*sides, k)
        return found | {"modality_gap": modality_gap(images, texts)}

    def told(self, values: Values) -> Values:
        """Return all numbers."""
        return {name.title(): value for name, value in values.items()}

    def summary(self) -> Summary:
        """Return all numbers.

        Returns:
            ``images`` and ``captions``, how many there are; ``before`` the stream and ``after``
            each experience ``image_to_text_r1``, ``_r5``, ``_r10``, ``text_to_image_r1``, ``_r5``,
            ``_r10`` and ``modality_gap``; ``None`` where undefined.
        """
        return {
            "images": len(self.images.paths),
            "captions": len(self.images.captions),
            "before": None if self.before is None else dict(self.before),
            "after": [dict(values) for values in self.after],
        }

    def __str__(self) -> str:
        return "Retrieval"


def _recall(
    queries: Tensor, candidates: Tensor, query_of: Tensor, candidate_of: Tensor, k: int
) -> float | None:
    """Return recall of queries among candidates that match where they are of one image."""
    if k > len(candidates):
        return None
    found = 0.0
    for first in range(0, len(queries), _QUERIES):
        some = queries[first : first + _QUERIES]
        matches = query_of[first : first + _QUERIES, None] == candidate_of
        found += len(some) * retrieval_recall(some @ candidates.T, matches, k=k)
    return found / len(queries)


def retrieval_metrics(
    *,
    root: Path,
    captions: Path,
    max_images: Images | None = 200,
    chunk_size: MinibatchSize = 64,
    seed: Seed = 0,
) -> RetrievalMetric:
    """Build the metric of retrieval between images and captions.

    Args:
        root: Folder of the images.
        captions: JSON file: by the file name of an image its caption, or a list of them.
        max_images: At most so many images, a seeded choice that stays; ``None``, all.
        chunk_size: Images at a time, which bounds the memory; numbers depend on it by rounding.
        seed: Of the choice, the same whatever the run's seed.

    Raises:
        DataError: If the folder, the file or an image is missing, or they cannot be used.
    """
    images = captioned_images(root, captions, most=max_images, seed=seed)
    return RetrievalMetric(images, chunk_size=chunk_size)
