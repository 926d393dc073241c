"""Masked autoregressive networks (MADE), the transforms they parameterize, and the inverse of these."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._autograd import differentiable
from genssl_fast._checks import check, check_choice, check_dtype, check_same, check_shape, values_are_checked
from genssl_fast._library import define
from genssl_fast.ops.affine_coupling import ORDERS, checked_options
from genssl_fast.ops.rational_quadratic_spline import (
    MAX_BINS,
    PARAMETERIZATIONS,
    TAILS,
    _check_inside,
    _check_share,
    checked_box,
)
from genssl_fast.ops.transforms import AffineTransform, SplineTransform, apply_transform, num_parameters
from genssl_fast.reference.causal import ACTIVATIONS, LAYOUTS
from genssl_fast.reference.coupling import CLAMPS

__all__ = ["MADEWeights", "made", "made_degrees", "made_inverse", "made_transform"]

# Either of the transforms: without bins it is affine.
TRANSFORM = (
    "int layout, int clamp, bool shift_first, float limit, float offset, float min_scale, "
    "int bins, int tails, bool zuko, float left, float right, float bottom, float top, "
    "float min_width, float min_height, float min_derivative, float slope"
)
MAX_LAYERS = 62
# Activations of one layer in the backward passes that give rows of a Jacobian.
JACOBIAN_NUMBERS = 1 << 26
NO_AFFINE, NO_SPLINE = (0, 0, False, 0.0, 0.0, 0.0), (0, 0, False, *(0.0,) * 8)


class MADEWeights(NamedTuple):
    """Layers of a masked network; matrices [out, in] and biases [out] as in ``torch.nn.Linear``.

    With :math:`v_0 = x`, layer l computes :math:`v_{l+1} = (W_l \\odot M_l)\\, a(v_l) + b_l + v_{l-1}`:
    :math:`a` is the activation where ``activated[l]`` and else the identity, and :math:`v_{l-1}` is added
    where ``skips[l]``. By default every layer but the first is activated and none skips: a plain
    network. The last layer has D * P rows, those of one dimension together. Masks come from the degrees.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: str = "relu"
    activated: tuple[bool, ...] | None = None
    skips: tuple[bool, ...] | None = None

    @classmethod
    def with_residual_blocks(cls, weights, biases, activation: str = "relu", *, preactivated: bool = True):
        """A first layer, blocks ``h <- h + W₂ a(W₁ a(h) + b₁) + b₂``, a last layer of h, as in nflows.

        Without ``preactivated`` a block is ``h + W₂ a(W₁ h + b₁) + b₂``, as in zuko.

        Example:
            >>> layers = [torch.nn.Linear(4, 4) for _ in range(4)]
            >>> weights = [layer.weight for layer in layers], [layer.bias for layer in layers]
            >>> genssl_fast.MADEWeights.with_residual_blocks(*weights).skips
            (False, False, True, False)
        """
        blocks = (len(weights) - 2) // 2
        activated = (False, *(preactivated, True) * blocks, False)
        return cls(
            tuple(weights), tuple(biases), activation, activated, (False, *(False, True) * blocks, False)
        )


def made_degrees(features: int, hidden: Sequence[int], order: Tensor | None = None) -> tuple[Tensor, ...]:
    """Degrees of the inputs and of the units of every hidden layer, as nflows and normflows choose them.

    Arguments:
        features: number of inputs D.
        hidden: number of units of each hidden layer.
        order: [D], the degree of every input, from 1; 1 to D by default.

    Returns:
        Tensors int64 [D], [H_1], ..., those of units going round 1 to D - 1.

    References:
        Germain et al., MADE: Masked Autoencoder for Distribution Estimation,
        https://arxiv.org/abs/1502.03509

    Example:
        >>> genssl_fast.made_degrees(3, [4])
        (tensor([1, 2, 3]), tensor([1, 2, 1, 2]))
    """
    inputs = torch.arange(1, features + 1) if order is None else order
    first, count = min(1, features - 1), max(1, features - 1)
    units = (torch.arange(size, device=inputs.device) % count + first for size in hidden)
    return inputs, *units


def _fake_inverse(y, *args):
    return y.new_empty(y.shape), y.new_empty(y.shape[:1])


raw_made_inverse = define(
    "_made_inverse(Tensor y, Tensor[] weights, Tensor[] biases, Tensor[] degrees, int activated, int skips, "
    f"int activation, {TRANSFORM}) -> (Tensor, Tensor)",
    reference=reference.causal.made_inverse,
    fake=_fake_inverse,
)


def _parallel(inputs, x: Tensor, weights, biases) -> tuple[Tensor, Tensor]:
    """The direction that one pass computes, x -> (y, log|det|)."""
    return reference.causal.made_transform(x, weights, biases, *inputs[3:])


def _solve(inputs, x: Tensor, right: Tensor, *, transposed: bool) -> Tensor:
    """J^-1 or J^-T times ``right`` [B, D], with J = dy/dx [B, D, D] triangular in the order of degrees."""
    y, pullback = torch.func.vjp(lambda x: _parallel(inputs, x, inputs.weights, inputs.biases)[0], x)
    units = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    rows = torch.func.vmap(
        lambda unit: pullback(unit.expand_as(y))[0], out_dims=1, chunk_size=_rows_at_a_time(inputs, x)
    )
    jacobian = rows(units)
    order = torch.argsort(inputs.degrees[0], stable=True)
    sorted_jacobian = jacobian[:, order][:, :, order]
    matrix = sorted_jacobian.mT if transposed else sorted_jacobian
    solution = torch.linalg.solve_triangular(matrix, right[:, order, None], upper=transposed)
    return solution[:, torch.argsort(order), 0]


def _rows_at_a_time(inputs, x: Tensor) -> int:
    """How many backward passes share a call."""
    return max(1, JACOBIAN_NUMBERS // max(1, len(x) * max(map(len, inputs.weights))))


def _inverse_backward(inputs, outputs, grads):
    # With y = F(x), log|det F'| = L(x): u = J^-T (g_x - g_L dL/dx), and parameters get -u dF - g_L dL.
    x, (to_x, to_log_abs_det) = outputs[0], grads
    _, of_x = torch.func.vjp(lambda x: _parallel(inputs, x, inputs.weights, inputs.biases)[1], x)
    u = _solve(inputs, x, to_x - of_x(to_log_abs_det)[0], transposed=True)
    _, of_parameters = torch.func.vjp(
        lambda *parameters: _parallel(inputs, x, *parameters), inputs.weights, inputs.biases
    )
    weights, biases = of_parameters((-u, -to_log_abs_det))
    return {"y": u, "weights": weights, "biases": biases}


def _filled(tangents, tensors) -> list[Tensor]:
    """A tangent for every tensor of a list, zeros where none is given."""
    tangents = [None] * len(tensors) if tangents is None else tangents
    return [torch.zeros_like(v) if t is None else t for t, v in zip(tangents, tensors)]


def _inverse_jvp(inputs, outputs, tangents):
    # With y = F(x, w), log|det F'| = L(x, w): dx = J^-1 (dy - F_w dw), and -dL of both.
    x, y_dot = outputs[0], tangents.y
    moved = [_filled(tangents.weights, inputs.weights), _filled(tangents.biases, inputs.biases)]
    results, pullback = torch.func.vjp(
        lambda *args: _parallel(inputs, *args), x, inputs.weights, inputs.biases
    )
    # A pullback is linear: its own is the tangent map. Forward mode does not nest.
    _, pushforward = torch.func.vjp(pullback, tuple(map(torch.zeros_like, results)))
    of_weights = pushforward((torch.zeros_like(x), *moved))[0][0]
    x_dot = _solve(inputs, x, -of_weights if y_dot is None else y_dot - of_weights, transposed=False)
    return x_dot, -pushforward((x_dot, *moved))[0][1]


_made_inverse = differentiable(
    raw_made_inverse, backward=_inverse_backward, jvp=_inverse_jvp, save_outputs=True
)


class _Network(NamedTuple):
    """What the references and the raw operation take of a checked network."""

    weights: list[Tensor]
    biases: list[Tensor]
    degrees: list[Tensor]
    activated: int
    skips: int
    activation: int


def _check_network(x: Tensor, weights: MADEWeights, degrees, context) -> _Network:
    """The network in fp32 or fp64, with the context's terms added to its biases."""
    check_dtype("x", x)
    check(x.ndim == 2 and x.shape[1] > 0, "x", "shape [B, D] with D of at least 1", list(x.shape))
    check_choice("weights.activation", weights.activation, ACTIVATIONS)
    count = len(weights.weights)
    check(1 <= count <= MAX_LAYERS, "weights.weights", f"1 to {MAX_LAYERS} layers", count)
    check(len(weights.biases) == count, "weights.biases", f"{count} tensors", len(weights.biases))
    check(len(degrees) == count, "degrees", f"{count} tensors", len(degrees))
    activated, skips, width = _flags(weights, "activated"), _flags(weights, "skips"), x.shape[1]
    for i, (weight, bias, columns) in enumerate(zip(weights.weights, weights.biases, degrees)):
        check_same(f"weights.weights[{i}]", weight, x, "x", shape=False)
        check_same(f"weights.biases[{i}]", bias, x, "x", shape=False)
        check_shape(f"degrees[{i}]", columns, (width,), "[units]")
        check(weight.ndim == 2, f"weights.weights[{i}]", "a matrix [out, in]", list(weight.shape))
        check_shape(f"weights.weights[{i}]", weight, (weight.shape[0], width), "[out, in]")
        check_shape(f"weights.biases[{i}]", bias, (weight.shape[0],), "[out]")
        width = weight.shape[0]
    rows = f"a positive multiple of D = {x.shape[1]} rows"
    check(width > 0 and width % x.shape[1] == 0, f"weights.weights[{count - 1}]", rows, width)
    _check_skips(skips, degrees, weights)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    biases = _add_context([bias.to(dtype) for bias in weights.biases], x, context)
    matrices = [weight.to(dtype) for weight in weights.weights]
    activation = list(ACTIVATIONS).index(weights.activation)
    return _Network(matrices, biases, list(degrees), _bits(activated), _bits(skips), activation)


def _flags(weights: MADEWeights, name: str) -> list[bool]:
    """One for every layer."""
    count, flags = len(weights.weights), getattr(weights, name)
    if flags is None:
        flags = (False,) * count if name == "skips" else (False,) + (True,) * (count - 1)
    check(len(flags) == count, f"weights.{name}", f"{count} booleans", len(flags))
    return list(flags)


def _bits(flags: list[bool]) -> int:
    """As the dispatcher takes them."""
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def _check_skips(skips, degrees, weights: MADEWeights) -> None:
    """A skip adds units of the same degrees."""
    last = len(skips) - 1
    for i in (i for i, skip in enumerate(skips) if skip):
        check(0 < i < last, f"weights.skips[{i}]", "False in the first and the last layer", True)
        added, rows = degrees[i - 1], len(weights.weights[i])
        check(len(added) == rows, f"weights.skips[{i}]", f"{rows} units two layers before", len(added))
        if values_are_checked(added):
            same = torch.equal(added, degrees[i + 1])
            check(same, f"degrees[{i + 1}]", f"degrees[{i - 1}], to which it is added", "others")


def _add_context(biases: list[Tensor], x: Tensor, context) -> list[Tensor]:
    """Biases [out] or, where the context has a term, [B, out]."""
    if context is None:
        return biases
    check(len(context) <= len(biases), "context", f"at most {len(biases)} terms", len(context))
    terms = [*context, *[None] * (len(biases) - len(context))]
    for i, (term, bias) in enumerate(zip(terms, biases)):
        if term is not None:
            check_same(f"context[{i}]", term, x, "x", shape=False)
            check_shape(f"context[{i}]", term, (len(x), len(bias)), "[B, out]")
    return [bias if term is None else bias + term.to(bias.dtype) for term, bias in zip(terms, biases)]


def _check_transform(transform, network: _Network, dim: int) -> None:
    if isinstance(transform, AffineTransform):
        check_choice("transform.layout", transform.layout, LAYOUTS)
    rows = dim * num_parameters(transform)
    last, got = len(network.weights) - 1, len(network.weights[-1])
    check(got == rows, f"weights.weights[{last}]", f"{rows} rows for this transform", got)


def _transform_options(transform) -> tuple:
    """The transform as the raw operation takes it."""
    if isinstance(transform, AffineTransform):
        clamp, limit, offset, min_scale, layout, order = transform
        check_choice("transform.clamp", clamp, CLAMPS)
        check_choice("transform.order", order, ORDERS)
        numbers = checked_options(clamp, limit=limit, offset=offset, min_scale=min_scale)
        return LAYOUTS.index(layout), CLAMPS.index(clamp), order == "shift_scale", *numbers, *NO_SPLINE
    bins, tails, bound, *least, parameterization, slope = transform
    _check_spline(transform)
    kind = bins, TAILS.index(tails), parameterization == "zuko"
    return *NO_AFFINE, *kind, *checked_box(bound, tails), *map(float, least), float(slope)


def _check_spline(transform: SplineTransform) -> None:
    bins, tails, _, min_width, min_height, min_derivative, parameterization, slope = transform
    check(1 <= bins <= MAX_BINS, "transform.bins", f"1 to {MAX_BINS}", bins)
    check_choice("transform.tails", tails, TAILS)
    check_choice("transform.parameterization", parameterization, PARAMETERIZATIONS)
    if parameterization == "zuko":
        check(0 < slope < 1, "transform.slope", "a number between 0 and 1", slope)
        return
    _check_share("transform.min_bin_width", min_width, bins)
    _check_share("transform.min_bin_height", min_height, bins)
    check(min_derivative > 0, "transform.min_derivative", "a positive number", min_derivative)


def made(
    x: Tensor, weights: MADEWeights, degrees: Sequence[Tensor], *, context: Sequence | None = None
) -> Tensor:
    r"""Parameters of every dimension from the dimensions of lower degree, by a masked network.

    A unit sees the units of the layer before whose degree is at most its own, and the parameters of a
    dimension those whose degree is below its own. Matrix products of PyTorch.

    Arguments:
        x: [B, D], fp32, fp64, bf16 or fp16 (computed in fp32).
        weights: layers of x's dtype; see :class:`genssl_fast.MADEWeights`.
        degrees: int64 tensors of the degrees of the inputs [D] and of each hidden layer's units [H_l], for
            instance by :func:`genssl_fast.made_degrees`; any order, ties allowed.
        context: for every layer a tensor [B, out] added to its bias, or None; trailing ones may be left out.

    Returns:
        Parameters [B, D, P] in the dtype of x.

    Raises:
        ValueError, TypeError: shapes, dtypes or degrees that do not fit; the message names the argument.

    References:
        Germain et al., MADE: Masked Autoencoder for Distribution Estimation,
        https://arxiv.org/abs/1502.03509

    Example:
        >>> degrees = genssl_fast.made_degrees(2, [4])
        >>> weights = genssl_fast.MADEWeights((torch.ones(4, 2), torch.ones(4, 4)), (torch.zeros(4),) * 2)
        >>> genssl_fast.made(torch.tensor([[1.0, 5.0]]), weights, degrees)
        tensor([[[0., 0.],
                 [4., 4.]]])
    """
    network = _check_network(x, weights, degrees, context)
    return reference.causal.made(x.to(network.weights[0].dtype), *network).to(x.dtype)


def made_transform(
    x: Tensor,
    weights: MADEWeights,
    degrees: Sequence[Tensor],
    *,
    transform: AffineTransform | SplineTransform,
    context: Sequence | None = None,
) -> tuple[Tensor, Tensor]:
    """The autoregressive transform of x in the direction that takes one pass of the network.

    :func:`genssl_fast.made` and then the elementwise ``transform``. Its inverse is
    :func:`genssl_fast.made_inverse`.

    Arguments:
        x: [B, D], fp32, fp64, bf16 or fp16.
        weights, degrees, context: the network, as for :func:`genssl_fast.made`.
        transform: of each dimension; affine ones with a layout ``"interleaved"``,
            ``"interleaved_scale_first"`` or ``"shift"``.

    Returns:
        y [B, D] in the dtype of x, and log|dy/dx| [B] in fp32, or fp64 for fp64.

    Raises:
        ValueError, TypeError: as for :func:`genssl_fast.made`, or parameters that do not fit the transform.

    References:
        Papamakarios et al., Masked Autoregressive Flow for Density Estimation, https://arxiv.org/abs/1705.07057

    Example:
        >>> weights = genssl_fast.MADEWeights((torch.ones(4, 2),), (torch.zeros(4),))
        >>> transform = genssl_fast.AffineTransform(layout="interleaved")
        >>> genssl_fast.made_transform(torch.ones(1, 2), weights, [torch.arange(2)], transform=transform)
        (tensor([[1.0000, 3.7183]]), tensor([1.]))
    """
    network = _check_network(x, weights, degrees, context)
    _check_transform(transform, network, x.shape[1])
    wide = x.to(network.weights[0].dtype)
    y, log_abs_det = apply_transform(transform, wide, reference.causal.made(wide, *network))
    return y.to(x.dtype), log_abs_det


def made_inverse(
    y: Tensor,
    weights: MADEWeights,
    degrees: Sequence[Tensor],
    *,
    transform: AffineTransform | SplineTransform,
    context: Sequence | None = None,
) -> tuple[Tensor, Tensor]:
    """The x whose :func:`genssl_fast.made_transform` is y, for the work of about one pass instead of D.

    With hidden units sorted by degree, every weight is used once: the parameters of a dimension need
    only units of lower degree, and these only dimensions already found. It samples from a masked
    autoregressive flow, and evaluates the density of an inverse one. Derivatives follow from the implicit
    function theorem with PyTorch's Jacobian of the parallel direction, which costs D backward passes.

    Arguments:
        y: [B, D], fp32, fp64, bf16 or fp16.
        weights, degrees, context: the network, as for :func:`genssl_fast.made`.
        transform: as for :func:`genssl_fast.made_transform`.

    Returns:
        x [B, D] in the dtype of y, and log|dx/dy| [B] in fp32, or fp64 for fp64.

    Raises:
        ValueError, TypeError: as for :func:`genssl_fast.made_transform`.

    References:
        Papamakarios et al., Masked Autoregressive Flow for Density Estimation, https://arxiv.org/abs/1705.07057

    Example:
        >>> weights = genssl_fast.MADEWeights((torch.ones(4, 2),), (torch.zeros(4),))
        >>> transform = genssl_fast.AffineTransform(layout="interleaved")
        >>> y = torch.tensor([[1.0, 3.7182817]])
        >>> genssl_fast.made_inverse(y, weights, [torch.arange(2)], transform=transform)
        (tensor([[1., 1.]]), tensor([-1.]))
    """
    network = _check_network(y, weights, degrees, context)
    _check_transform(transform, network, y.shape[1])
    options = _transform_options(transform)
    if (
        isinstance(transform, SplineTransform)
        and transform.tails is None
        and y.numel()
        and values_are_checked(y)
    ):
        _check_inside(y, *checked_box(transform.bound, None)[2:])
    x, log_abs_det = _made_inverse(y.to(network.weights[0].dtype), *network, *options)
    return x.to(y.dtype), log_abs_det
