"""Benchmarks of fitted heads.

``pytest -n0 -p benchmark -m slow tests/models/heads/test_head_cost.py``
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from avalanche_peftcl.errors import ConfigError

SCRIPT = Path(__file__).parents[3] / "examples" / "head_cost.py"
IMAGES, MINIBATCH, CLASSES = 256, 64, 10
HEADS = ("prototypes", "lda", "gaussian", "ridge", "random_ridge", "kernel_ridge")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("head_cost", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build


@pytest.fixture
def timed(request):
    """Return pytest-benchmark's fixture, whose name is that of a stream elsewhere here."""
    if not request.config.pluginmanager.hasplugin("benchmark"):
        pytest.skip("times are taken with -p benchmark")
    return request.getfixturevalue("benchmark")


@pytest.fixture(params=[768, 2304, 4608, 10_000])
def width(request):
    return request.param


@pytest.fixture(params=HEADS)
def new(request, build, width):
    """Return what makes a head that has seen nothing, and with it images and their classes."""

    def make():
        head = build(request.param, width)
        head.grow(CLASSES)
        return head.eval()

    try:
        read = make().in_features
    except ConfigError as refusal:
        pytest.skip(str(refusal))
    images = torch.randn(IMAGES, read, generator=torch.Generator().manual_seed(0))
    return make, images, torch.arange(IMAGES) % CLASSES


def observe(head, images, classes):
    for rows, targets in zip(images.split(MINIBATCH), classes.split(MINIBATCH), strict=True):
        head.observe(rows, targets)
    return head


@torch.no_grad()
def test_observe(timed, new):
    make, images, classes = new
    head = timed.pedantic(observe, setup=lambda: ((make(), images, classes), {}), rounds=1)
    head.settle()
    assert head(images[:2]).isfinite().all()


@torch.no_grad()
def test_settle(timed, new):
    make, images, classes = new
    seen = observe(make(), images, classes)
    timed.pedantic(seen.settle, rounds=1)
    assert (seen(images).argmax(1) == classes).float().mean() > 2 / CLASSES
