"""Benchmarks that break their contract, each in one way; the test of that name must notice."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from avalanche_peftcl.benchmarks import ImageArray, make_benchmark
from avalanche_peftcl.testing import BenchmarkContract, toy_images


class Honest(BenchmarkContract):
    """Coloured noise in an order that a seed decides."""

    def create_benchmark(self, input_config, *, seed, train=None, test=None, **options):
        return make_benchmark(
            train or toy_images(),
            test or toy_images(seed=1),
            input_config=input_config,
            n_experiences=3,
            seed=seed,
            **options,
        )


class SaysOtherClasses(Honest):
    def create_benchmark(self, input_config, *, seed):
        made = super().create_benchmark(input_config, seed=seed)
        made.train_stream = list(made.train_stream)
        made.train_stream[0].classes_in_this_experience = [4, 5]
        return made


class IsLarger(Honest):
    def create_benchmark(self, input_config, *, seed):
        return super().create_benchmark(replace(input_config, img_size=24), seed=seed)


class ArrivesBackwards(Honest):
    def create_benchmark(self, input_config, *, seed):
        made = super().create_benchmark(input_config, seed=seed)
        made.test_stream = list(made.test_stream)[::-1]
        return made


class NamesFewer(Honest):
    def create_benchmark(self, input_config, *, seed):
        made = super().create_benchmark(input_config, seed=seed)
        made.class_names = made.class_names[:-1]
        return made


class DrawsItsOrder(Honest):
    def create_benchmark(self, input_config, *, seed):
        return super().create_benchmark(input_config, seed=int.from_bytes(np.random.bytes(2)))


class DrawsItsImages(Honest):
    """Has labels in a fixed order, and other noise each time."""

    def create_benchmark(self, input_config, *, seed):
        train = toy_images(seed=int.from_bytes(np.random.bytes(2)))
        return super().create_benchmark(input_config, seed=seed, train=train)


class SeedsTheWorld(Honest):
    def create_benchmark(self, input_config, *, seed):
        torch.manual_seed(seed)
        return super().create_benchmark(input_config, seed=seed)


class Flickering(ImageArray):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image ^ np.random.randint(0, 8, image.shape, dtype=np.uint8), label


class Flickers(Honest):
    which = "test"

    def create_benchmark(self, input_config, *, seed):
        images = toy_images()
        flickering = {self.which: Flickering(images.images, images.targets)}
        return super().create_benchmark(input_config, seed=seed, **flickering)


class FlickersInTraining(Flickers):
    which = "train"


class LeavesAClassUntested(Honest):
    def create_benchmark(self, input_config, *, seed):
        made = super().create_benchmark(input_config, seed=seed)
        made.test_stream = list(made.test_stream)[:-1]
        return made


VIOLATORS = [
    ("test_minibatches", SaysOtherClasses),
    ("test_minibatches", IsLarger),
    ("test_class_ids_are_contiguous_in_order_of_arrival", ArrivesBackwards),
    ("test_class_order_is_told", NamesFewer),
    ("test_seed_decides", DrawsItsOrder),
    ("test_seed_decides", DrawsItsImages),
    ("test_no_global_generator_is_touched", SeedsTheWorld),
    ("test_test_images_do_not_change", Flickers),
    ("test_test_images_do_not_change", FlickersInTraining),
    ("test_every_test_class_is_trained", LeavesAClassUntested),
]


@pytest.mark.parametrize(("name", "violator"), VIOLATORS)
def test_noticed(notices, name, violator):
    assert notices(name, Honest, violator)


def test_every_contract_test_has_a_violator(contract_tests):
    assert {name for name, _ in VIOLATORS} == contract_tests(BenchmarkContract)
