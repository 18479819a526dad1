"""What every benchmark takes, in one place."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from avalanche_peftcl.benchmarks.stream.splits import ClassOrder
from avalanche_peftcl.benchmarks.stream.transforms import Augment
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.registry.component import Scenario
from avalanche_peftcl.registry.ranges import Count, CountOrNone, CropScale, Seed


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How labelled images become a stream of experiences.

    A builder of a benchmark gets these as arguments of its own by
    :func:`avalanche_peftcl.takes`; a subclass changes defaults, or fixes a field with
    ``field(init=False)``.

    Args:
        input_config: What the backbone expects of an image.
        backbone: The frozen network, by whose features of training images classes are ordered; a
            run hands it in. Needed where ``class_order`` is ``"hardest"`` or ``"easiest"``.
        scenario: ``"class"``, every experience brings new classes; ``"task"``, likewise, and each
            is a task of its own; ``"domain"``, every experience brings all classes in a new
            domain; ``"online"``, as ``"class"``, handed out in chunks of ``experience_size``
            images: ``train_stream`` has the chunks, ``original_train_stream`` the experiences,
            with which ``test_stream`` lines up.
        n_experiences: Number of experiences with equally many classes.
        classes_per_experience: Number of classes in each experience, instead.
        seed: Seed of the class order, of the subsets and of the chunks.
        class_order: Labels in order of arrival; ``"natural"`` for 0, 1, 2, ...; ``"hardest"`` has
            classes in one experience that look alike to the ``backbone``, ``"easiest"`` such that
            look unlike, see :func:`~avalanche_peftcl.benchmarks.order_by_likeness`; ``None`` draws
            a permutation. In scenario ``"domain"`` the default is the order of the labels, and no
            order is hard or easy: each experience has all classes.
        experience_size: Images in a chunk of scenario ``"online"``.
        augment: Which part of a training image is seen: ``"random_resized_crop"`` cuts at random,
            ``"none"`` as in tests, see :func:`.transforms.train_transform`.
        crop_scale: Share of the area that a random crop keeps, smallest and largest.
        mirror: Whether every other training image is mirrored, left to right; ``None``: if
            ``augment`` crops. Digits, text and hands must not be.
        train_per_class: Train on a seeded choice of at most that many images of a class (in
            scenario ``"domain"``: of a class in a domain); ``None``, on all.
        validation_per_class: If positive, that many training images of a class are held out and
            *replace* the test images, for choosing hyper-parameters without seeing them.
        test_per_class: Test on a seeded choice of at most that many images of a class likewise;
            ``None``, on all. Held-out training images are left alone.
        manifest: File that lists the images, see :mod:`.manifest`; each is compared with it, which
            reads them all. ``peftcl manifest`` writes it.

    Example:
        >>> from avalanche_peftcl import takes
        >>> @dataclass(frozen=True, kw_only=True)
        ... class ShapesOptions(StreamOptions):
        ...     augment: Augment = "none"
        >>> @takes(ShapesOptions)
        ... def shapes(*, n_classes: Count = 4, options: ShapesOptions):
        ...     return n_classes, options.scenario, options.augment
        >>> shapes(input_config=InputConfig(img_size=32), scenario="task")
        (4, 'task', 'none')
    """

    input_config: InputConfig
    backbone: nn.Module | None = None
    scenario: Scenario = "class"
    n_experiences: Count | None = None
    classes_per_experience: list[Count] | None = None
    seed: Seed = 0
    class_order: ClassOrder | None = None
    experience_size: Count = 10
    augment: Augment = "random_resized_crop"
    crop_scale: CropScale = (0.05, 1.0)
    mirror: bool | None = None
    train_per_class: Count | None = None
    validation_per_class: CountOrNone = 0
    test_per_class: Count | None = None
    manifest: Path | None = None
