"""Class-, task- and domain-incremental and online streams as Avalanche benchmarks."""

from avalanche_peftcl.benchmarks.classic import (
    cifar10,
    cifar100,
    core50,
    cub200,
    fashion_mnist,
    mnist,
    tiny_imagenet,
)
from avalanche_peftcl.benchmarks.datasets import ImageArray, ImageFiles
from avalanche_peftcl.benchmarks.digits import digits
from avalanche_peftcl.benchmarks.image_folder import image_folder
from avalanche_peftcl.benchmarks.scenarios import make_benchmark
from avalanche_peftcl.benchmarks.transforms import eval_transform, train_transform

__all__ = [
    "ImageArray",
    "ImageFiles",
    "cifar10",
    "cifar100",
    "core50",
    "cub200",
    "digits",
    "eval_transform",
    "fashion_mnist",
    "image_folder",
    "make_benchmark",
    "mnist",
    "tiny_imagenet",
    "train_transform",
]
