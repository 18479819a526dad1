from pathlib import Path

import pytest
import torch

from avalanche_peftcl.models import Backbone, create_backbone

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def tiny_vit(**changes):
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}
    return create_backbone("vit_tiny_patch16_224", **(options | changes))


@pytest.fixture
def backbone() -> Backbone:
    """A frozen ViT of 3 blocks, 32 dimensions and 17 tokens with random weights."""
    torch.manual_seed(0)
    return tiny_vit()


@pytest.fixture
def make_backbone():
    """Build such a ViT with other sizes."""
    return tiny_vit


@pytest.fixture
def shared_data() -> Path:
    """The folder of real images and weights beside the repository; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder of real images and weights is not beside the repository")
    return SHARED_DATA
