"""Data sets that every continual-learning paper uses, with the transforms of a backbone."""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.datasets import (
    CUB200,
    CORe50Dataset,
    TinyImagenet,
    default_dataset_location,
)
from pydantic import Field
from torchvision.datasets import CIFAR10, CIFAR100, MNIST, FashionMNIST

from avalanche_peftcl.benchmarks.datasets import ImageFiles, LabelledImages
from avalanche_peftcl.benchmarks.scenarios import Count, Seed, make_benchmark
from avalanche_peftcl.benchmarks.splits import ClassOrder
from avalanche_peftcl.benchmarks.transforms import Augment
from avalanche_peftcl.errors import DataError
from avalanche_peftcl.models.backbone import InputConfig

_Loaded = tuple[LabelledImages, list[str]]  # images, and the name of each label

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

    Returns:
        The benchmark, see :func:`.scenarios.make_benchmark`.

    Raises:
        ConfigError: An option that is out of range or makes no sense in the scenario.
        DataError: The files are missing or could not be downloaded; a split does not divide.
    """


def _builder(
    name: str,
    about: str,
    load: Callable[[Path, bool, bool], _Loaded],
    *,
    folder: str,
    files: str,
    default_experiences: int,
    default_augment: Augment = "random_resized_crop",
) -> Callable[..., CLScenario]:
    """Return the builder of one data set; its keyword arguments are the options.

    Args:
        name: Name of the builder.
        about: What the data set is.
        load: Loads from (root, train or test, download).
        folder: Its folder in Avalanche's data folder.
        files: What has to lie in ``root``, for the message of a failed download.
        default_experiences: Number of experiences, unless told.
        default_augment: Augmentation, unless told.
    """

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
        augment: Augment = default_augment,
        crop_scale: tuple[float, float] = (0.05, 1.0),
        train_per_class: Count | None = None,
        validation_per_class: Annotated[int, Field(ge=0)] = 0,
    ) -> CLScenario:
        if n_experiences is None and classes_per_experience is None:
            n_experiences = default_experiences
        place = Path(default_dataset_location(folder) if root is None else root)
        try:
            with redirect_stdout(io.StringIO()):  # upstream prints its progress
                train, class_names = load(place, True, download)
                test, _ = load(place, False, download)
        except DataError:
            raise
        except Exception as error:  # downloads, archives and parsers raise every kind
            tried = "downloaded to" if download else "read from"
            raise DataError(
                f"{name} could not be {tried} {place} ({type(error).__name__}: {error}); "
                f"put {files} into a folder and give it as root=, with download=False"
            ) from error
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
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = _DOC.format(about=about, folder=folder, n_experiences=default_experiences)
    return build


def _torchvision(dataset_class: Any) -> Callable[[Path, bool, bool], _Loaded]:
    def load(root: Path, train: bool, download: bool) -> _Loaded:
        dataset = dataset_class(root, train=train, download=download)
        return dataset, list(dataset.classes)

    return load


def _tiny_imagenet(root: Path, train: bool, download: bool) -> _Loaded:
    dataset = TinyImagenet(root, train=train, download=download)
    pairs = sorted(zip(dataset.targets, dataset.data, strict=True))  # upstream: order of the disk
    names = [dataset.id2label[label] for label in sorted(dataset.id2label)]
    return ImageFiles([path for _, path in pairs], [label for label, _ in pairs]), names


def _cub200(root: Path, train: bool, download: bool) -> _Loaded:
    dataset = CUB200(root, train=train, download=download)
    folder = root / CUB200.images_folder
    paths = [folder / row[0] for row in dataset._images]
    labels = [int(row[1]) for row in dataset._images]
    return ImageFiles(paths, labels), _folder_names(paths, labels)


def _core50(root: Path, train: bool, download: bool) -> _Loaded:
    dataset = CORe50Dataset(root, train=train, download=download)
    paths = [root / "core50_128x128" / path for path in dataset.paths]
    labels = [int(label) for label in dataset.targets]
    return ImageFiles(paths, labels), _folder_names(paths, labels)


def _folder_names(paths: list[Path], labels: list[int]) -> list[str]:
    names = {label: path.parent.name for path, label in zip(paths, labels, strict=True)}
    return [names.get(label, str(label)) for label in range(max(names, default=-1) + 1)]


mnist = _builder(
    "mnist",
    "MNIST: 10 handwritten digits, 28 pixels, 60,000 train and 10,000 test images.",
    _torchvision(MNIST),
    folder="mnist",
    files="the four idx files as MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    default_experiences=5,
    default_augment="none",
)
fashion_mnist = _builder(
    "fashion_mnist",
    "Fashion-MNIST: 10 kinds of clothes, 28 pixels, 60,000 train and 10,000 test images.",
    _torchvision(FashionMNIST),
    folder="fashionmnist",
    files="the four idx files as FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    default_experiences=5,
    default_augment="none",
)
cifar10 = _builder(
    "cifar10",
    "CIFAR-10: 10 classes, 32 pixels, 50,000 train and 10,000 test images.",
    _torchvision(CIFAR10),
    folder="cifar10",
    files="the folder cifar-10-batches-py of cifar-10-python.tar.gz",
    default_experiences=5,
)
cifar100 = _builder(
    "cifar100",
    "CIFAR-100: 100 classes, 32 pixels, 50,000 train and 10,000 test images.",
    _torchvision(CIFAR100),
    folder="cifar100",
    files="the folder cifar-100-python of cifar-100-python.tar.gz",
    default_experiences=10,
)
tiny_imagenet = _builder(
    "tiny_imagenet",
    "Tiny-ImageNet: 200 classes, 64 pixels; its 10,000 validation images are the test images.",
    _tiny_imagenet,
    folder="tinyimagenet",
    files="the folder tiny-imagenet-200 of tiny-imagenet-200.zip",
    default_experiences=10,
)
cub200 = _builder(
    "cub200",
    "CUB-200-2011: 200 birds, whole images (Avalanche's own benchmark cuts out the bird).",
    _cub200,
    folder="CUB_200_2011",
    files="the folder CUB_200_2011 of CUB_200_2011.tgz",
    default_experiences=10,
)
core50 = _builder(
    "core50",
    "CORe50: 50 objects, 128 pixels, filmed in 11 sessions, of which 3, 7 and 10 are the test.",
    _core50,
    folder="core50",
    files=(
        "the folder core50_128x128, the folders of batches_filelists.zip, paths.pkl, LUP.pkl, "
        "labels.pkl and labels2names.pkl"
    ),
    default_experiences=10,
)
