"""What a part may tell of itself beside what it must be; whoever asks, asks here.

Each class has a field for every attribute that is asked for, with what it means where a part does
not have it. A part has the attributes that it likes, and derives from nothing of ours.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class _Offers:
    @classmethod
    def of(cls, part: Any) -> Self:
        """Return what ``part`` has of this, and of the rest what its absence means."""
        found = {each.name: getattr(part, each.name, each.default) for each in fields(cls)}
        return cls(**found)


@dataclass(frozen=True, kw_only=True)
class BackboneOffers(_Offers):
    """What a backbone may tell.

    Args:
        input_config: What it expects of an image; a run needs it to build the benchmark.
        model_name: Its name in timm, for the record.
        pretrained_on: Sets of labels that its weights were trained on, ``"imagenet-1k"``,
            ``"imagenet-12k"`` or ``"imagenet-21k"``; empty of random weights, ``None`` where nobody
            knows.
        out_features: Width of what it pools; ``None``: that of a token.
        has_text: Whether it encodes class names too.

    Example:
        >>> class Tiny:
        ...     model_name = "vit_tiny_patch16_224"
        >>> BackboneOffers.of(Tiny()).model_name
        'vit_tiny_patch16_224'
    """

    input_config: Any = None
    model_name: str | None = None
    pretrained_on: Sequence[str] | None = None
    out_features: int | None = None
    has_text: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchmarkOffers(_Offers):
    """What a benchmark may tell; all that :func:`.make_benchmark` builds tell it.

    Args:
        class_names: Name of each class id.
        class_order: Original class of each class id.
        scenario: ``"class"``, ``"task"``, ``"domain"`` or ``"online"``.
        domains: Names of the domains, in the order of the experiences.
        tested_on: ``"test images"`` or ``"held-out training images"``.
        contents: The images that it is made of, :class:`.benchmarks.images.contents.Contents`.
        manifest_sha256: Hash of the manifest that they were compared with.
        original_train_stream: Of an online stream, the experiences that were cut into chunks.
        captions: Of a stream of captioned images, which has no classes: the texts of each target,
            which is the number of an image. Experiences are called as ``domains`` says.
        left_out: Images of the data set that are in no experience, by split; ``None`` where none
            can be.

    Example:
        >>> class Pets:
        ...     class_names = ["cat", "dog"]
        >>> told = BenchmarkOffers.of(Pets())
        >>> told.class_names, told.scenario
        (['cat', 'dog'], None)
    """

    class_names: Sequence[str] | None = None
    class_order: Iterable[int] | None = None
    scenario: str | None = None
    domains: Sequence[str] | None = None
    tested_on: str | None = None
    contents: Any = None
    manifest_sha256: str | None = None
    original_train_stream: Iterable[Any] | None = None
    captions: Sequence[Sequence[str]] | None = None
    left_out: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class ExperienceOffers(_Offers):
    """What an experience may tell: the chunks of an online stream do.

    Args:
        task_labels: Those of its images.
        is_first_subexp: Whether it is the first chunk of an experience.
        is_last_subexp: Whether it is the last one; ``None`` of what is no chunk.
        origin_experience: The experience that it is a chunk of.

    Example:
        >>> ExperienceOffers.of(object()).is_last_subexp is None
        True
    """

    task_labels: Iterable[int] = ()
    is_first_subexp: bool = True
    is_last_subexp: bool | None = None
    origin_experience: Any = None


@dataclass(frozen=True, kw_only=True)
class StrategyOffers(_Offers):
    """What a strategy may tell.

    Args:
        task_label_at_test: Whether a prediction uses a task label; ``None`` leaves it to the test
            images, whether their labels differ.
        batch_independent_at_test: Whether an image is predicted alike alone and among others;
            ``None`` says nothing.
        mixed_precision: ``"no"``, ``"bf16"`` or ``"fp16"``.
        cursor: Where checkpoints inside an experience are made, :class:`.training.cursor.Cursor`.
        headline: As of a plugin, see :class:`PluginOffers`.
        joint: Whether it trains once, on all experiences together; ``train()`` gets them as one.
        reads_features: Whether what it makes of an image before it is classified never changes, and
            its evaluation takes that, ``(B, D)``, in the place of images.

    Example:
        >>> class Oracle:
        ...     task_label_at_test = True
        >>> told = StrategyOffers.of(Oracle())
        >>> told.task_label_at_test, told.batch_independent_at_test
        (True, None)
    """

    task_label_at_test: bool | None = None
    batch_independent_at_test: bool | None = None
    mixed_precision: str | None = None
    cursor: Any = None
    headline: Callable[[], str | None] | None = None
    joint: bool = False
    reads_features: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelOffers(_Offers):
    """What the network of a strategy may tell.

    Args:
        backbone: Its frozen part, which need not be stored.
        forward_passes: Of the backbone for one test image.
        classes: What classes it has seen in which task, :class:`.ClassRows`.
        heads: Its heads, :class:`.Head`; the last predicts.
        branches: Its passes through the backbone, :class:`.Branch`.

    Example:
        >>> ModelOffers.of(object()).forward_passes
        1
    """

    backbone: Any = None
    forward_passes: int = 1
    classes: Any = None
    heads: Sequence[Any] = ()
    branches: Sequence[Any] = ()


@dataclass(frozen=True, kw_only=True)
class PluginOffers(_Offers):
    """What an Avalanche plugin may tell; :mod:`.training.joints` has one with all of it, to paste.

    Args:
        summary: ``summary()`` returns what the record keeps of it: what JSON can hold.
        headline: ``headline()`` returns a line that is shown after each experience, or ``None``.
        stored_floats: How many floats it keeps between experiences.

    Example:
        >>> class Counts:
        ...     stored_floats = 10
        ...     def headline(self):
        ...         return "3 of 5 directions"
        >>> told = PluginOffers.of(Counts())
        >>> told.headline(), told.summary is None, told.stored_floats
        ('3 of 5 directions', True, 10)
    """

    summary: Callable[[], Mapping[str, Any]] | None = None
    headline: Callable[[], str | None] | None = None
    stored_floats: int = 0


@dataclass(frozen=True, kw_only=True)
class HostPluginOffers(_Offers):
    """What Avalanche's plugins keep between experiences, by the names that it has there.

    Args:
        storage_policy: Of a replay plugin: its ``buffer`` is a dataset.
        saved_params: Of EWC: by experience the weights, by name.
        importances: Of EWC: by experience what each weight means, by name.
        lwf: Of LwF: its ``prev_model`` is the network as it was, or ``None``.

    Example:
        >>> HostPluginOffers.of(object()).saved_params is None
        True
    """

    storage_policy: Any = None
    saved_params: Mapping[int, Mapping[str, Any]] | None = None
    importances: Mapping[int, Mapping[str, Any]] | None = None
    lwf: Any = None


@dataclass(frozen=True, kw_only=True)
class MetricOffers(_Offers):
    """What a plugin metric may tell beside its values.

    Args:
        summary: As of a plugin, see :class:`PluginOffers`.

    Example:
        >>> class Curve:
        ...     def summary(self):
        ...         return {"points": [0.5, 0.75]}
        >>> MetricOffers.of(Curve()).summary()
        {'points': [0.5, 0.75]}
    """

    summary: Callable[[], Mapping[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True)
class LoggerOffers(_Offers):
    """What a logger may tell.

    Args:
        close: Called when the run ends, however it does.

    Example:
        >>> LoggerOffers.of(object()).close is None
        True
    """

    close: Callable[[], None] | None = None
