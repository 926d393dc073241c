"""Masked autoregressive networks (MADE), the transforms they parameterize, and the inverse of these."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._autograd import differentiable
from genssl_fast._checks import (
    check,
    check_choice,
    check_count,
    check_dtype,
    check_same,
    check_shape,
    values_are_checked,
)
from genssl_fast._library import define
from genssl_fast.ops.affine_coupling import checked_options
from genssl_fast.ops.rational_quadratic_spline import TAILS, check_inside, checked_box
from genssl_fast.ops.transforms import (
    AffineTransform,
    SplineTransform,
    apply_transform,
    check_transform,
    num_parameters,
)
from genssl_fast.reference.causal import ACTIVATIONS
from genssl_fast.reference.causal import LAYOUTS as TOGETHER
from genssl_fast.reference.coupling import CLAMPS

__all__ = ["MADEWeights", "made", "made_degrees", "made_inverse", "made_transform"]

# Either of the transforms: without bins it is affine.
TRANSFORM = (
    "int layout, int clamp, bool shift_first, float limit, float offset, float min_scale, "
    "int bins, int tails, bool zuko, float left, float right, float bottom, float top, "
    "float min_width, float min_height, float min_derivative, float slope"
)
# Each derivative adds a layer, and the compiled kernels take a few more.
MAX_LAYERS = 40
NO_AFFINE, NO_SPLINE = (0, 0, False, 0.0, 0.0, 0.0), (0, 0, False, *(0.0,) * 8)
SHIFT = (TOGETHER.index("shift"), *NO_AFFINE[1:], *NO_SPLINE)


class MADEWeights(NamedTuple):
    """Layers of a masked network; matrices [out, in] and biases [out] as in ``torch.nn.Linear``.

    With :math:`v_0 = x`, layer l computes
    :math:`v_{l+1} = g_l \\odot ((W_l \\odot M_l)\\, a(v_l) + b_l) + v_{l-1}`: :math:`a` is the activation
    where ``activated[l]`` and else the identity, :math:`v_{l-1}` is added where ``skips[l]``, and the gates
    :math:`g_l` are an argument of the operations. By default every layer but the first is activated and none
    skips: a plain network. The last layer has D * P rows, those of one dimension together unless a transform
    says otherwise. Masks come from the degrees.
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
        order: int64 [D], the degree of every input, from 1; 1 to D by default.

    Returns:
        Tensors int64 [D], [H_1], ..., those of units going round 1 to D - 1.

    Raises:
        ValueError, TypeError: no features, an ``order`` of another shape or dtype.

    References:
        Germain et al., MADE: Masked Autoencoder for Distribution Estimation,
        https://arxiv.org/abs/1502.03509

    Example:
        >>> genssl_fast.made_degrees(3, [4])
        (tensor([1, 2, 3]), tensor([1, 2, 1, 2]))
    """
    check_count("features", features, 1)
    inputs = torch.arange(1, features + 1) if order is None else order
    check_dtype("order", inputs, (torch.int64,))
    check_shape("order", inputs, (features,), "[D]")
    first, count = min(1, features - 1), max(1, features - 1)
    units = (torch.arange(size, device=inputs.device) % count + first for size in hidden)
    return inputs, *units


def _fake_inverse(y, *args):
    return y.new_empty(y.shape), y.new_empty(y.shape[:1])


raw_made_inverse = define(
    "_made_inverse(Tensor y, Tensor[] weights, Tensor[] biases, Tensor[] degrees, "
    "Tensor[] input_gates, Tensor[] output_gates, int gated_inputs, int gated_outputs, "
    f"int activated, int skips, int activation, {TRANSFORM}) -> (Tensor, Tensor)",
    reference=reference.causal.made_inverse,
    fake=_fake_inverse,
)


class _Network(NamedTuple):
    """What the references and the raw operation take of a checked network; gates of layers with a bit set."""

    weights: list[Tensor]
    biases: list[Tensor]
    degrees: list[Tensor]
    input_gates: list[Tensor]
    output_gates: list[Tensor]
    gated_inputs: int
    gated_outputs: int
    activated: int
    skips: int
    activation: int


# The tensors of a network that have derivatives.
LEARNED = ("weights", "biases", "input_gates", "output_gates")


def _network_of(inputs) -> _Network:
    return _Network(*(getattr(inputs, name) for name in _Network._fields))


def _parallel(inputs, x: Tensor):
    """The direction that one pass computes, x -> (y, log|det|), its pullback to x and what is learned,

    and the values of all layers.
    """

    def transform(x, *learned):
        network = _network_of(inputs)._replace(**dict(zip(LEARNED, learned)))
        values = reference.causal.made_values(x, *network)
        return _elementwise(inputs, x, values[-1]), values

    learned = [getattr(inputs, name) for name in LEARNED]
    return torch.func.vjp(transform, x, *learned, has_aux=True)


def _elementwise(inputs, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """The transform with parameters [B, D * P]."""
    parameters = parameters.reshape(*x.shape, parameters.shape[1] // x.shape[1])
    return reference.causal.transform(x, parameters, False, *inputs[1 + len(_Network._fields) :])


class _Tangents(NamedTuple):
    """The derivative at x: a masked linear network t_{l+1} = o_l W_l i_l t_l (+ t_{l-1}), t_0 = dx,

    and then dy = scale (dx + Σ_p ratio_p t_p) of the rows p that a dimension has in the last t.
    """

    network: _Network
    input_gates: list[Tensor | None]
    output_gates: list[Tensor | None]
    scale: Tensor  # [B, D]
    ratio: Tensor  # [B, D * P]


def _tangents(inputs, x: Tensor, values: list[Tensor]) -> _Tangents:
    """From the values of all layers at x."""
    network, (*values, parameters) = _network_of(inputs), values
    y, pullback = torch.func.vjp(lambda *args: _elementwise(inputs, *args)[0], x, parameters)
    scale, to_parameters = pullback(torch.ones_like(y))
    activation = list(ACTIVATIONS.values())[network.activation]
    slopes = [_slope(activation, v) if network.activated >> i & 1 else None for i, v in enumerate(values)]
    gates = _spread(network.input_gates, network.gated_inputs, len(values))
    return _Tangents(
        network,
        [_product(gate, slope) for gate, slope in zip(gates, slopes)],
        _spread(network.output_gates, network.gated_outputs, len(values)),
        scale,
        to_parameters / scale.repeat_interleave(parameters.shape[1] // x.shape[1], 1),
    )


def _slope(function, x: Tensor) -> Tensor:
    """The derivative of an elementwise function."""
    y, pullback = torch.func.vjp(function, x)
    return pullback(torch.ones_like(y))[0]


def _spread(gates: list[Tensor], bits: int, count: int) -> list[Tensor | None]:
    """One for every layer."""
    given = iter(gates)
    return [next(given) if bits >> i & 1 else None for i in range(count)]


def _product(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Of those that there are."""
    return second if first is None else first if second is None else first * second


def _inverse_of_tangents(tangents: _Tangents, right: Tensor) -> Tensor:
    """The dx [B, D] whose dy is ``right``: the inverse of a network that ends with the sums over p."""
    network = tangents.network
    inputs = network.degrees[0]
    spread = _spread_matrix(tangents)
    solution = _linear_inverse(
        right / tangents.scale,
        [*network.weights, spread.T],
        [*network.degrees, _repeated(inputs, spread) - 1],
        [*tangents.input_gates, tangents.ratio],
        [*tangents.output_gates, None],
        network.skips,
    )
    return solution


def _inverse_of_transpose(tangents: _Tangents, right: Tensor) -> Tensor:
    """The u [B, D] with J^T u = ``right``, J = dy/dx: every matrix transposed, the last one first.

    With w = scale u it is w + (dt/dx)^T (ratio w) = right, and degrees change their sign: a unit sees
    those that saw it. A hidden unit of degree m gave to dimensions above m, so it sees from -m - 1 down.
    """
    network, spread = tangents.network, _spread_matrix(tangents)
    inputs, *hidden = network.degrees
    count = len(network.weights)
    solution = _linear_inverse(
        right,
        [spread, *(weight.T for weight in reversed(network.weights))],
        [-inputs, -_repeated(inputs, spread), *(-degrees - 1 for degrees in reversed(hidden))],
        [None, *reversed(tangents.output_gates)],
        [tangents.ratio, *reversed(tangents.input_gates)],
        sum(1 << (count + 1 - i) for i in range(count) if network.skips >> i & 1),
    )
    return solution / tangents.scale


def _spread_matrix(tangents: _Tangents) -> Tensor:
    """[D * P, D] of ones and zeros: every dimension's value for each of its parameters."""
    dim = tangents.scale.shape[1]
    unit = torch.eye(dim, dtype=tangents.scale.dtype, device=tangents.scale.device)
    return unit.repeat_interleave(tangents.ratio.shape[1] // dim, 0)


def _repeated(degrees: Tensor, spread: Tensor) -> Tensor:
    """For each parameter the degree of its dimension."""
    return degrees.repeat_interleave(spread.shape[0] // spread.shape[1])


def _linear_inverse(y: Tensor, weights, degrees, input_gates, output_gates, skips: int) -> Tensor:
    """The x [B, D] with x + network(x) = y, for a masked linear network with gates [B, units] or None."""
    biases = [weight.new_zeros(len(weight)) for weight in weights]
    gates = _gates(input_gates, output_gates)
    network = _Network(weights, biases, degrees, *gates, activated=0, skips=skips, activation=0)
    # What autograd.grad(is_grads_batched=True) maps, which refuses an operation that takes lists.
    if not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(y):
        x = y
        for _ in range(y.shape[1]):
            x = y - reference.causal.made(x, *network)[..., 0]
        return x
    return _made_inverse(y, *network, *SHIFT)[0]


def _gates(input_gates: list, output_gates: list) -> tuple[list[Tensor], list[Tensor], int, int]:
    """Gates or None of every layer as a network has them."""
    both = input_gates, output_gates
    given = ([gate for gate in gates if gate is not None] for gates in both)
    return *given, *(_bits([gate is not None for gate in gates]) for gates in both)


def _bits(flags: list[bool]) -> int:
    """As the dispatcher takes them."""
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def _inverse_backward(inputs, outputs, grads):
    # With y = F(x), log|det F'| = L(x): u = J^-T (g_x - g_L dL/dx), and parameters get -u dF - g_L dL.
    x, (to_x, to_log_abs_det) = outputs[0], grads
    _, pullback, values = _parallel(inputs, x)
    of_log_abs_det = pullback((torch.zeros_like(x), to_log_abs_det))[0]
    u = _inverse_of_transpose(_tangents(inputs, x, values), to_x - of_log_abs_det)
    return {"y": u, **dict(zip(LEARNED, pullback((-u, -to_log_abs_det))[1:]))}


def _filled(tangents, tensors) -> list[Tensor]:
    """A tangent for every tensor of a list, zeros where none is given."""
    tangents = [None] * len(tensors) if tangents is None else tangents
    return [torch.zeros_like(v) if t is None else t for t, v in zip(tangents, tensors)]


def _inverse_jvp(inputs, outputs, tangents):
    # With y = F(x, w), log|det F'| = L(x, w): dx = J^-1 (dy - F_w dw), and -dL of both.
    x, y_dot = outputs[0], tangents.y
    moved = [_filled(getattr(tangents, name), getattr(inputs, name)) for name in LEARNED]
    results, pullback, values = _parallel(inputs, x)
    # A pullback is linear: its own is the tangent map. Forward mode does not nest.
    _, pushforward = torch.func.vjp(pullback, tuple(map(torch.zeros_like, results)))
    of_learned = pushforward((torch.zeros_like(x), *moved))[0][0]
    right = -of_learned if y_dot is None else y_dot - of_learned
    x_dot = _inverse_of_tangents(_tangents(inputs, x, values), right)
    return x_dot, -pushforward((x_dot, *moved))[0][1]


_made_inverse = differentiable(
    raw_made_inverse, backward=_inverse_backward, jvp=_inverse_jvp, save_outputs=True
)


def _check_network(x: Tensor, weights: MADEWeights, degrees, context, gates) -> _Network:
    """The network in fp32 or fp64, with the context's terms added to its biases."""
    check_dtype("x", x)
    check(x.ndim == 2 and x.shape[1] > 0, "x", "shape [B, D] with D of at least 1", list(x.shape))
    if not isinstance(weights, MADEWeights):
        raise TypeError(f"weights: expected MADEWeights, got {type(weights).__name__}")
    check_choice("weights.activation", weights.activation, ACTIVATIONS)
    count = len(weights.weights)
    check(1 <= count <= MAX_LAYERS, "weights.weights", f"1 to {MAX_LAYERS} layers", count)
    check(len(weights.biases) == count, "weights.biases", f"{count} tensors", len(weights.biases))
    check(len(degrees) == count, "degrees", f"{count} tensors", len(degrees))
    activated, skips, width = _flags(weights, "activated"), _flags(weights, "skips"), x.shape[1]
    for i, (weight, bias, columns) in enumerate(zip(weights.weights, weights.biases, degrees)):
        check_same(f"weights.weights[{i}]", weight, x, "x", shape=False)
        check_same(f"weights.biases[{i}]", bias, x, "x", shape=False)
        check_dtype(f"degrees[{i}]", columns, (torch.int64,))
        check_shape(f"degrees[{i}]", columns, (width,), "[units]")
        check(weight.ndim == 2, f"weights.weights[{i}]", "a matrix [out, in]", list(weight.shape))
        check_shape(f"weights.weights[{i}]", weight, (weight.shape[0], width), "[out, in]")
        check_shape(f"weights.biases[{i}]", bias, (weight.shape[0],), "[out]")
        width = weight.shape[0]
    rows = f"a positive multiple of D = {x.shape[1]} rows"
    check(width > 0 and width % x.shape[1] == 0, f"weights.weights[{count - 1}]", rows, width)
    _check_skips(skips, degrees, weights)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    matrices = [weight.to(dtype) for weight in weights.weights]
    biases = [bias.to(dtype) for bias in weights.biases]
    terms, gates = (_per_sample(*named, x, biases) for named in (("context", context), ("gates", gates)))
    biases = [bias if term is None else bias + term for term, bias in zip(terms, biases)]
    activation = list(ACTIVATIONS).index(weights.activation)
    gates = _gates([None] * count, gates)
    return _Network(matrices, biases, list(degrees), *gates, _bits(activated), _bits(skips), activation)


def _flags(weights: MADEWeights, name: str) -> list[bool]:
    """One for every layer."""
    count, flags = len(weights.weights), getattr(weights, name)
    if flags is None:
        flags = (False,) * count if name == "skips" else (False,) + (True,) * (count - 1)
    check(len(flags) == count, f"weights.{name}", f"{count} booleans", len(flags))
    return list(flags)


def _check_skips(skips, degrees, weights: MADEWeights) -> None:
    """A skip adds units of the same degrees."""
    last = len(skips) - 1
    for i in (i for i, skip in enumerate(skips) if skip):
        check(1 < i < last, f"weights.skips[{i}]", "False in the first two and the last layer", True)
        added, rows = degrees[i - 1], len(weights.weights[i])
        check(len(added) == rows, f"weights.skips[{i}]", f"{rows} units two layers before", len(added))
        if values_are_checked(added):
            same = torch.equal(added, degrees[i + 1])
            check(same, f"degrees[{i + 1}]", f"degrees[{i - 1}], to which it is added", "others")


def _per_sample(name: str, given, x: Tensor, biases: list[Tensor]) -> list[Tensor | None]:
    """[B, out] or None for every layer, in the dtype of the biases."""
    given = () if given is None else given
    check(len(given) <= len(biases), name, f"at most {len(biases)} terms", len(given))
    for i, (term, bias) in enumerate(zip(given, biases)):
        if term is not None:
            check_same(f"{name}[{i}]", term, x, "x", shape=False)
            check_shape(f"{name}[{i}]", term, (len(x), len(bias)), "[B, out]")
    terms = [*given, *[None] * (len(biases) - len(given))]
    return [term if term is None else term.to(bias.dtype) for term, bias in zip(terms, biases)]


def _with_parameters_together(network: _Network, transform, dim: int) -> tuple:
    """Network and transform, where rows came as all of one kind before all of the other, by dimension."""
    if not getattr(transform, "layout", "").startswith("cat"):
        return network, transform
    (*weights, weight), (*biases, bias) = network.weights, network.biases
    gates, is_gated = network.output_gates, network.gated_outputs >> len(weights) & 1
    network = network._replace(
        weights=[*weights, _by_dimension(weight, 0, dim)],
        biases=[*biases, _by_dimension(bias, -1, dim)],
        output_gates=[*gates[:-1], _by_dimension(gates[-1], -1, dim)] if is_gated else gates,
    )
    return network, transform._replace(layout=transform.layout.replace("cat", "interleaved"))


def _by_dimension(tensor: Tensor, axis: int, dim: int) -> Tensor:
    """An axis of P * D entries as D * P."""
    axis %= tensor.ndim
    return tensor.unflatten(axis, (-1, dim)).transpose(axis, axis + 1).flatten(axis, axis + 1)


def _check_transform(transform, network: _Network, dim: int) -> None:
    check_transform(transform)
    rows = dim * num_parameters(transform)
    last, got = len(network.weights) - 1, len(network.weights[-1])
    check(got == rows, f"weights.weights[{last}]", f"{rows} rows for this transform", got)


def _transform_options(transform, dtype: torch.dtype) -> tuple:
    """The transform as the raw operation takes it."""
    if isinstance(transform, AffineTransform):
        clamp, limit, offset, min_scale, layout, order = transform
        numbers = checked_options(clamp, limit=limit, offset=offset, min_scale=min_scale)
        return TOGETHER.index(layout), CLAMPS.index(clamp), order == "shift_scale", *numbers, *NO_SPLINE
    bins, tails, bound, *least, parameterization, slope = transform
    kind = bins, TAILS.index(tails), parameterization == "zuko"
    return *NO_AFFINE, *kind, *checked_box(bound, tails, dtype), *map(float, least), float(slope)


def made(
    x: Tensor,
    weights: MADEWeights,
    degrees: Sequence[Tensor],
    *,
    context: Sequence | None = None,
    gates: Sequence | None = None,
) -> Tensor:
    r"""Parameters of every dimension from the dimensions of lower degree, by a masked network.

    A unit sees the units of the layer before whose degree is at most its own, and the parameters of a
    dimension those whose degree is below its own. Matrix products of PyTorch, whose precision autocast does
    not change: what the inverse finds is the inverse of this.

    Arguments:
        x: [B, D], fp32, fp64, bf16 or fp16 (computed in fp32).
        weights: layers of x's dtype; see :class:`genssl_fast.MADEWeights`.
        degrees: int64 tensors of the degrees of the inputs [D] and of each hidden layer's units [H_l], for
            instance by :func:`genssl_fast.made_degrees`; any order, ties allowed.
        context: for every layer a tensor [B, out] added to its bias, or None; trailing ones may be left out.
        gates: likewise, tensors [B, out] that multiply a layer's output, before a skip is added; of the
            last layer, the parameters. With the logistic function of a context, gated linear units.

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
    network = _check_network(x, weights, degrees, context, gates)
    return reference.causal.made(x.to(network.weights[0].dtype), *network).to(x.dtype)


def made_transform(
    x: Tensor,
    weights: MADEWeights,
    degrees: Sequence[Tensor],
    *,
    transform: AffineTransform | SplineTransform,
    context: Sequence | None = None,
    gates: Sequence | None = None,
) -> tuple[Tensor, Tensor]:
    """The autoregressive transform of x in the direction that takes one pass of the network.

    :func:`genssl_fast.made` and then the elementwise ``transform``. Its inverse is
    :func:`genssl_fast.made_inverse`.

    Arguments:
        x: [B, D], fp32, fp64, bf16 or fp16.
        weights, degrees, context, gates: the network, as for :func:`genssl_fast.made`.
        transform: of each dimension. The layout of an affine one says how the last layer's rows lie; with
            ``"cat"`` and ``"cat_scale_first"`` these are copied, to lie by dimension.

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
    network = _check_network(x, weights, degrees, context, gates)
    _check_transform(transform, network, x.shape[1])
    network, transform = _with_parameters_together(network, transform, x.shape[1])
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
    gates: Sequence | None = None,
) -> tuple[Tensor, Tensor]:
    """The x whose :func:`genssl_fast.made_transform` is y, for the work of about one pass instead of D.

    With hidden units sorted by degree, every weight is used once: the parameters of a dimension need
    only units of lower degree, and these only dimensions already found. It samples from a masked
    autoregressive flow, and evaluates the density of an inverse one. Derivatives follow from the implicit
    function theorem: the triangular system with the transform's Jacobian is the inverse of a masked linear
    network, gated by the slopes of the activations, and so takes one pass more.

    Arguments:
        y: [B, D], fp32, fp64, bf16 or fp16.
        weights, degrees, context, gates: the network, as for :func:`genssl_fast.made`.
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
    network = _check_network(y, weights, degrees, context, gates)
    _check_transform(transform, network, y.shape[1])
    network, transform = _with_parameters_together(network, transform, y.shape[1])
    options = _transform_options(transform, y.dtype)
    if (
        isinstance(transform, SplineTransform)
        and transform.tails is None
        and y.numel()
        and values_are_checked(y)
    ):
        check_inside(y, *checked_box(transform.bound, None, y.dtype)[2:])
    x, log_abs_det = _made_inverse(y.to(network.weights[0].dtype), *network, *options)
    return x.to(y.dtype), log_abs_det
