"""Full fine-tuning: the blocks themselves train, in a copy; what all passes share stays frozen."""

from torch import nn

from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.backbones.vit import as_vit
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.modules.choose_blocks import choose_blocks
from avalanche_peftcl.models.modules.injection import key_of, view_of


class FullBranch(Branch):
    """A pass through blocks that train, all or some, and the final norm.

    They are copies in a view of the network, see :func:`.view_of`; the frozen ones stay beside
    them. To copy a branch, copy the model that holds it together with its backbone.

    Args:
        backbone: The frozen network; it is not changed.
        blocks: Which blocks train, from 0.

    Attributes:
        tuned: The modules that train, under their names with ``_`` for dots.

    Raises:
        ConfigError: If the network is no vision transformer of timm.

    Differs:
        The embedding of patches and positions does not train: all passes share it.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> branch = FullBranch(backbone, [1])
        >>> sum(p.numel() for p in branch.parameters()) == sum(
        ...     p.numel() for part in (backbone.vit.blocks[1], backbone.vit.norm)
        ...     for p in part.parameters()
        ... )
        True
    """

    def __init__(self, backbone: Backbone, blocks: list[int]) -> None:
        super().__init__()
        vit = as_vit(backbone, "full fine-tuning")
        norms = [n for n in ("norm", "fc_norm") if list(vit.vit.get_submodule(n).parameters())]
        names = [*(f"blocks.{index}" for index in blocks), *norms]

        def train(view: nn.Module) -> None:
            for name in names:
                view.get_submodule(name).requires_grad_(True)

        view = view_of(vit, train)
        object.__setattr__(self, "_view", view)  # no child: what is frozen is the backbone's
        self.tuned = nn.ModuleDict({key_of(n): view.vit.get_submodule(n) for n in names})
        self.shares_start = 0 not in blocks
        self.train()

    def network(self, backbone: Backbone) -> Backbone:
        """Return the view whose blocks train, whatever ``backbone`` is."""
        view: Backbone = vars(self)["_view"]
        return view


@exportable
def build_full(*, backbone: Backbone, blocks: list[int] | None = None) -> FullBranch:
    """Build a pass whose blocks train themselves: full fine-tuning, the dear end of all modules.

    Args:
        backbone: The frozen network, a vision transformer of timm.
        blocks: Which blocks, from 0; ``None`` takes all.

    Raises:
        ConfigError: If it is another network, or lacks such a block.

    Example:
        >>> from avalanche_peftcl.models import create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32, depth=2)
        >>> build_full(backbone=backbone).shares_start
        False
    """
    return FullBranch(backbone, choose_blocks(blocks, backbone.depth, default=backbone.depth))
