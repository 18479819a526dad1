"""Class-, task- and domain-incremental and online streams as Avalanche benchmarks."""

from avalanche_peftcl.benchmarks.images.captioned import CaptionedImages
from avalanche_peftcl.benchmarks.images.contents import Contents, Entry
from avalanche_peftcl.benchmarks.images.datasets import ImageArray, ImageFiles, JoinedImages
from avalanche_peftcl.benchmarks.images.manifest import (
    check_manifest,
    manifest_sha256,
    read_manifest,
    split_sha256,
    write_manifest,
)
from avalanche_peftcl.benchmarks.sources.classic import (
    cifar10,
    cifar100,
    cub200,
    eurosat,
    fashion_mnist,
    mnist,
    oxford_pets,
    svhn,
    tiny_imagenet,
)
from avalanche_peftcl.benchmarks.sources.core50 import core50
from avalanche_peftcl.benchmarks.sources.digits import digits
from avalanche_peftcl.benchmarks.sources.five_datasets import five_datasets
from avalanche_peftcl.benchmarks.sources.hf_dataset import hf_dataset
from avalanche_peftcl.benchmarks.sources.image_folder import image_folder
from avalanche_peftcl.benchmarks.sources.image_list import image_list
from avalanche_peftcl.benchmarks.sources.image_text import image_text
from avalanche_peftcl.benchmarks.stream.captioned import CaptionOptions, make_captioned
from avalanche_peftcl.benchmarks.stream.likeness import class_means, order_by_likeness
from avalanche_peftcl.benchmarks.stream.make_benchmark import make_benchmark
from avalanche_peftcl.benchmarks.stream.options import StreamOptions
from avalanche_peftcl.benchmarks.stream.transforms import Augment, eval_transform, train_transform

__all__ = [
    "Augment",
    "CaptionOptions",
    "CaptionedImages",
    "Contents",
    "Entry",
    "ImageArray",
    "ImageFiles",
    "JoinedImages",
    "StreamOptions",
    "check_manifest",
    "cifar10",
    "cifar100",
    "class_means",
    "core50",
    "cub200",
    "digits",
    "eurosat",
    "eval_transform",
    "fashion_mnist",
    "five_datasets",
    "hf_dataset",
    "image_folder",
    "image_list",
    "image_text",
    "make_benchmark",
    "make_captioned",
    "manifest_sha256",
    "mnist",
    "order_by_likeness",
    "oxford_pets",
    "read_manifest",
    "split_sha256",
    "svhn",
    "tiny_imagenet",
    "train_transform",
    "write_manifest",
]
