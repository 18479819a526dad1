"""A set of adapters for each experience: the newest trains, those before stay as they are."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avalanche_peftcl.models import Adapter, AdapterBranch, Backbone, Branch, Embedded


class AdapterSet(AdapterBranch):
    """Adapters that know of which experience they are.

    Attributes:
        begun: Number of the experience that they heard of last, 0 before.
    """

    begun: Tensor

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.register_buffer("begun", torch.zeros((), dtype=torch.long))

    def start_experience(self, number: int) -> None:
        """Note the number."""
        self.begun.fill_(number)


class AdapterSets(nn.ModuleList):
    """Adapters beside the MLP of every block, one :class:`AdapterSet` an experience.

    There is one set from the beginning. A state dict with more of them brings them along.

    Args:
        embed_dim: Width ``D`` of a token.
        depth: Number ``L`` of blocks.
        r: Width of the bottleneck.
        scale: Factor of an adapter's output.
        dropout: Probability of the dropout, in training.

    Example:
        >>> sets = AdapterSets(8, 2, r=2)
        >>> sets.open()
        >>> [any(p.requires_grad for p in each.parameters()) for each in sets]
        [False, True]
    """

    def __init__(
        self, embed_dim: int, depth: int, *, r: int, scale: float = 0.1, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self._made_of = (embed_dim, depth), {"r": r, "scale": scale, "dropout": dropout}
        self.open()

    def open(self) -> None:
        """Freeze what there is and put a new set behind it."""
        sizes, options = self._made_of
        new = AdapterSet(*sizes, **options).train(self.training)
        for old in self.parameters():
            new.to(old.device)
            old.grad = None  # of its last step
        self.requires_grad_(False)
        self.append(new)

    @property
    def newest(self) -> AdapterSet:
        """The set of the experience that trains, or of the last one."""
        return cast(AdapterSet, self[-1])

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        inside = [name[len(prefix) :] for name in state_dict if name.startswith(prefix)]
        with torch.random.fork_rng(devices=[]):  # values come from the state
            for _ in range(len(self), len({name.partition(".")[0] for name in inside})):
                self.open()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class MergedWeights(NamedTuple):
    """Weights of one adapter's copy: down ``(r, D)`` and ``(r,)``, up ``(D, r)`` and ``(D,)``."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    def forward(self, adapter: Adapter, tokens: Tensor) -> Tensor:
        """Return what the adapter would add to ``tokens`` with these weights."""
        hidden = adapter.dropout(F.linear(tokens, self.down, self.down_bias).relu())
        added: Tensor = F.linear(hidden, self.up, self.up_bias) * adapter.scale
        return added


class MergedBranch(Branch):
    r"""A pass through one of several sets, of the newest through a copy merged with the others.

    .. math:: a\,\theta_T + (1 - a)\,\frac 1 {T - 1} \sum_{t < T} \theta_t

    The copy is made in each pass and gradients go through it to :math:`\theta_T`; nothing is
    written. :meth:`settle` is what writes, once a set is done.

    Args:
        sets: The sets; they are not the branch's own.
        number: Which one, from 0.
        share: ``a`` in ``[0, 1]``.

    Source:
        Sun et al., MOS, AAAI 2025. Differs: see :func:`.build_mos`.

    Example:
        >>> sets = AdapterSets(8, 1, r=2)
        >>> sets.open()
        >>> before = sets.newest.adapters[0].down.weight.clone()
        >>> branch = MergedBranch(sets, 1, share=0.9)
        >>> expected = 0.9 * before + 0.1 * sets[0].adapters[0].down.weight
        >>> torch.allclose(branch.merged()[0].down, expected)
        True
        >>> torch.equal(sets.newest.adapters[0].down.weight, before)
        True
    """

    def __init__(self, sets: AdapterSets, number: int, *, share: float) -> None:
        super().__init__()
        self._sets = (sets,)  # no child: its parameters are the network's
        self.number, self.share = number, share

    @property
    def adapters(self) -> nn.ModuleList:
        """The adapters of the set, one a block."""
        (sets,) = self._sets
        return cast(AdapterBranch, sets[self.number]).adapters

    def merged(self) -> list[MergedWeights]:
        """Return the weights of each block's adapter."""
        (sets,) = self._sets
        merges = self.number and self.number == len(sets) - 1
        earlier = [cast(AdapterBranch, sets[t]) for t in range(self.number)] if merges else []
        weights = []
        for i, adapter in enumerate(self.adapters):
            own = _weights(adapter)
            if earlier:
                others = [_weights(each.adapters[i]) for each in earlier]
                means = [torch.stack(part).mean(dim=0) for part in zip(*others, strict=True)]
                pairs = zip(own, means, strict=True)
                own = MergedWeights(*(self.share * p + (1 - self.share) * m for p, m in pairs))
            weights.append(own)
        return weights

    @torch.no_grad()
    def settle(self) -> None:
        """Let the merged copy take the place of the set."""
        for adapter, merged in zip(self.adapters, self.merged(), strict=True):
            for here, value in zip(_weights(adapter), merged, strict=True):
                here.copy_(value)

    def begin(self, backbone: Backbone, embedded: Embedded) -> list[MergedWeights]:
        """Merge."""
        return self.merged()

    def enter(
        self, backbone: Backbone, hidden: Tensor, output: Tensor, *, context: Any = None
    ) -> Tensor:
        """Add the first adapter to the frozen output of the first block."""
        weights: MergedWeights = context[0]
        return output + weights.forward(cast(Adapter, self.adapters[0]), hidden)

    def step(
        self, backbone: Backbone, index: int, hidden: Tensor, *, context: Any = None
    ) -> Tensor:
        """Run the MLP of block ``index`` with its adapter beside it."""
        weights: MergedWeights = context[index]
        added = weights.forward(cast(Adapter, self.adapters[index]), hidden)
        return hidden + backbone.feed(index, hidden) + added


def _weights(adapter: nn.Module) -> MergedWeights:
    down, up = (cast(nn.Linear, part) for part in (adapter.down, adapter.up))
    return MergedWeights(down.weight, down.bias, up.weight, up.bias)
