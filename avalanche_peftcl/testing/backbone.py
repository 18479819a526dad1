"""What every backbone must do."""

import pytest
import torch
from torch import Tensor

from avalanche_peftcl.models import Backbone, Branch, forward_branches


class BackboneContract:
    """Subclass, write :meth:`create_backbone`, and the suite is yours.

    Example:
        >>> from avalanche_peftcl.testing import toy_backbone
        >>> class TestToy(BackboneContract):
        ...     def create_backbone(self):
        ...         return toy_backbone()
        >>> TestToy().test_frozen()
    """

    def create_backbone(self) -> Backbone:
        """Return the backbone under test, the same weights at each call."""
        raise NotImplementedError

    def images(self, backbone: Backbone, batch: int) -> Tensor:
        """Return ``batch`` images of the size that the backbone takes."""
        size = backbone.input_config.img_size
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, 3, size, size, generator=generator)

    def test_frozen(self) -> None:
        """No parameter trains and every module stays in eval mode."""
        backbone = self.create_backbone().train()
        assert not any(p.requires_grad for p in backbone.parameters())
        assert not any(m.training for m in backbone.modules())

    def test_shapes(self) -> None:
        """Tokens and features have the sizes that the properties tell."""
        backbone = self.create_backbone()
        for batch in (1, 3):
            images = self.images(backbone, batch)
            assert backbone(images).shape == (batch, backbone.embed_dim)
            tokens = (batch, backbone.num_tokens, backbone.embed_dim)
            assert backbone.embed(images).shape == tokens

    def test_parts_compose_to_the_whole(self) -> None:
        """The shared pass equals the network's own."""
        backbone = self.create_backbone()
        images = self.images(backbone, 2)
        (features,) = forward_branches(backbone, [Branch()], images)
        torch.testing.assert_close(features, backbone(images), atol=1e-4, rtol=1e-4)

    def test_same_weights_again(self) -> None:
        """Two builds are one network."""
        one, two = self.create_backbone().state_dict(), self.create_backbone().state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_precision(self, dtype: torch.dtype) -> None:
        """Features are finite in float32 and under bfloat16 autocast."""
        backbone = self.create_backbone()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            assert backbone(self.images(backbone, 2)).isfinite().all()

    def test_input_config(self) -> None:
        """The input config has a size, three means and three positive deviations."""
        config = self.create_backbone().input_config
        assert config.img_size > 0
        assert len(config.mean) == len(config.std) == 3
        assert min(config.std) > 0
        assert 0 < config.crop_pct <= 1
