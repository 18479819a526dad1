"""A linear bottleneck behind the whole image network: z + U D z."""

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from avalanche_peftcl.models.backbones.backbone import Backbone, out_features
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.projection.sites import ProjectionSite, linear_sites
from avalanche_peftcl.registry.ranges import Width

Start = Literal["identity", "released"]


class LinearAdapterBranch(Branch):
    r"""A pass through the frozen network, and a bottleneck without biases behind its pooling.

    .. math:: z \mapsto z + U y, \qquad y = D z

    Old features stay as they are if :math:`\Delta D\,z = 0` and :math:`\Delta U\,y = 0`. Heads that
    read tokens of blocks (``features``) see nothing of it.

    Args:
        out_features: ``E``, width of what the backbone pools.
        r: Width of the bottleneck.
        start: How :math:`U` starts: ``"identity"`` at 0, so that features are those of the frozen
            network; ``"released"`` drawn as torch draws linear layers.

    Source:
        Qiao et al., arXiv 2405.13383, eqs. (5) and (14), the adapter on CLIP; released code
        JingyangQiao/PEGP 842bc7e (``clip_pegp_linear``).
        Differs: starts as the identity unless told otherwise.

    Example:
        >>> import torch
        >>> from avalanche_peftcl.models import create_backbone, forward_branches
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32, depth=1)
        >>> branch, images = LinearAdapterBranch(192), torch.randn(2, 3, 32, 32)
        >>> (features,) = forward_branches(backbone, [branch], images)
        >>> torch.allclose(features, backbone(images), atol=1e-5)
        True
        >>> [site.name for site in branch.projection_sites()]
        ['down.weight', 'up.weight']
    """

    adapts_pooled = True

    def __init__(self, out_features: int, *, r: int = 5, start: Start = "identity") -> None:
        super().__init__()
        self.down = nn.Linear(out_features, r, bias=False)
        self.up = nn.Linear(r, out_features, bias=False)
        if start == "identity":
            nn.init.zeros_(self.up.weight)

    def pool(self, backbone: Backbone, tokens: Any) -> Tensor:
        """Return the adapted feature, ``(B, E)``."""
        z = super().pool(backbone, tokens)
        added: Tensor = self.up(self.down(z))
        return z + added

    def projection_sites(self) -> Iterator[ProjectionSite]:
        """State what must hold for the features of old images to stay."""
        yield from linear_sites("down", self.down)
        yield from linear_sites("up", self.up)


@exportable
def build_linear_adapter(
    *, backbone: Backbone, r: Width = 5, start: Start = "identity"
) -> LinearAdapterBranch:
    """Build a :class:`LinearAdapterBranch` that fits ``backbone``."""
    return LinearAdapterBranch(out_features(backbone), r=r, start=start)
