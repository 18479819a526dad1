"""A network that embeds images and has no classes."""

from torch import Tensor, nn

from avalanche_peftcl.models.backbones.backbone import Backbone, check_backbone
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.passes import forward_branches


class ImageEncoder(nn.Module):
    """A frozen backbone and one :class:`Branch` through it; no head, and nothing that grows.

    Args:
        backbone: The frozen network.
        branch: The module that trains.

    Raises:
        ConfigError: If the backbone is none.

    Example:
        >>> import torch
        >>> from avalanche_peftcl.models import AdapterBranch, create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> encoder = ImageEncoder(backbone, AdapterBranch(192, 12))
        >>> encoder(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 192])
    """

    def __init__(self, backbone: Backbone, branch: Branch) -> None:
        super().__init__()
        check_backbone(backbone)
        self.backbone = backbone
        self.branch = branch

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branch, under the name that all networks have for theirs."""
        return (self.branch,)

    @property
    def forward_passes(self) -> int:
        """Passes through the backbone that an image costs."""
        return self.branch.forward_passes

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings, not normalised: ``(B, 3, H, W)`` to ``(B, E)``."""
        (embeddings,) = forward_branches(self.backbone, [self.branch], images)
        return embeddings
