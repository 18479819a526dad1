"""One adapted pass and one growing linear head: what sequential tuning trains."""

from collections.abc import Iterable

from torch import Tensor

from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.branch import Branch, forward_branches
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.heads import ClassRows, LinearHead, PrototypeHead
from avalanche_peftcl.models.networks.dynamic import DynamicModel


@exportable
class PEFTModel(DynamicModel):
    """A frozen backbone, one :class:`Branch` through it, and a linear head.

    Args:
        backbone: The frozen network.
        branch: The modules that train; ``Branch()`` trains the head alone.

    Example:
        >>> import torch
        >>> from avalanche_peftcl.models import AdapterBranch, create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> model = PEFTModel(backbone, AdapterBranch(192, 12))
        >>> model.start_experience([(0, 0), (0, 1), (0, 2)])
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])
    """

    def __init__(self, backbone: Backbone, branch: Branch) -> None:
        super().__init__()
        self.backbone = backbone
        self.branch = branch
        self.classes = ClassRows()
        self.head = LinearHead(backbone.embed_dim)

    def start_experience(self, pairs: Iterable[tuple[int, int]], *, fresh: bool = True) -> None:
        """Make room for the ``(task label, class)`` pairs of an experience; old rows stay."""
        self.classes.add(pairs)
        self.head.grow(len(self.classes))

    def embed(self, images: Tensor) -> Tensor:
        """Return the adapted features: ``(B, 3, H, W)`` to ``(B, D)``."""
        return forward_branches(self.backbone, [self.branch], images)[0]

    def classify(self, features: Tensor) -> Tensor:
        """Return a logit a row: ``(B, D)`` to ``(B, R)``."""
        logits: Tensor = self.head(features)
        return logits


@exportable
class PrototypeModel(DynamicModel):
    """A frozen backbone and the mean feature of each class; nothing trains.

    Args:
        backbone: The frozen network.

    Source:
        SimpleCIL: Zhou et al., IJCV 2024. Differs: nothing.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.classes = ClassRows()
        self.prototypes = PrototypeHead(backbone.embed_dim)

    def start_experience(self, pairs: Iterable[tuple[int, int]], *, fresh: bool = True) -> None:
        """Make room for the ``(task label, class)`` pairs of an experience."""
        self.classes.add(pairs)
        self.prototypes.grow(len(self.classes))

    def embed(self, images: Tensor) -> Tensor:
        """Return the frozen features: ``(B, 3, H, W)`` to ``(B, D)``."""
        features: Tensor = self.backbone(images)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Return a logit a row: ``(B, D)`` to ``(B, R)``."""
        logits: Tensor = self.prototypes(features)
        return logits
