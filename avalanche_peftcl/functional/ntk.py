r"""The empirical tangent kernel of a function of parameters and images.

For a network :math:`f(x) \in \mathbb{R}^R` with parameters :math:`\theta` it is
:math:`\Phi(x, x') = J(x)\,J(x')^\top` with :math:`J = \partial f / \partial \theta`: an ``(R, R)``
block a pair of images. Three forms of it:

- ``"logit"``: the whole, ``(n R, m R)``; the rows of an image stand together;
- ``"pseudo"``: of one output, the sum of all logits over :math:`\sqrt R`; ``(n, m)``;
- ``"sketch"``: :math:`\frac 1 K \sum_k v_k^\top \Phi(x, x')\,v_k` of ``K`` random orthonormal
  directions of the outputs; ``(n, m)``. Its expectation is :math:`\operatorname{tr} \Phi / R`,
  which it is exactly where ``K = R``.

All three agree where the logits are linear maps of shared features that do not train:
:math:`\Phi(x, x') = \langle h, h' \rangle I`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from avalanche_peftcl.functional.precision import in_double

OutputForm = Literal["logit", "pseudo", "sketch"]
Function = Callable[[Mapping[str, Tensor], Tensor], Tensor]
"""Parameters by name and images ``(B, ...)`` to outputs ``(B, R)``, an image at a time."""

_COLUMNS = 2**16  # of Jacobians that stand in float64 at a time


class Tangents(NamedTuple):
    """What the kernel of some images is made of.

    Attributes:
        outputs: ``(n, R)``.
        rows: For each parameter of ``P`` numbers ``(n R, P)`` (form ``"logit"``) or ``(n, K P)``;
            the kernel is the sum of their inner products.
    """

    outputs: Tensor
    rows: tuple[Tensor, ...]


def output_directions(
    form: OutputForm, n_outputs: int, *, n_directions: int = 4, seed: int = 0
) -> Tensor:
    """Return the directions of the outputs along which a form differentiates, orthonormal.

    Args:
        form: See above.
        n_outputs: ``R``.
        n_directions: ``K`` of a sketch; of more than ``R`` it is ``R``.
        seed: Of a sketch; no global generator is touched.

    Returns:
        ``(R, R)``, ``(1, R)`` or ``(K, R)``, float64.

    Example:
        >>> output_directions("pseudo", 4)
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]], dtype=torch.float64)
    """
    if form == "logit":
        return torch.eye(n_outputs, dtype=torch.float64)
    if form == "pseudo":
        return torch.full((1, n_outputs), 1 / math.sqrt(n_outputs), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(n_outputs, n_outputs, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(drawn).Q.T[:n_directions]
    return basis.contiguous()


def tangents(
    function: Function,
    parameters: Mapping[str, Tensor],
    images: Tensor,
    *,
    form: OutputForm = "pseudo",
    n_directions: int = 4,
    seed: int = 0,
    chunk_size: int = 32,
) -> Tangents:
    r"""Differentiate the outputs of each image by itself.

    Memory: the result holds ``n K P`` numbers with ``P`` those of all parameters and ``K`` the
    number of :func:`output_directions`; while it is made there are beside it the activations of
    ``chunk_size * K`` images, no more. Attention is computed by matrix products, for which alone
    derivatives of many images at a time are known.

    Args:
        function: What is differentiated; an image's outputs depend on no other image.
        parameters: What it is differentiated by.
        images: ``(n, ...)``.
        form: See the module.
        n_directions: ``K`` of a sketch.
        seed: Of a sketch.
        chunk_size: Images that are differentiated at a time; it changes rounding alone.

    Example:
        >>> there = tangents(lambda p, x: x @ p["w"].T, {"w": torch.ones(2, 3)}, torch.eye(3))
        >>> there.outputs.shape, [tuple(rows.shape) for rows in there.rows]
        (torch.Size([3, 2]), [(3, 6)])
    """
    given = {name: tensor.detach() for name, tensor in parameters.items()}
    outputs: list[Tensor] = []
    rows: list[list[Tensor]] = [[] for _ in given]
    with torch.no_grad():
        (first,) = function(given, images[:1])
    along = output_directions(form, len(first), n_directions=n_directions, seed=seed).to(first)

    def one(image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        pulled: Any = vjp(lambda p: function(p, image[None])[0], given)
        out, pull = pulled
        (by_name,) = vmap(pull)(along)
        return out, tuple(by_name[name] for name in given)

    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for chunk in torch.split(images, chunk_size):
            out, parts = vmap(one)(chunk)
            outputs.append(out.detach())
            for held, part in zip(rows, parts, strict=True):
                every = part.detach().flatten(2)  # (c, K, P)
                whole = every.flatten(0, 1) if form == "logit" else every.flatten(1)
                held.append(whole if form == "logit" else whole / math.sqrt(every.shape[1]))
    return Tangents(torch.cat(outputs), tuple(torch.cat(held) for held in rows))


def inner_products(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the kernel between the rows of two :class:`Tangents`, in float64.

    Args:
        a: For each parameter ``(n, P)``.
        b: For each parameter ``(m, P)``.

    Returns:
        ``(n, m)``.
    """
    total = in_double(a[0].new_zeros(len(a[0]), len(b[0])))
    for first, second in zip(a, b, strict=True):
        columns = zip(
            torch.split(first, _COLUMNS, 1), torch.split(second, _COLUMNS, 1), strict=True
        )
        for left, right in columns:
            one = in_double(left)
            total += one @ (one if left is right else in_double(right)).T
    return total


def tangent_gram(
    function: Function,
    parameters: Mapping[str, Tensor],
    images: Tensor,
    *,
    form: OutputForm = "pseudo",
    n_directions: int = 4,
    seed: int = 0,
    chunk_size: int = 32,
    held: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the outputs of images and the kernel between all of them.

    Args:
        function: See :func:`tangents`.
        parameters: See there.
        images: ``(n, ...)``.
        form: See the module.
        n_directions: ``K`` of a sketch.
        seed: Of a sketch.
        chunk_size: Images that are differentiated at a time.
        held: Images whose Jacobians are there at a time, twice; ``None`` is ``chunk_size``. Of
            ``n`` images Jacobians are computed about ``n² / (2 held)`` times, ``n`` times where
            there are no more than ``held``.

    Returns:
        ``(n, R)``, and ``(n, n)`` or ``(n R, n R)`` in float64.
    """

    def of(part: Tensor) -> Tangents:
        return tangents(
            function,
            parameters,
            part,
            form=form,
            n_directions=n_directions,
            seed=seed,
            chunk_size=chunk_size,
        )

    parts = torch.split(images, held or chunk_size)
    outputs: list[Tensor] = []
    blocks: dict[tuple[int, int], Tensor] = {}
    for i, part in enumerate(parts):
        there = of(part)
        outputs.append(there.outputs)
        square = inner_products(there.rows, there.rows)
        blocks[i, i] = (square + square.T) / 2  # a product rounds so on some processors alone
        for j in range(i + 1, len(parts)):
            blocks[i, j] = inner_products(there.rows, of(parts[j]).rows)
            blocks[j, i] = blocks[i, j].T
    return torch.cat(outputs), _joined(blocks, len(parts), len(parts))


def tangent_kernel(
    function: Function,
    parameters: Mapping[str, Tensor],
    a: Tensor,
    b: Tensor | None = None,
    *,
    form: OutputForm = "pseudo",
    n_directions: int = 4,
    seed: int = 0,
    chunk_size: int = 32,
) -> Tensor:
    r"""Return the empirical tangent kernel between two sets of images.

    Memory: Jacobians of ``2 * chunk_size`` images, however many there are. Time: those of ``a`` are
    computed once, those of ``b`` once for each ``chunk_size`` images of ``a``.

    Args:
        function: See :func:`tangents`.
        parameters: See there. At the start of adapters whose up-projection is 0 the
            down-projection has no gradient: the kernel is that of up-projections and biases alone.
        a: ``(n, ...)``.
        b: ``(m, ...)``; ``None`` is ``a``.
        form: See the module.
        n_directions: ``K`` of a sketch.
        seed: Of a sketch.
        chunk_size: Images whose Jacobians are there at a time, of each set.

    Returns:
        ``(n, m)``, or ``(n R, m R)`` of form ``"logit"``, float64; symmetric and positive
        semidefinite where ``b`` is ``None``.

    Source:
        Jacot et al., NeurIPS 2018; ``"pseudo"``: Mohamadi et al., ICML 2023. Differs: the sketch is
        this package's.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> tangent_kernel(lambda p, x: x @ p["w"], {"w": torch.zeros(2, 3)}, x)
        tensor([[1.0000, 1.0000],
                [1.0000, 5.0000]], dtype=torch.float64)
    """
    if b is None:
        _, kernel = tangent_gram(
            function,
            parameters,
            a,
            form=form,
            n_directions=n_directions,
            seed=seed,
            chunk_size=chunk_size,
        )
        return kernel

    def of(images: Tensor) -> tuple[Tensor, ...]:
        there = tangents(
            function,
            parameters,
            images,
            form=form,
            n_directions=n_directions,
            seed=seed,
            chunk_size=chunk_size,
        )
        return there.rows

    first, second = torch.split(a, chunk_size), torch.split(b, chunk_size)
    blocks: dict[tuple[int, int], Tensor] = {}
    for i, images in enumerate(first):
        rows = of(images)
        for j, others in enumerate(second):
            blocks[i, j] = inner_products(rows, of(others))
    return _joined(blocks, len(first), len(second))


def _joined(blocks: Mapping[tuple[int, int], Tensor], n: int, m: int) -> Tensor:
    return torch.cat([torch.cat([blocks[i, j] for j in range(m)], dim=1) for i in range(n)])
