"""A text side of which little trains: a frozen tower, and what was put into a view of it."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.backbones.backbone import Backbone
from avalanche_peftcl.models.backbones.image_text import ImageTextBackbone
from avalanche_peftcl.models.backbones.text_tower import TextTower
from avalanche_peftcl.models.branch import Branch
from avalanche_peftcl.models.exportable import OnlyLearns
from avalanche_peftcl.models.modules.choose_blocks import choose_blocks
from avalanche_peftcl.models.modules.injection import brought_by, key_of, shared_copy
from avalanche_peftcl.models.modules.text_blocks import (
    PutIn,
    text_blocks,
    text_layers,
)
from avalanche_peftcl.models.modules.tuner_sites import tuner_sites
from avalanche_peftcl.models.projection.sites import ProjectionSite

Tower = Literal["image", "text", "both"]
"""Into which towers of a model of images and texts a module is put."""


class TunedText(OnlyLearns):
    r"""What encodes texts by a frozen tower and by what was put into a view of it.

    With gradient a text is computed each time; without, once as long as no weight changes, as
    :meth:`.TextTower.encode` does. A forward pass that is listened to is computed too.

    It is a :class:`.TextSide`. Whoever reads texts takes it from the branch that has it
    (:meth:`.Branch.text_side`). The frozen tower is not changed, and copies share it.

    Args:
        tower: The frozen tower.
        change: Puts layers of peft, adapters or prefixes (:class:`.PutIn`) into the view that it is
            given.
        logit_scale: Of the backbone.

    Attributes:
        tuners: What was put in, under the place's name with ``_`` for dots.

    Raises:
        ConfigError: If peft refuses, or other parameters would train than those that were put in.

    Source:
        Hu et al., arXiv 2106.09685; Chen et al., AdaptFormer, NeurIPS 2022; prefixes: Qiao et al.,
        arXiv 2405.13383; their place in a text tower: own. Differs: an adapter in open_clip's
        blocks reads what the MLP reads, after the norm.

    Example:
        >>> from avalanche_peftcl.models.modules.text_blocks import put_adapters
        >>> class Small(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.words = nn.Embedding(128, 4)
        ...         self.blocks = nn.ModuleList([nn.ModuleDict({"mlp": nn.Linear(4, 4)})])
        ...
        ...     def forward(self, tokens):
        ...         return self.blocks[0]["mlp"](self.words(tokens)).mean(dim=1)
        >>> def letters(texts):
        ...     return torch.tensor([list(text.encode()) for text in texts])
        >>> tower = TextTower(Small(), letters)
        >>> text = TunedText(
        ...     tower, lambda view: put_adapters(view, lambda width: nn.Linear(width, width))
        ... )
        >>> [name for name, _ in text.named_parameters()]
        ['tuners.blocks_0_mlp.weight', 'tuners.blocks_0_mlp.bias']
        >>> text.encode_text(["cat", "gnu"]).requires_grad
        True
    """

    has_text = True

    def __init__(
        self,
        tower: TextTower,
        change: Callable[[nn.Module], object],
        *,
        logit_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.logit_scale = logit_scale
        self._frozen = tower
        view = shared_copy(tower.module, change)
        object.__setattr__(self, "_view", view)  # no child: its weights are the backbone's
        shared = {id(module._parameters) for module in tower.module.modules()}
        parts = {
            key_of(name): brought_by(m, shared) if isinstance(m, BaseTunerLayer) else m.part
            for name, m in self.places()
        }
        self.tuners = nn.ModuleDict(parts)
        own = {id(p) for p in self.parameters()}
        further = [n for n, p in view.named_parameters() if p.requires_grad and id(p) not in own]
        if further:
            raise ConfigError(
                f"parameters outside the tuned layers of the text tower would train: "
                f"{', '.join(further[:3])}; use bias='none'"
            )
        self._tower = self._make_tower()

    def _make_tower(self) -> TextTower:
        held = [p for p in self.parameters() if p.requires_grad]
        frozen, view = self._frozen, self.__dict__["_view"]
        tower = TextTower(view, frozen.tokenize, masked=frozen.masked)  # which freezes all
        for p in held:
            p.requires_grad_(True)
        self.train(self.training)
        return tower

    def places(self) -> Iterator[tuple[str, Any]]:
        """Return the name and the module of every place where something was put in."""
        for name, module in self.__dict__["_view"].named_modules():
            if isinstance(module, BaseTunerLayer | PutIn):
                yield name, module

    @property
    def trains(self) -> bool:
        """Whether a parameter trains now."""
        return any(p.requires_grad for p in self.parameters())

    def encode_text(self, names: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Return the embedding of each class name, see :meth:`.TextSide.encode_text`.

        Raises:
            ConfigError: As :meth:`.TextTower.encode`.
        """
        if (torch.is_grad_enabled() and self.trains) or self._listening():
            return self._tower.compute(names, templates)
        mode = self.training
        self.eval()  # what is kept has no dropout
        try:
            return self._tower.encode(names, templates)
        finally:
            self.train(mode)

    def _listening(self) -> bool:
        modules = [*self.modules(), *(module for _, module in self.places())]
        return any(module._forward_pre_hooks for module in modules)

    def projection_sites(self) -> Iterator[ProjectionSite]:
        """State what must hold for the embeddings of old texts to stay.

        The features are those of the texts of all classes so far, with all their tokens. Adapters
        and prefixes say so themselves.
        """
        names = {id(p): name for name, p in self.named_parameters() if p.requires_grad}
        for _, module in self.places():
            if isinstance(module, BaseTunerLayer):
                for site in tuner_sites(module):
                    if id(site.parameter) in names:
                        yield replace(site, name=names[id(site.parameter)])

    def train(self, mode: bool = True) -> Self:
        """Set what was put in to training or evaluation; the frozen layers stay as is."""
        super().train(mode)
        for _, module in self.places():
            module.training = mode  # some tuners look here whether to drop
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        for module in self._frozen.module.modules():  # shared by copies, as the frozen tower is
            for held in (module._parameters, module._buffers):
                if held:
                    memo.setdefault(id(held), held)
        made = object.__new__(type(self))
        memo[id(self)] = made
        kept = {name: value for name, value in vars(self).items() if name != "_tower"}
        made.__dict__.update(copy.deepcopy(kept, memo))
        made._tower = made._make_tower()
        return made


def tune_text(branch: Branch, backbone: Backbone, change: Callable[[nn.Module], object]) -> Branch:
    """Put something into the text side of a branch.

    Where a backbone was built without its text side, as for an exported network, it stays as it is.

    Args:
        branch: A pass through the image tower.
        backbone: The frozen network.
        change: As of :class:`TunedText`.

    Returns:
        ``branch``, with its ``text``.

    Raises:
        ConfigError: If the backbone is of images alone, or as :class:`TunedText`.
    """
    if not isinstance(backbone, ImageTextBackbone):
        raise ConfigError(
            f"a {type(backbone).__name__} has no text tower that a module can be put into; take "
            "backbone 'open_clip' or 'dual_encoder', or tower: image"
        )
    if backbone.text is not None:
        branch.text = TunedText(backbone.text, change, logit_scale=backbone.logit_scale)
    return branch


def with_peft(
    config_of: Callable[[list[str]], peft.PeftConfig],
    *,
    text_modules: Sequence[str] | None,
    blocks: Sequence[int] | None,
) -> Callable[[nn.Module], None]:
    """Return what puts a tuner of peft into a text tower.

    Args:
        config_of: From the names of layers to peft's configuration.
        text_modules: As ``target_modules`` of :func:`.text_layers`.
        blocks: Which blocks; ``None`` takes the first five.
    """

    def change(view: nn.Module) -> None:
        chosen = choose_blocks(blocks, len(text_blocks(view)), default=5)
        config = config_of(text_layers(view, text_modules, chosen))
        try:
            peft.inject_adapter_in_model(config, view)
        except Exception as error:  # each tuner raises its own kind
            said = str(error) or repr(error)
            raise ConfigError(
                f"peft refuses {type(config).__name__} in the text tower: {said}"
            ) from error

    return change
