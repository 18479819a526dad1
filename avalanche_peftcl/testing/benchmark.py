"""What every benchmark must do."""

import random
from typing import Any

import numpy as np
import torch

from avalanche_peftcl.models import InputConfig
from avalanche_peftcl.registry.offers import BenchmarkOffers


class BenchmarkContract:
    """Subclass, write :meth:`create_benchmark`, and the suite is yours.

    Example:
        >>> from avalanche_peftcl.benchmarks import make_benchmark
        >>> from avalanche_peftcl.testing import toy_images
        >>> class TestToys(BenchmarkContract):
        ...     def create_benchmark(self, input_config, *, seed):
        ...         images = toy_images(), toy_images(seed=1)
        ...         return make_benchmark(
        ...             *images, input_config=input_config, n_experiences=3, seed=seed
        ...         )
        >>> TestToys().test_minibatches()
    """

    def create_benchmark(self, input_config: InputConfig, *, seed: int) -> Any:
        """Return the benchmark under test."""
        raise NotImplementedError

    def build(self, seed: int = 0) -> Any:
        """Return the benchmark for images of 16 pixels."""
        return self.create_benchmark(InputConfig(img_size=16), seed=seed)

    def test_minibatches(self) -> None:
        """Images come as ``(x, y, t)`` with three channels and the size of the input config."""
        benchmark = self.build()
        for stream in (benchmark.train_stream, benchmark.test_stream):
            for experience in stream:
                x, y, t = experience.dataset[0]
                assert x.shape == (3, 16, 16)
                assert x.dtype == torch.float32
                assert int(y) in experience.classes_in_this_experience
                assert int(t) in experience.task_labels

    def test_class_ids_are_contiguous_in_order_of_arrival(self) -> None:
        """The first experience starts at class 0 and no id is left out.

        Of captioned images the ids are those of training images, then of test images.
        """
        benchmark = self.build()
        captioned = BenchmarkOffers.of(benchmark).captions is not None
        first = list(benchmark.train_stream) if captioned else []
        seen: list[int] = []
        for experience in [*first, *benchmark.test_stream]:
            new = sorted(set(experience.classes_in_this_experience) - set(seen))
            assert new == list(range(len(seen), len(seen) + len(new)))
            seen += new
        assert seen

    def test_class_order_is_told(self) -> None:
        """``class_order`` and ``class_names`` say what each id stands for, or ``captions`` do."""
        benchmark = self.build()
        if (captions := BenchmarkOffers.of(benchmark).captions) is not None:
            n = sum(len(e.dataset) for s in benchmark.streams.values() for e in s)
            assert len(captions) == n
            assert all(texts and all(texts) for texts in captions)
            assert not hasattr(benchmark, "class_names")
            return
        n = 1 + max(c for e in benchmark.test_stream for c in e.classes_in_this_experience)
        assert len(benchmark.class_order) == len(benchmark.class_names) == n
        assert len(set(benchmark.class_order)) == n

    def test_seed_decides(self) -> None:
        """One seed gives one stream, of the same images in the same order."""
        one, two = self.build(seed=3), self.build(seed=3)
        for name in ("class_order", "captions"):
            assert getattr(one, name, None) == getattr(two, name, None)
        for a, b in zip(one.train_stream, two.train_stream, strict=True):
            assert list(a.dataset.targets) == list(b.dataset.targets)
            assert torch.equal(a.dataset.eval()[0][0], b.dataset.eval()[0][0])

    def test_no_global_generator_is_touched(self) -> None:
        """Building draws from generators of its own."""
        before = (
            random.getstate(),
            np.random.get_state(legacy=False)["state"]["key"].tolist(),
            torch.get_rng_state(),
        )
        self.build()
        assert random.getstate() == before[0]
        assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])

    def test_test_images_do_not_change(self) -> None:
        """A test image is the same each time; a training image too, with the test transforms."""
        benchmark = self.build()
        test, train = (s[0].dataset for s in (benchmark.test_stream, benchmark.train_stream))
        for dataset in (test, train.eval()):
            reads = [dataset[0][0] for _ in range(4)]
            assert all(torch.equal(reads[0], again) for again in reads)

    def test_every_test_class_is_trained(self) -> None:
        """Training and test streams hold the same classes; of captioned images no image."""
        benchmark = self.build()
        classes = [
            {int(y) for e in stream for y in e.dataset.targets}
            for stream in (benchmark.train_stream, benchmark.test_stream)
        ]
        if BenchmarkOffers.of(benchmark).captions is not None:
            assert not classes[0] & classes[1]
            return
        assert classes[0] == classes[1]
