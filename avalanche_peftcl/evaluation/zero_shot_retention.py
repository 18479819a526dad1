"""How much of what a model of images and texts could do before a stream is left."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation.image_sets import (
    ClassImages,
    class_images,
    read_batches,
    read_words,
)
from avalanche_peftcl.evaluation.joint_space import JointSpace, StandingMetric, Summary, Values
from avalanche_peftcl.functional.image_text import retrieval_recall
from avalanche_peftcl.models.backbones.text_tower import check_templates
from avalanche_peftcl.registry.ranges import Count, MinibatchSize, Seed


class ZeroShotRetentionMetric(StandingMetric):
    """Measure zero-shot accuracy on images that are never trained on, as training goes on.

    An image is of the class whose text is nearest by cosine to its embedding: that which the
    network's adapted pass makes of it, before any head. Ties count as wrong. It is measured before
    the stream, of the frozen backbone, and after each experience, of the network as it is then:
    the change is what the stream cost or brought. That no method trains on these images is up to
    whoever gives them.

    ``Zero_Shot_Accuracy/<set>`` is emitted each time, and after each experience
    ``Zero_Shot_Change``, the mean over sets of the change since before the stream.

    No method sees the images, and a run is the same to the bit with this metric and without. Cost:
    a pass over them, decoding included, once more than there are experiences.

    Args:
        sets: By the name of a set its images.
        templates: Sentences with ``{}`` where the word of a class stands; ``None``: the word alone.
        chunk_size: Images at a time.

    Raises:
        ConfigError: If a template has no ``{}`` or there is no set. In training, if the backbone
            has no text side, or the network several adapted passes.
        DataError: In training, if an image cannot be decoded.
        NotFiniteError: In training, if an embedding is not of finite numbers.

    Source:
        Zero-shot classification: Radford et al., CLIP, arXiv 2103.00020; as a measure of
        forgetting: Zheng et al., ZSCL, ICCV 2023 ("Transfer").
        Differs: after every experience, beside the frozen backbone's own accuracy.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> from avalanche.logging import BaseLogger
        >>> from avalanche.training.plugins import EvaluationPlugin
        >>> from avalanche_peftcl.testing import toy_benchmark, toy_image_text
        >>> from avalanche_peftcl.training.naive import build_naive
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, grey in (("night", 0), ("snow", 255)):
        ...         Path(folder, "test", name).mkdir(parents=True)
        ...         image = Image.fromarray(np.full((16, 16, 3), grey, np.uint8))
        ...         image.save(Path(folder, "test", name, "1.png"))
        ...     metric = zero_shot_retention_metrics(root={"skies": Path(folder)})
        ...     evaluator = EvaluationPlugin(metric, loggers=[BaseLogger()])
        ...     strategy = build_naive(
        ...         backbone=toy_image_text(), train_epochs=1, evaluator=evaluator
        ...     )
        ...     for experience in list(toy_benchmark().train_stream)[:2]:
        ...         _ = strategy.train(experience)
        >>> metric.summary()["change"]
        [0.0, 0.0]
    """

    name = "zero_shot_retention"

    def __init__(
        self,
        sets: Mapping[str, ClassImages],
        *,
        templates: Sequence[str] | None = None,
        chunk_size: int = 64,
    ) -> None:
        super().__init__()
        if not sets:
            raise ConfigError(f"metric {self.name!r} needs a set of images; give root")
        self.sets, self.chunk_size = dict(sets), chunk_size
        self.templates = check_templates(templates)

    def measure(self, space: JointSpace, *, adapted: bool) -> Values:
        """Return the accuracy on each set."""
        found: Values = {}
        for name, (paths, labels, words) in self.sets.items():
            batches = read_batches(paths, space.backbone.input_config, self.chunk_size)
            images = space.images(batches, adapted=adapted)
            scores = images @ space.texts(words, self.templates, adapted=adapted).T
            own = torch.tensor(labels)[:, None] == torch.arange(len(words))
            found[name] = retrieval_recall(scores, own, k=1)
        return found

    def told(self, values: Values) -> Values:
        """Return accuracies, and after the first time their mean change."""
        named = {f"Zero_Shot_Accuracy/{name}": value for name, value in values.items()}
        return (
            named if values is self.before else {**named, "Zero_Shot_Change": self._change(values)}
        )

    def summary(self) -> Summary:
        """Return all accuracies.

        Returns:
            ``sets``: by name ``images`` and ``classes``, how many there are, the accuracy
            ``before`` the stream and a list of those ``after`` each experience; ``change``, one an
            experience: the mean over sets of the accuracy less that before the stream.
        """
        before = self.before or {}
        return {
            "sets": {
                name: {
                    "images": len(some.paths),
                    "classes": len(some.words),
                    "before": before.get(name),
                    "after": [values[name] for values in self.after],
                }
                for name, some in self.sets.items()
            },
            "change": [self._change(values) for values in self.after],
        }

    def __str__(self) -> str:
        return "Zero_Shot_Retention"

    def _change(self, values: Values) -> float | None:
        before = self.before or {}
        changes = [
            now - then
            for name, now in values.items()
            if now is not None and (then := before.get(name)) is not None
        ]
        return sum(changes) / len(changes) if changes else None


def zero_shot_retention_metrics(
    *,
    root: Path | dict[str, Path],
    class_words: Path | dict[str, str] | None = None,
    templates: list[str] | None = None,
    images_per_class: Count | None = 20,
    chunk_size: MinibatchSize = 64,
    seed: Seed = 0,
) -> ZeroShotRetentionMetric:
    """Build the metric of zero-shot accuracy on images that are never trained on.

    Args:
        root: A folder with ``test/<class>/``, or ``<class>/`` where there is no folder ``test``;
            or several by name.
        class_words: What each class is called in the texts, by the name of its folder: a map, or a
            JSON file with one, or with one for each name of ``root``. ``None``: the name of the
            folder, with spaces for ``_``.
        templates: Sentences with ``{}`` where the word stands, such as ``"a photo of a {}."``;
            their embeddings are averaged. ``None``: the word alone.
        images_per_class: At most so many images of each class, a seeded choice that stays;
            ``None``, all.
        chunk_size: Images at a time, which bounds the memory; numbers depend on it by rounding.
        seed: Of the choice, the same whatever the run's seed.

    Raises:
        ConfigError: If there is no word for a class, or a template has no ``{}``.
        DataError: If a folder or file is missing or cannot be used.
    """
    roots = root if isinstance(root, dict) else {root.resolve().name: root}
    sets = {
        name: class_images(folder, read_words(class_words, name), most=images_per_class, seed=seed)
        for name, folder in roots.items()
    }
    return ZeroShotRetentionMetric(sets, templates=templates, chunk_size=chunk_size)
