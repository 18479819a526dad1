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
from avalanche_peftcl.benchmarks.stream.options import StreamOptions
from avalanche_peftcl.benchmarks.stream.transforms import Augment
from avalanche_peftcl.errors import DataError
from avalanche_peftcl.registry.takes import takes

Loaded = tuple[NamedImages, list[str]]  # images, and the name of each label

_DOC = """Make a benchmark from {about}

    Scenario ``"domain"`` is not offered: these data have no domains that have test images.

    Args:
        root: Folder of the files; ``None`` takes ``{folder}`` in Avalanche's data folder.
        download: Fetch what is missing in ``root``.
        n_experiences: Number of experiences with equally many classes. ``None``: {n_experiences},
            or as many as ``classes_per_experience`` has.
        options: The others, see :class:`.StreamOptions`.

    Returns:
        The benchmark, see :func:`.make_benchmark`.

    Raises:
        ConfigError: An option that is out of range or makes no sense in the scenario.
        DataError: The files are missing or could not be downloaded; a split does not divide; images
            are not those of the manifest.
    """


@dataclass(frozen=True, kw_only=True)
class ClassOptions(StreamOptions):
    """What data without domains take."""

    scenario: Literal["class", "task", "online"] = "class"


@dataclass(frozen=True, kw_only=True)
class GlyphOptions(ClassOptions):
    """What is told by its orientation must not be mirrored: digits, letters, single garments."""

    augment: Augment = "none"


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
        options: What its builder takes beside the folder.
    """

    name: str
    about: str
    load: Callable[[Path, bool, bool], Loaded]
    folder: str
    files: str
    default_experiences: int | tuple[int, ...]
    options: type[ClassOptions] = ClassOptions

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
            *, root: Path | None = None, download: bool = True, options: ClassOptions
        ) -> CLScenario:
            chosen, default = vars(options), self.default_experiences
            if options.n_experiences is None and options.classes_per_experience is None:
                chosen = chosen | (
                    {"n_experiences": default}
                    if isinstance(default, int)
                    else {"classes_per_experience": list(default)}
                )
            train, test, class_names = self.get(root, download)
            return make_benchmark(train, test, class_names=class_names, **chosen)

        build.__name__ = build.__qualname__ = self.name
        build.__doc__ = _DOC.format(
            about=self.about,
            folder=self.folder,
            n_experiences=self.default_experiences
            if isinstance(self.default_experiences, int)
            else f"``classes_per_experience={list(self.default_experiences)}``",
        )
        return takes(self.options)(build)
