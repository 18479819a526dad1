"""A data set that a library downloads, and the builder that makes a benchmark of it."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.datasets import default_dataset_location

from avalanche_peftcl.benchmarks.images.datasets import NamedImages
from avalanche_peftcl.benchmarks.stream.make_benchmark import make_benchmark
from avalanche_peftcl.benchmarks.stream.splits import ClassOrder
from avalanche_peftcl.benchmarks.stream.transforms import Augment
from avalanche_peftcl.errors import DataError
from avalanche_peftcl.models.backbones.backbone import InputConfig
from avalanche_peftcl.registry.ranges import Count, CountOrNone, CropScale, Seed

Loaded = tuple[NamedImages, list[str]]  # images, and the name of each label

_DOC = """Make a benchmark from {about}

    Scenario ``"domain"`` is not offered: these data have no domains that have test images.

    Args:
        input_config: What the backbone expects of an image.
        root: Folder of the files; ``None`` takes ``{folder}`` in Avalanche's data folder.
        download: Fetch what is missing in ``root``.
        scenario: ``"class"``, ``"task"`` or ``"online"``, see
            :func:`.scenarios.make_benchmark`, also for the options below.
        n_experiences: Number of experiences with equally many classes. ``None``: {n_experiences},
            or as many as ``classes_per_experience`` has.
        classes_per_experience: Number of classes in each experience, instead.
        seed: Seed of the class order, of the subsets and of the chunks.
        class_order: Labels in order of arrival, or ``"natural"``, instead of drawing it.
        experience_size: Images in a chunk of scenario ``"online"``.
        augment: Augmentation in training.
        crop_scale: Share of the area that a random crop keeps, smallest and largest.
        train_per_class: Train on at most that many images of a class; ``None``, on all.
        validation_per_class: If positive, that many training images of a class replace the test
            images.
        manifest: File that lists the images; each is compared with it, which reads them all.

    Returns:
        The benchmark, see :func:`.scenarios.make_benchmark`.

    Raises:
        ConfigError: An option that is out of range or makes no sense in the scenario.
        DataError: The files are missing or could not be downloaded; a split does not divide; images
            are not those of the manifest.
    """


@dataclass(frozen=True)
class Download:
    """A data set that a library downloads.

    Args:
        name: Name of its builder.
        about: What it is.
        load: Loads from (root, train or test, download).
        folder: Its folder in Avalanche's data folder.
        files: What has to lie in ``root``, for the message of a failed download.
        default_experiences: Number of experiences, or of classes in each, unless told.
        default_augment: Augmentation, unless told.
    """

    name: str
    about: str
    load: Callable[[Path, bool, bool], Loaded]
    folder: str
    files: str
    default_experiences: int | tuple[int, ...]
    default_augment: Augment = "random_resized_crop"

    def get(self, root: Path | None, download: bool) -> tuple[NamedImages, NamedImages, list[str]]:
        """Return training images, test images and the names of the classes.

        Args:
            root: Folder of the files; ``None`` takes the folder in Avalanche's data folder.
            download: Fetch what is missing.

        Raises:
            DataError: The files are missing or could not be downloaded.
        """
        place = Path(default_dataset_location(self.folder) if root is None else root)
        try:
            with redirect_stdout(io.StringIO()):  # upstream prints its progress
                train, class_names = self.load(place, True, download)
                test, _ = self.load(place, False, download)
        except DataError:
            raise
        except Exception as error:  # downloads, archives and parsers raise every kind
            tried = "downloaded to" if download else "read from"
            raise DataError(
                f"{self.name} could not be {tried} {place} ({type(error).__name__}: {error}); "
                f"put {self.files} into {'that folder' if root else 'a folder given as root='}, "
                "with download=False"
            ) from error
        return train, test, class_names

    def builder(self) -> Callable[..., CLScenario]:
        """Return a function that makes a benchmark; its keyword arguments are the options."""

        def build(
            *,
            input_config: InputConfig,
            root: Path | None = None,
            download: bool = True,
            scenario: Literal["class", "task", "online"] = "class",
            n_experiences: Count | None = None,
            classes_per_experience: list[Count] | None = None,
            seed: Seed = 0,
            class_order: ClassOrder | None = None,
            experience_size: Count = 10,
            augment: Augment = self.default_augment,
            crop_scale: CropScale = (0.05, 1.0),
            train_per_class: Count | None = None,
            validation_per_class: CountOrNone = 0,
            manifest: Path | None = None,
        ) -> CLScenario:
            if n_experiences is None and classes_per_experience is None:
                if isinstance(self.default_experiences, int):
                    n_experiences = self.default_experiences
                else:
                    classes_per_experience = list(self.default_experiences)
            train, test, class_names = self.get(root, download)
            return make_benchmark(
                train,
                test,
                input_config=input_config,
                scenario=scenario,
                n_experiences=n_experiences,
                classes_per_experience=classes_per_experience,
                seed=seed,
                class_order=class_order,
                class_names=class_names,
                experience_size=experience_size,
                augment=augment,
                crop_scale=crop_scale,
                train_per_class=train_per_class,
                validation_per_class=validation_per_class,
                manifest=manifest,
            )

        build.__name__ = build.__qualname__ = self.name
        build.__doc__ = _DOC.format(
            about=self.about,
            folder=self.folder,
            n_experiences=self.default_experiences
            if isinstance(self.default_experiences, int)
            else f"``classes_per_experience={list(self.default_experiences)}``",
        )
        return build
