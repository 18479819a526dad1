"""What every backbone must do."""

import pytest
import torch
from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models import Backbone, Branch, FrozenBranch, TextSide, forward_branches
from avalanche_peftcl.models.backbones.backbone import out_features
from avalanche_peftcl.testing.probes import differing, weights


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
        """Return ``batch`` images of the size that the backbone takes, always the same."""
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
            assert backbone(images).shape == (batch, out_features(backbone))
            tokens = (batch, backbone.num_tokens, backbone.embed_dim)
            assert backbone.embed(images).shape == tokens

    def test_parts_compose_to_the_whole(self) -> None:
        """The passes of branches equal the network's own, with all tokens and with those pooled."""
        backbone = self.create_backbone()
        images = self.images(backbone, 2)
        whole = backbone(images)
        for features in forward_branches(backbone, [FrozenBranch(), Branch()], images):
            torch.testing.assert_close(features, whole, atol=1e-4, rtol=1e-4)

    def test_images_are_independent(self) -> None:
        """An image has its feature alone, in another order, and beside other images."""
        backbone = self.create_backbone()
        images = self.images(backbone, 3)
        together = backbone(images)
        alone = torch.cat([backbone(image[None]) for image in images])
        back = backbone(images.flip(0)).flip(0)
        beside = backbone(torch.cat([images - 1, images]))[3:]
        for how, features in (("alone", alone), ("in reverse", back), ("beside others", beside)):
            assert torch.allclose(features, together, atol=1e-4, rtol=1e-4), how

    def test_passes_change_nothing(self) -> None:
        """Weights and buffers are after a pass what they were before."""
        backbone = self.create_backbone()
        before = weights(backbone)
        backbone(self.images(backbone, 2))
        assert not differing(weights(backbone), before)

    def test_same_weights_again(self) -> None:
        """Two builds are one network."""
        torch.manual_seed(0)
        one = weights(self.create_backbone())
        torch.manual_seed(1)
        assert not differing(one, weights(self.create_backbone()))

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

    def test_text_side(self) -> None:
        """If there is a text side, a class has one unit embedding, whatever the others are."""
        backbone = self.create_backbone()
        if not backbone.has_text:
            with pytest.raises(ConfigError, match="has no text side"):
                backbone.encode_text(["a cat"])
            return
        assert isinstance(backbone, TextSide)
        assert backbone.logit_scale > 0
        names, templates = ["cat", "dog", "ship"], ["a photo of a {}.", "{}"]
        texts = backbone.encode_text(names, templates)
        assert texts.shape == (3, backbone.out_features)
        assert not texts.requires_grad
        torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
        again = self.create_backbone()
        alone = torch.cat([again.encode_text([name], templates) for name in names])
        assert torch.equal(alone, texts)
        assert torch.equal(backbone.encode_text(names[1:]), again.encode_text(names)[1:])
