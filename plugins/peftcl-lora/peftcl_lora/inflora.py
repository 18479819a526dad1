"""InfLoRA: a new pair an experience, whose A spans what its inputs have and old inputs have not."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from avalanche.core import SupervisedPlugin
from pydantic import Field
from torch import Tensor, nn

from avalanche_peftcl import takes
from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.functional import check_finite, gram
from avalanche_peftcl.models import Backbone, HeadBuilder
from avalanche_peftcl.training import (
    OptimizerName,
    PEFTTemplate,
    draw,
    ends_experience,
    feature_pass,
)
from peftcl_lora.dual_gpm import extend_memory, free_directions
from peftcl_lora.pairs import PairedLoRA, Part
from peftcl_lora.strategy import Count, PairOptions, Rank, Rate, Size, pair_strategy

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class InputGrams:
    """Sums over the inputs of layers, by the layer's name: no input is kept.

    Attributes:
        sums: Of the products of inputs, ``(D, D)`` in float64.
        counts: How many inputs they are.
    """

    remembers: tuple[str, ...] = ("sums", "counts")

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    @contextmanager
    def listening(self, layers: nn.ModuleDict) -> Iterator[None]:
        """Take in what the layers are handed inside the context."""

        def hear(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                rows = args[0].numel() // args[0].shape[-1]
                self.sums[name] = self.sums.get(name, 0) + gram(args[0])[0]
                self.counts[name] = self.counts.get(name, 0) + rows

            return hook

        handles = [layer.register_forward_pre_hook(hear(name)) for name, layer in layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def means(self) -> dict[str, Tensor]:
        """Return the uncentred second moment of each layer's inputs."""
        check_finite(list(self.sums.values()), "the Gram matrices of inputs")
        return {name: total / self.counts[name] for name, total in self.sums.items()}


class InfLoRAPlugin(SupervisedPlugin):
    r"""Sets the ``A`` of each experience, and remembers the inputs of each layer by DualGPM.

    Before an experience its images give :math:`R = X^\top X / n` of each layer's inputs;
    ``A`` is their leading free directions, see :func:`.free_directions`, divided by
    :math:`\sqrt 3`. After it :math:`R` is read again and the memory extended, see
    :func:`.extend_memory`, until it holds :math:`\epsilon_t`.

    Args:
        threshold: :math:`\lambda`.
        n_experiences: ``T``, for :math:`\epsilon_t = \lambda + (1 - \lambda) t / T`, ``t`` from 0;
            ``None``: :math:`\epsilon_t = \lambda`.
        n_samples: Images read each time; ``None`` reads all. Of an online stream ``A`` is set by
            the first chunk, and each chunk is remembered while it is there.
        seed: Of the draw.

    Attributes:
        bases: By the layer's name orthonormal columns, ``(D, K)``.
        spans_free: Likewise whether they span what old inputs leave, or what they take.

    Source:
        See :func:`build_inflora`.
    """

    remembers: tuple[str, ...] = ("bases", "spans_free", "n_set", "n_done", "_inputs")

    def __init__(
        self,
        threshold: float = 0.95,
        *,
        n_experiences: int | None = None,
        n_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.threshold, self.n_experiences = threshold, n_experiences
        self.n_samples, self.seed = n_samples, seed
        self.bases: dict[str, Tensor] = {}
        self.spans_free: dict[str, bool] = {}
        self.n_set = self.n_done = 0  # experiences whose A is set, and those that have ended
        self._inputs = InputGrams()  # of the experience so far, after training

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Set ``A`` of a pair that is new; with later chunks, or where a run goes on, none is."""
        branch = self._branch(strategy)
        if len(branch.paired()[0]) == self.n_set:
            return
        if self.n_experiences is not None and self.n_done >= self.n_experiences:
            raise ConfigError(
                f"n_experiences={self.n_experiences}, and a further experience begins; give their "
                "number, or None for a threshold that stays"
            )
        inputs = InputGrams()
        self._read(strategy, inputs, **kwargs)
        for name, mean in inputs.means().items():
            down = branch.layers[name].get_parameter("down")
            basis, spans_free = self._memory(name, mean)
            rows = free_directions(mean, basis, down.shape[1], spans_free=spans_free)
            down.copy_(rows / 3**0.5)  # the same for each part
        self.n_set += 1

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Read the inputs again; when the experience ends, extend the memory."""
        self._read(strategy, self._inputs, **kwargs)
        if not ends_experience(strategy.experience):
            return
        for name, mean in self._inputs.means().items():
            basis, spans_free = self._memory(name, mean)
            self.bases[name], self.spans_free[name] = extend_memory(
                mean, basis, spans_free=spans_free, threshold=self.share()
            )
        self._inputs = InputGrams()
        self.n_done += 1

    def share(self) -> float:
        r"""Return :math:`\epsilon_t` of the experience that trains."""
        if self.n_experiences is None:
            return self.threshold
        return self.threshold + (1 - self.threshold) * self.n_done / self.n_experiences

    def _branch(self, strategy: Any) -> PairedLoRA:
        branch: PairedLoRA = strategy.network.branch
        return branch

    def _memory(self, name: str, like: Tensor) -> tuple[Tensor, bool]:
        empty = like.new_zeros(len(like), 0)
        return self.bases.get(name, empty), self.spans_free.get(name, False)

    def _read(self, strategy: Any, inputs: InputGrams, **kwargs: Any) -> None:
        experience, workers = strategy.experience, kwargs.get("num_workers", 0)
        drawn = draw(experience, self.n_samples, seed=self.seed + self.n_done)
        with inputs.listening(self._branch(strategy).layers):
            feature_pass(strategy, dataset=drawn, full_precision=True, num_workers=workers)

    # --- what there is to tell -----------------------------------------------------------------

    @property
    def stored_floats(self) -> int:
        """Floats kept from experience to experience."""
        return sum(basis.numel() for basis in self.bases.values())

    def summary(self) -> dict[str, Any]:
        """Return for each block how many directions old inputs take, and of how many."""
        return {"taken": {name: self._taken(name) for name in self.bases}}

    def headline(self) -> str | None:
        """Return one line about the memory, ``None`` before the first experience has ended."""
        if not self.bases:
            return None
        taken = [self._taken(name) for name in self.bases]
        width = len(next(iter(self.bases.values())))
        return f"old inputs take {min(taken)} to {max(taken)} of {width} directions"

    def _taken(self, name: str) -> int:
        width, size = self.bases[name].shape
        return width - size if self.spans_free[name] else size


@dataclass(frozen=True, kw_only=True)
class InfLoRAOptions(PairOptions):
    """Options of InfLoRA's training."""

    lr: Rate = 0.0005
    train_mb_size: Size = 128


@takes(InfLoRAOptions)
def build_inflora(
    *,
    backbone: Backbone,
    head: HeadBuilder | None = None,
    r: Rank = 10,
    parts: tuple[Part, ...] = ("k", "v"),
    blocks: list[int] | None = None,
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.95,
    n_experiences: Count | None = None,
    n_samples: Count | None = None,
    optimizer: OptimizerName = "adam",
    anneal: bool | None = None,
    options: InfLoRAOptions,
) -> PEFTTemplate:
    r"""Build InfLoRA for a vision transformer.

    Each experience trains the ``B`` of a LoRA pair of its own. Its ``A`` is set before and then
    fixed: the directions in which the experience's inputs of the layer have most energy, out of
    those that the inputs of earlier experiences leave free. So :math:`\Delta W x = B A x` is
    nothing on what is remembered of old inputs.

    Args:
        backbone: The frozen network.
        head: The classifier; ``None`` is linear.
        r: Rank of a pair, at most the width of a token.
        parts: Which of ``q``, ``k`` and ``v`` have pairs.
        blocks: Which blocks, from 0; ``None`` takes all. The variant "b5" takes the first five.
        threshold: Share :math:`\lambda` of the energy of old inputs that is remembered; published
            0.98 for ImageNet-R.
        n_experiences: Number ``T`` of experiences; the share then grows to
            :math:`\lambda + (1 - \lambda) t / T` with experience ``t``, from 0, as published.
            ``None`` leaves it at ``threshold``.
        n_samples: Images of an experience that are read before and after its training; ``None``
            reads all, as published.
        optimizer: Of pairs and head; it starts anew in each experience.
        anneal: Whether the learning rate falls as a cosine over the epochs of an experience;
            ``None``: unless a plugin schedules it.
        options: The defaults are those published for CIFAR-100: Adam with a rate of 0.0005, no
            weight decay, 20 epochs of minibatches of 128. On ImageNet-R 50 epochs.

    Raises:
        ConfigError: If ``r`` is more than the width of a token; in training, if there are more
            than ``n_experiences``.

    Needs:
        The number of experiences for the published share only, as an option.

    Costs:
        One pass a training step and image, two more passes an experience and image, one pass a test
        image, of a network whose pairs grow with the stream. Stored: nothing a class beside the
        head's row; an experience ``P L R (D + E)`` floats, ``P`` parts and ``L`` blocks, none where
        somebody merges them; and for all experiences together at most ``L D D / 2``, the memory.

    Source:
        Liang and Li, "InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning", CVPR
        2024; released code liangyanshuo/InfLoRA e08b00e.

    Differs:
        Images are read with the test transforms. Pairs are summed, not merged into the weights.
        The share may stay as it is. For directions that have no energy, and how a memory of what is
        free shrinks, see :func:`.free_directions` and :func:`.extend_memory`. Variant CA is this
        with the plugin ``feature_replay`` of the core.
    """
    if r > backbone.embed_dim:
        raise ConfigError(
            f"r={r} directions do not fit into tokens of width {backbone.embed_dim}; take fewer"
        )
    branch = PairedLoRA(backbone, r=r, parts=parts, blocks=blocks, trains_down=False)
    plugins = [InfLoRAPlugin(threshold, n_experiences=n_experiences, n_samples=n_samples)]
    return pair_strategy(
        backbone, branch, head, plugins, optimizer=optimizer, anneal=anneal, options=options
    )
