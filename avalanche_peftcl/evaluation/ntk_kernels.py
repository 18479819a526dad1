"""Whose kernel is measured: of what trains in a network or, where nothing does, of its head."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from avalanche.models import MultiTaskModule
from torch import Tensor, nn
from torch.func import functional_call

from avalanche_peftcl.errors import ConfigError
from avalanche_peftcl.evaluation.inside import undisturbed
from avalanche_peftcl.evaluation.ntk_readings import Reading
from avalanche_peftcl.functional.kernel_measures import predicted_change, predicted_refit
from avalanche_peftcl.functional.ntk import OutputForm, tangent_gram
from avalanche_peftcl.functional.precision import in_double
from avalanche_peftcl.models import DynamicModel
from avalanche_peftcl.models.heads.regression import RegressionHead

Parameters = Literal["trainable", "module"]

_HELD_BYTES = 2**30  # of Jacobians, at a time


@dataclass(frozen=True, kw_only=True)
class KernelOptions:
    """How a kernel is computed; see :class:`.NTKMetric`."""

    form: OutputForm
    n_directions: int
    ridge: float
    chunk_size: int
    parameters: Parameters


class TrainedKernel:
    """The tangent kernel of what trains.

    The function is the logits by row: in a :class:`.DynamicModel` those of the head that trains
    (its proxies, where another head is fitted), in eval mode.

    Args:
        network: The network.
        options: How.

    Raises:
        ConfigError: If that is no function whose kernel is known here.
    """

    def __init__(self, network: nn.Module, options: KernelOptions) -> None:
        self.network, self.options = network, options
        named = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self.chosen = named
        if isinstance(network, DynamicModel):
            heads = network.heads
            if heads and all(head.fitted for head in heads):
                raise ConfigError(
                    f"metric 'ntk' needs logits that train, and of this {type(network).__name__} "
                    f"only modules below a {type(heads[-1]).__name__} do, which is fitted; give it "
                    "proxies"
                )
            if options.parameters == "module":
                apart = {id(p) for head in heads for p in head.parameters()}
                self.chosen = {n: p for n, p in named.items() if id(p) not in apart}
        elif isinstance(network, MultiTaskModule):
            raise ConfigError(
                f"metric 'ntk' does not know which logits of a {type(network).__name__} train for "
                "which task label; take a network of this package, or leave ntk out"
            )
        elif options.parameters == "module":
            raise ConfigError(
                f"metric 'ntk' cannot tell module from head in a {type(network).__name__}; take "
                "parameters='trainable'"
            )
        if not self.chosen:
            raise ConfigError(
                "metric 'ntk' has no parameters to differentiate by: the head alone trains; take "
                "parameters='trainable'"
            )

    def read(self, images: Tensor) -> Reading:
        """Return outputs and kernel."""
        options = self.options
        held = _HELD_BYTES // (4 * sum(p.numel() for p in self.chosen.values()))
        with undisturbed(self.network, images.device) as network:
            function = _Rows(network)

            def rows(parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
                given = {f"network.{name}": p for name, p in parameters.items()}
                out: Tensor = functional_call(function, given, (images,))
                return out

            with torch.no_grad():
                n_rows = function(images[:1]).shape[1]
            per_image = {"logit": n_rows, "sketch": options.n_directions}.get(options.form, 1)
            try:
                outputs, kernel = tangent_gram(
                    rows,
                    self.chosen,
                    images,
                    form=options.form,
                    n_directions=options.n_directions,
                    chunk_size=options.chunk_size,
                    held=max(options.chunk_size, held // per_image),
                )
            except RuntimeError as error:
                if "vmap" not in str(error):
                    raise
                raise ConfigError(
                    f"metric 'ntk' cannot differentiate a {type(network).__name__} image by image: "
                    f"{error}; leave ntk out"
                ) from error
        return Reading(
            in_double(outputs).cpu(), kernel.cpu(), n_rows if options.form == "logit" else 1
        )

    def outputs(self, images: Tensor) -> Tensor:
        """Return outputs alone, ``(n, R)``."""
        with undisturbed(self.network, images.device) as network, torch.no_grad():
            return in_double(_Rows(network)(images)).cpu()

    def change(self, reading: Reading, n_old: int, residual: Tensor) -> Tensor:
        """Return how the outputs of the first ``n_old`` images will change, ``(n_old, R)``.

        Args:
            reading: Of old images, then new ones.
            n_old: How many are old.
            residual: Targets minus outputs of the new ones, ``(n, R)``.
        """
        m = n_old * reading.per_image
        kernel, error = reading.kernel[m:, m:], reading.targets(residual)
        change = predicted_change(reading.kernel[:m, m:], kernel, error, self.ridge(kernel))
        return change.reshape(n_old, -1)

    def ridge(self, kernel: Tensor) -> float:
        """Return the ridge on the scale of a kernel, whose mean eigenvalue is the unit."""
        return self.options.ridge * float(kernel.trace()) / len(kernel)


class HeadKernel:
    """The kernel of a ridge regression on features that do not train: their inner products.

    Args:
        network: Of which nothing trains.
        options: How.
        mixed_precision: In which the head is shown its features: ``"no"``, ``"bf16"`` or
            ``"fp16"``.

    Raises:
        ConfigError: If its head is no such regression.
    """

    def __init__(
        self, network: nn.Module, options: KernelOptions, mixed_precision: str | None = None
    ) -> None:
        heads = network.heads if isinstance(network, DynamicModel) else ()
        head = heads[-1] if heads else None
        if not isinstance(network, DynamicModel) or not isinstance(head, RegressionHead):
            kind = type(network if head is None else head).__name__
            raise ConfigError(
                f"nothing trains here, and a {kind} has no kernel that metric 'ntk' could predict "
                "with; take head 'ridge', or a strategy that trains"
            )
        if options.form != "pseudo" or options.parameters != "trainable":
            raise ConfigError(
                "nothing trains here: metric 'ntk' takes the inner products of the head's features;"
                " leave form and parameters as they are"
            )
        self.network, self.head, self.options = network, head, options
        self.mixed_precision = mixed_precision or "no"

    def read(self, images: Tensor) -> Reading:
        """Return outputs and kernel."""
        h = self._features(images)
        return Reading(h @ in_double(self.head.weight).cpu().T, h @ h.T, 1)

    def outputs(self, images: Tensor) -> Tensor:
        """Return outputs alone, ``(n, R)``."""
        scores: Tensor = self._features(images) @ in_double(self.head.weight).cpu().T
        return scores

    def change(self, old: Tensor, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """Return how the scores of old images will change when the head is fitted to new ones too.

        Args:
            old: Images, ``(m, 3, H, W)``.
            batches: All new images, and their targets by row, ``(B, R)``.
        """
        weight = in_double(self.head.weight).cpu().T  # (M, R)
        added, error = torch.zeros(len(weight), len(weight)).double(), torch.zeros_like(weight)
        for images, targets in batches:
            h = self._features(images)
            added += h.T @ h
            error += h.T @ (targets - h @ weight)
        change = predicted_refit(self.head.gram.cpu(), self.head.penalty.cpu(), added, error)
        return self._features(old) @ change

    def ridge(self, kernel: Tensor) -> float:
        """Return the ridge on the scale of a kernel, for the complexity."""
        return self.options.ridge * float(kernel.trace()) / len(kernel)

    def _features(self, images: Tensor) -> Tensor:
        dtype = torch.float16 if self.mixed_precision == "fp16" else torch.bfloat16
        mixed = torch.autocast(
            images.device.type, dtype=dtype, enabled=self.mixed_precision != "no"
        )
        with undisturbed(self.network, images.device, trains=False), torch.no_grad():
            with mixed:
                features = self.network.embed(images)
            return in_double(self.head.regressors(features)).cpu()


class _Rows(nn.Module):
    """A logit a row."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        network: Any = self.network
        if isinstance(network, DynamicModel):
            return network.classify(network.embed(images)).float()
        logits = network(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ConfigError(
                f"metric 'ntk' needs a logit an image and class of a {type(network).__name__}, not "
                f"a {type(logits).__name__}; leave ntk out"
            )
        return logits.float()
