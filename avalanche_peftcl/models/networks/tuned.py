"""One adapted pass and one head, beside it the frozen pass if wanted: what most methods are."""

from collections.abc import Iterable

from torch import Tensor

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import Backbone, check_backbone
from avalanche_peftcl.models.block_features import FeatureKind, feature_width
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import exportable
from avalanche_peftcl.models.heads.head import Head, HeadBuilder
from avalanche_peftcl.models.heads.linear import LinearHead
from avalanche_peftcl.models.heads.rows import ClassRows
from avalanche_peftcl.models.networks.dynamic import DynamicModel
from avalanche_peftcl.models.passes import forward_branches
from avalanche_peftcl.models.sections import Sections


@exportable
class PEFTModel(DynamicModel):
    """A frozen backbone, one :class:`Branch` through it, and a head.

    Where the head is fitted, ``proxies`` can train in its place: they classify what the branch
    pools in train mode, the head classifies in eval mode.

    Args:
        backbone: The frozen network.
        branch: The modules that train; ``Branch()`` trains the head alone.
        head: The classifier, or what builds it for the width of what it reads; ``None`` takes a
            :class:`LinearHead`.
        proxies: Trained head that stands for a fitted one in train mode, or what builds it.
        features: What the head reads of the branch: what it pools, every block, or some of them,
            see :func:`.block_features`.
        frozen_section: What it reads of the frozen network beside that; ``None`` for nothing.

    Attributes:
        sections: What the head reads, see :class:`.Sections`.

    Raises:
        ConfigError: If there are proxies for a head that trains, blocks are read that the network
            has not, a head is of another width than what it reads, or the backbone is none; or if
            the branch trains the text side and no head reads it.

    Example:
        >>> import torch
        >>> from avalanche_peftcl.models import AdapterBranch, create_backbone
        >>> backbone = create_backbone("vit_tiny_patch16_224", img_size=32)
        >>> model = PEFTModel(backbone, AdapterBranch(192, 12))
        >>> model.start_experience([(0, 0), (0, 1), (0, 2)])
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        backbone: Backbone,
        branch: Branch,
        head: Head | HeadBuilder | None = None,
        *,
        proxies: Head | HeadBuilder | None = None,
        features: FeatureKind = "pooled",
        frozen_section: FeatureKind | None = None,
    ) -> None:
        super().__init__()
        check_backbone(backbone)
        self.backbone = backbone
        self.branch = branch
        self.unadapted = None if frozen_section is None else Branch()
        self._read: list[FeatureKind] = [features]
        widths, moving = [feature_width(backbone, branch, features)], [True]
        if frozen_section is not None:
            self._read.insert(0, frozen_section)
            widths.insert(0, feature_width(backbone, branch, frozen_section))
            moving.insert(0, False)
        unit_norm = self._read != ["pooled"]
        self.sections = Sections(widths, moving=moving, unit_norm=unit_norm)
        self.classes = ClassRows()
        self.head: Head = _built(head or LinearHead, self.sections.width)
        self.proxies = None
        if proxies is not None:
            self.proxies = _built(proxies, branch.out_features(backbone))
            if self.proxies.fitted or not self.head.fitted:
                raise ConfigError(
                    f"a {type(self.proxies).__name__} as proxies of a {type(self.head).__name__}: "
                    "proxies are trained for a head that is fitted; leave them out"
                )
        side = branch.text_side(backbone)
        own = [head for head in (self.proxies, self.head) if head is not None]  # not a subclass's
        read = [side is backbone or head.read_texts(side) for head in own]
        if not any(read):
            raise ConfigError(
                f"the module trains the text side, which a {type(self.head).__name__} does not "
                "read; take head 'zero_shot', or tower: image"
            )

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The frozen pass, if it is read, and the branch."""
        return (self.branch,) if self.unadapted is None else (self.unadapted, self.branch)

    @property
    def heads(self) -> tuple[Head, ...]:
        """The proxies, if there are any, and the head."""
        return (self.head,) if self.proxies is None else (self.proxies, self.head)

    @property
    def moving(self) -> list[slice]:
        """Which columns of what the head reads move when the branch trains."""
        return self.sections.moving

    def start_experience(self, pairs: Iterable[tuple[int, int]], *, fresh: bool = True) -> None:
        """Make room for the ``(task label, class)`` pairs of an experience; old rows stay."""
        rows = self.classes.add(pairs)
        for head in self.heads:
            head.grow(len(self.classes))
            head.learn_rows(rows)

    def embed(self, images: Tensor) -> Tensor:
        """Return what is classified: ``(B, 3, H, W)`` to ``(B, D)``.

        In train mode it is for the proxies, if there are any.
        """
        if self.training and self.proxies is not None:
            return forward_branches(self.backbone, [self.branch], images)[0]
        front = [] if self.unadapted is None else [self.unadapted]
        passes = [*front, self.branch]
        read = forward_branches(self.backbone, passes, images, features=self._read)
        features: Tensor = self.sections(read)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Return a logit a row: ``(B, D)`` to ``(B, R)``."""
        by_proxy = self.training and self.proxies is not None
        logits: Tensor = self.heads[0 if by_proxy else -1](features)
        return logits


def _built(head: Head | HeadBuilder, width: int) -> Head:
    """Return a head of this width."""
    built = head if isinstance(head, Head) else head(width)
    if built.in_features != width:
        raise ConfigError(
            f"a {type(built).__name__} of width {built.in_features} cannot read features of width "
            f"{width}; give what builds it instead, such as its class"
        )
    return built
