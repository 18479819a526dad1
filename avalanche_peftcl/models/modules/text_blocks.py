"""The blocks of a text tower, and what can be tuned in them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.models.modules.layer_names import ending_in

_MLPS = {"mlp": ("mlp",), "output": ("intermediate", "output")}
"""What of a block is put beside an adapter, and what of it is the MLP: of open_clip, of BERT."""


class PutIn(nn.Module):
    """What takes the place of a module of a text tower, runs it, and has a part that trains.

    Args:
        inner: What it takes the place of; its attributes are found here too.
        part: What was put in.
    """

    inner: Any
    part: Any

    def __init__(self, inner: nn.Module, part: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.part = part

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


class Beside(PutIn):
    """An MLP, or the end of one, with an adapter beside it that reads what the MLP reads.

    The end of BERT's is handed that too, as the residual to which it adds and which it then norms.

    Args:
        inner: What it takes the place of.
        part: From tokens to what is added to them.
    """

    def forward(self, tokens: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the MLP's output and the adapter's, ``(B, n, D)``."""
        if residual is None:
            both: Tensor = self.inner(tokens) + self.part(tokens)
        else:
            both = self.inner(tokens, residual + self.part(residual))
        return both


def text_blocks(tower: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a text tower by their names.

    Raises:
        ConfigError: If it has none whose MLP is known.

    Example:
        >>> block = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))})
        >>> list(text_blocks(nn.ModuleDict({"resblocks": nn.ModuleList([block])})))
        ['resblocks.0']
    """
    for path, module in tower.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and all(map(_end_of_mlp, module)):
            return {f"{path}.{i}".removeprefix("."): block for i, block in enumerate(module)}
    raise ConfigError(
        f"a text tower {type(tower).__name__} has no blocks with an MLP as those of open_clip or "
        "BERT have one, so nothing can be put into it; tune the image tower (tower: image)"
    )


def put_adapters(tower: nn.Module, make: Callable[[int], nn.Module]) -> None:
    """Put an adapter beside the MLP of every block.

    Args:
        tower: A text tower; it is changed.
        make: From the width ``D`` of a token to an adapter.
    """
    for block in text_blocks(tower).values():
        name = _end_of_mlp(block)
        layers = [m for part in _MLPS[name] for m in block.get_submodule(part).modules()]
        width = next(layer.in_features for layer in layers if isinstance(layer, nn.Linear))
        setattr(block, name, Beside(block.get_submodule(name), make(width)))


def text_layers(
    tower: nn.Module, target_modules: Iterable[str] | None, blocks: Sequence[int]
) -> list[str]:
    """Return the full names of linear layers in some blocks, as peft wants them.

    Args:
        tower: A text tower.
        target_modules: Ends of names inside a block; ``None``: those of the MLP.
        blocks: Which blocks, from 0.

    Raises:
        ConfigError: If a block has no linear layer of such a name.
    """
    found: list[str] = []
    for index, (path, block) in enumerate(text_blocks(tower).items()):
        if index not in blocks:
            continue
        # an attention of torch reads the weights of its layers and does not run them
        names = [name for name, module in block.named_modules() if type(module) is nn.Linear]
        mlp = tuple(f"{part}." for part in _MLPS[_end_of_mlp(block)])
        if target_modules is None:
            found += [f"{path}.{name}" for name in names if name.startswith(mlp)]
            continue
        for target in target_modules:
            fitting = ending_in(names, target)
            if not fitting:
                raise ConfigError(
                    f"block {index} of the text tower has no linear layer {target!r}; text_modules "
                    f"names layers inside a block: {', '.join(names)}"
                )
            found += [f"{path}.{name}" for name in fitting]
    return list(dict.fromkeys(found))


def _end_of_mlp(block: nn.Module) -> str:
    children = dict(block.named_children())
    return next((end for end, parts in _MLPS.items() if all(p in children for p in parts)), "")
