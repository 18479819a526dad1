"""One adapted pass and one head: what most methods are."""

from collections.abc import Iterable

from torch import Tensor

from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.head import Head
from avalanche_peftcl.models.heads.linear import LinearHead
from avalanche_peftcl.models.heads.rows import ClassRows
from avalanche_peftcl.models.networks.dynamic import DynamicModel
from avalanche_peftcl.models.passes import forward_branches


@exportable
class PEFTModel(DynamicModel):
    """A frozen backbone, one :class:`Branch` through it, and a head.

    Args:
        backbone: The frozen network.
        branch: The modules that train; ``Branch()`` trains the head alone.
        head: The classifier; ``None`` takes a :class:`LinearHead` that fits.

    Example:
        >>> import torch
        >>> from avalanche_peftcl.models import AdapterBranch, create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> model = PEFTModel(backbone, AdapterBranch(192, 12))
        >>> model.start_experience([(0, 0), (0, 1), (0, 2)])
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])
    """

    def __init__(self, backbone: Backbone, branch: Branch, head: Head | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.branch = branch
        self.classes = ClassRows()
        self.head: Head = LinearHead(branch.out_features(backbone)) if head is None else head

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The branch."""
        return (self.branch,)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The head."""
        return (self.head,)

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
