"""Data sets that every continual-learning paper uses, with the transforms of a backbone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.benchmarks.datasets import CUB200, TinyImagenet
from torchvision.datasets import (
    CIFAR10,
    CIFAR100,
    MNIST,
    SVHN,
    EuroSAT,
    FashionMNIST,
    OxfordIIITPet,
)

from avalanche_peftcl.benchmarks.images.datasets import ImageArray, ImageFiles
from avalanche_peftcl.benchmarks.images.folders import draw_test
from avalanche_peftcl.benchmarks.sources.download import Download, GlyphOptions, Loaded

_EUROSAT_TEST = 0.2


def _arrays(dataset_class: Any) -> Callable[[Path, bool, bool], Loaded]:
    def load(root: Path, train: bool, download: bool) -> Loaded:
        dataset = dataset_class(root, train=train, download=download)
        images = ImageArray(np.asarray(dataset.data), np.asarray(dataset.targets).tolist())
        return images, list(dataset.classes)

    return load


def _svhn(root: Path, train: bool, download: bool) -> Loaded:
    dataset = SVHN(root, split="train" if train else "test", download=download)
    images = np.ascontiguousarray(dataset.data.transpose(0, 2, 3, 1))  # (n, 32, 32, 3)
    return ImageArray(images, dataset.labels.tolist()), [str(digit) for digit in range(10)]


def _tiny_imagenet(root: Path, train: bool, download: bool) -> Loaded:
    dataset = TinyImagenet(root, train=train, download=download)
    pairs = sorted(zip(dataset.targets, dataset.data, strict=True))  # upstream: order of the disk
    names = [dataset.id2label[label] for label in sorted(dataset.id2label)]
    paths, labels = [path for _, path in pairs], [label for label, _ in pairs]
    return ImageFiles(paths, labels, root=root), names


def _cub200(root: Path, train: bool, download: bool) -> Loaded:
    dataset = CUB200(root, train=train, download=download)
    folder = root / CUB200.images_folder
    paths = [folder / row[0] for row in dataset._images]
    labels = [int(row[1]) for row in dataset._images]
    return ImageFiles(paths, labels, root=root), folder_names(paths, labels)


def _oxford_pets(root: Path, train: bool, download: bool) -> Loaded:
    dataset = OxfordIIITPet(root, split="trainval" if train else "test", download=download)
    paths = [Path(path) for path in dataset._images]
    return ImageFiles(paths, dataset._labels, root=root), list(dataset.classes)


def _eurosat(root: Path, train: bool, download: bool) -> Loaded:
    dataset = EuroSAT(root, download=download)
    rows = []
    for label, name in enumerate(dataset.classes):
        own = [Path(path) for path, y in dataset.samples if y == label]
        own.sort(key=lambda path: path.name)
        split = draw_test(own, _EUROSAT_TEST, what=f"the EuroSAT class {name}")
        rows += [(path, label) for path in split[0 if train else 1]]
    paths, labels = [path for path, _ in rows], [label for _, label in rows]
    return ImageFiles(paths, labels, root=root), list(dataset.classes)


def folder_names(paths: list[Path], labels: list[int]) -> list[str]:
    """Return the name of each label: the folder of its images."""
    names = {label: path.parent.name for path, label in zip(paths, labels, strict=True)}
    return [names.get(label, str(label)) for label in range(max(names, default=-1) + 1)]


MNIST_FILES = Download(
    "mnist",
    "MNIST: 10 handwritten digits, 28 pixels, 60,000 train and 10,000 test images.",
    _arrays(MNIST),
    folder="mnist",
    files="the four idx files as MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    default_experiences=5,
    options=GlyphOptions,
)
FASHION_MNIST_FILES = Download(
    "fashion_mnist",
    "Fashion-MNIST: 10 kinds of clothes, 28 pixels, 60,000 train and 10,000 test images.",
    _arrays(FashionMNIST),
    folder="fashionmnist",
    files="the four idx files as FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte",
    default_experiences=5,
    options=GlyphOptions,
)
SVHN_FILES = Download(
    "svhn",
    "SVHN: 10 digits of house numbers, 32 pixels, 73,257 train and 26,032 test images.",
    _svhn,
    folder="svhn",
    files="train_32x32.mat and test_32x32.mat",
    default_experiences=5,
    options=GlyphOptions,
)
CIFAR10_FILES = Download(
    "cifar10",
    "CIFAR-10: 10 classes, 32 pixels, 50,000 train and 10,000 test images.",
    _arrays(CIFAR10),
    folder="cifar10",
    files="the folder cifar-10-batches-py of cifar-10-python.tar.gz",
    default_experiences=5,
)
mnist = MNIST_FILES.builder()
fashion_mnist = FASHION_MNIST_FILES.builder()
svhn = SVHN_FILES.builder()
cifar10 = CIFAR10_FILES.builder()
cifar100 = Download(
    "cifar100",
    "CIFAR-100: 100 classes, 32 pixels, 50,000 train and 10,000 test images.",
    _arrays(CIFAR100),
    folder="cifar100",
    files="the folder cifar-100-python of cifar-100-python.tar.gz",
    default_experiences=10,
).builder()
tiny_imagenet = Download(
    "tiny_imagenet",
    "Tiny-ImageNet: 200 classes, 64 pixels; its 10,000 validation images are the test images.",
    _tiny_imagenet,
    folder="tinyimagenet",
    files="the folder tiny-imagenet-200 of tiny-imagenet-200.zip",
    default_experiences=10,
).builder()
cub200 = Download(
    "cub200",
    "CUB-200-2011: 200 birds, whole images (Avalanche's own benchmark cuts out the bird).",
    _cub200,
    folder="CUB_200_2011",
    files="the folder CUB_200_2011 of CUB_200_2011.tgz",
    default_experiences=10,
).builder()
oxford_pets = Download(
    "oxford_pets",
    "Oxford-IIIT Pet: 37 breeds of cats and dogs, 3,680 train and 3,669 test images.",
    _oxford_pets,
    folder="oxford_pets",
    files="the folders images and annotations of the two archives, in a folder oxford-iiit-pet,",
    default_experiences=(7, 5, 5, 5, 5, 5, 5),
).builder()
eurosat = Download(
    "eurosat",
    "EuroSAT: 10 kinds of land from Sentinel-2, 64 pixels, 27,000 images; of each class a fifth,"
    " drawn by :func:`.folders.draw_test`, are the test images.",
    _eurosat,
    folder="eurosat",
    files="the folder 2750 of EuroSAT.zip, in a folder eurosat,",
    default_experiences=5,
).builder()
