"""C-ADA: one adapter a block that grows new columns with each experience, the old ones frozen."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from avalanche_peftcl import takes
from avalanche_peftcl.models import AdapterBranch, Backbone, Branch, Embedded, PEFTModel, exportable
from avalanche_peftcl.training import PEFTTemplate, annealing, make_optimizer
from peftcl_adapters.adapter_sets import AdapterSets
from peftcl_adapters.options import Dropout, LearningRate, LocalOptions, Positive, Weight, Width
from peftcl_adapters.ssf import ScaleShift


def orthogonality(new: Tensor, old: Tensor) -> Tensor:
    r"""Return the mean squared inner product of new rows with old ones, a scalar.

    .. math:: \frac 1 {r\,k} \lVert W_{\text{new}} W_{\text{old}}^\top \rVert_F^2

    Args:
        new: ``(r, D)``.
        old: ``(k, D)``; where there are none it is 0.

    Example:
        >>> orthogonality(torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 5.0], [0.0, 3.0]]))
        tensor(2.)
    """
    return (new @ old.T).square().mean() if len(old) else new.new_zeros(())


class GrowingAdapterBranch(Branch):
    r"""A pass whose adapters grow: what an experience adds are new rows of ``D``, columns of ``U``.

    .. math:: \gamma \odot \bigl(h + \mathrm{MLP}(h)\bigr) + \beta
              + s \sum_t \bigl(U_t\,\mathrm{relu}(D_t h + b_t) + c_t\bigr)

    which is one adapter with the rows of all :math:`D_t` and the columns of all :math:`U_t`. The
    newest part trains, all others are frozen; scale and shift train with the first part alone. A
    part begins with each experience; where it is not known where they begin there is one.

    Args:
        embed_dim: Width of a token.
        depth: Number ``L`` of blocks.
        r: Rows that each part adds.
        scale: ``s``.
        dropout: Probability of the dropout, in training.
        weight: Of the term that keeps a new part orthogonal to the old ones.

    Attributes:
        sets: The parts, each of all blocks.
        shifts: Scale and shift of each block.
    """

    def __init__(
        self, embed_dim: int, depth: int, *, r: int, scale: float, dropout: float, weight: float
    ) -> None:
        super().__init__()
        self.sets = AdapterSets(embed_dim, depth, r=r, scale=scale, dropout=dropout)
        self.shifts = nn.ModuleList(ScaleShift(embed_dim) for _ in range(depth))
        self.weight = weight
        self.register_load_state_dict_post_hook(_hold_shifts)  # type: ignore[no-untyped-call]  # torch's own

    def start_experience(self, number: int) -> None:
        """Freeze what there is and begin a new part, with another experience than the last."""
        if int(self.sets.newest.begun) not in (0, number):
            self.sets.open()
            _hold_shifts(self)
        self.sets.newest.start_experience(number)

    def begin(self, backbone: Backbone, embedded: Embedded) -> None:
        """State the term of the loss."""
        if self.weight and len(self.sets) > 1:
            self.terms["orthogonality"] = self.weight * self.penalty()

    def penalty(self) -> Tensor:
        """Return the mean over blocks and both maps of :func:`orthogonality` to all old parts."""
        *old, new = (cast(AdapterBranch, each).adapters for each in self.sets)
        terms = []
        for index, adapter in enumerate(new):
            for of in (_down, _up):
                rows = torch.cat([of(part[index]) for part in old])
                terms.append(orthogonality(of(adapter), rows))
        return torch.stack(terms).mean()

    def enter(
        self, backbone: Backbone, hidden: Tensor, output: Tensor, *, context: Any = None
    ) -> Tensor:
        """Adapt the first block."""
        return self._adapt(0, hidden, output)

    def step(
        self, backbone: Backbone, index: int, hidden: Tensor, *, context: Any = None
    ) -> Tensor:
        """Adapt block ``index``."""
        return self._adapt(index, hidden, hidden + backbone.feed(index, hidden))

    def _adapt(self, index: int, hidden: Tensor, output: Tensor) -> Tensor:
        adapted: Tensor = self.shifts[index](output)
        for each in self.sets:
            adapted = adapted + cast(AdapterBranch, each).adapters[index](hidden)
        return adapted


def _hold_shifts(branch: nn.Module, incompatible: object = None) -> None:
    """Freeze scale and shift where there is more than the first part."""
    if len(cast(AdapterSets, branch.sets)) > 1:
        for p in cast(nn.ModuleList, branch.shifts).parameters():
            p.requires_grad_(False).grad = None


def _down(adapter: nn.Module) -> Tensor:
    return cast(nn.Linear, adapter.down).weight  # (r, D)


def _up(adapter: nn.Module) -> Tensor:
    return cast(nn.Linear, adapter.up).weight.T  # (r, D)


@exportable
def build_growing_adapters(
    *,
    backbone: Backbone,
    r: int = 16,
    scale: float = 0.1,
    dropout: float = 0.1,
    weight: float = 1.0,
) -> GrowingAdapterBranch:
    """Build a :class:`GrowingAdapterBranch` that fits ``backbone``."""
    width, depth = backbone.embed_dim, backbone.depth
    return GrowingAdapterBranch(width, depth, r=r, scale=scale, dropout=dropout, weight=weight)


@dataclass(frozen=True, kw_only=True)
class CADAOptions(LocalOptions):
    """Options of C-ADA; the published ones are not known to us, these are those of EASE."""

    lr: LearningRate = 0.025


@takes(CADAOptions)
def build_c_ada(
    *,
    backbone: Backbone,
    r: Width = 16,
    scale: Positive = 0.1,
    dropout: Dropout = 0.1,
    orthogonality_weight: Weight = 1.0,
    anneal: bool | None = None,
    options: CADAOptions,
) -> PEFTTemplate:
    """Build C-ADA from its description, for all scenarios.

    One adapter beside each MLP grows new columns with each experience; those of earlier ones are
    frozen, and all are used at test, so that nothing has to be chosen. A scale and a shift of each
    block's output, trained in the first experience, bring pretrained features to the stream's. A
    term keeps new columns orthogonal to old ones. A linear head learns among the classes of the
    experience.

    A step and a prediction cost one pass an image, with ``T r`` columns after ``T`` experiences.
    It keeps :math:`2 L D r` numbers an experience, and no statistics. The number of experiences
    need not be known.

    Args:
        backbone: The frozen network.
        r: Columns that an experience adds.
        scale: Factor of what adapters add.
        dropout: Probability of the adapters' dropout, in training.
        orthogonality_weight: Of the term, see :class:`GrowingAdapterBranch`.
        anneal: Whether the learning rate falls to 0 as a cosine; ``None`` is yes unless a plugin
            schedules it.
        options: What a strategy that trains takes.

    Source:
        Gao et al., C-ADA, ECCV 2024, **from its abstract and from memory**; there is no released
        code that we know of, and no number of the paper's is to be compared with this. Differs:
        in whatever the description leaves open. Ours are the form and the weight of the
        orthogonality term, the place of scale and shift, that these train together with the first
        columns and not before them, the head, its loss, and all rates and sizes.
    """
    branch = build_growing_adapters(
        backbone=backbone, r=r, scale=scale, dropout=dropout, weight=orthogonality_weight
    )
    model = PEFTModel(backbone, branch)
    optimizer = make_optimizer("sgd", model, **options.rates())
    own = annealing(optimizer, options.plugins, anneal=anneal, train_epochs=options.train_epochs)
    return PEFTTemplate(model=model, optimizer=optimizer, own_plugins=own, **options.template())
