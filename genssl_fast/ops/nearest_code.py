"""Vector quantisation: the nearest code of every row, and sums over the rows of a code."""

from typing import NamedTuple

import torch
from torch import Tensor

from genssl_fast import reference
from genssl_fast._autograd import differentiable
from genssl_fast._checks import (
    check,
    check_count,
    check_dtype,
    check_same,
    check_shape,
    values_are_checked,
)
from genssl_fast._library import define, implement_triton
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["CodeSums", "NearestCode", "code_sums", "nearest_code"]

MOST_CODES = 1 << 24  # the CPU kernel keeps the numbers of codes in lanes of fp32


class NearestCode(NamedTuple):
    """What :func:`nearest_code` finds; counts and sums are None unless asked for."""

    indices: Tensor
    distances: Tensor
    counts: Tensor | None
    sums: Tensor | None


class CodeSums(NamedTuple):
    """Σ w_n and Σ w_n x_n over the rows of each code."""

    counts: Tensor
    sums: Tensor


def _fake_nearest_code(x, codebook):
    indices = x.new_empty(x.shape[0], dtype=torch.int64)
    return indices, x.new_empty(x.shape[0], dtype=compute_dtype(x.dtype))


def _fake_code_sums(x, indices, weights, num_codes):
    dtype = compute_dtype(x.dtype)
    return x.new_empty(num_codes, dtype=dtype), x.new_empty(num_codes, x.shape[1], dtype=dtype)


raw_nearest_code = define(
    "_nearest_code(Tensor x, Tensor codebook) -> (Tensor, Tensor)",
    reference=reference.contrast.nearest_code,
    fake=_fake_nearest_code,
)
raw_code_sums = define(
    "_code_sums(Tensor x, Tensor indices, Tensor? weights, SymInt num_codes) -> (Tensor, Tensor)",
    reference=reference.contrast.code_sums,
    fake=_fake_code_sums,
)
implement_triton("_nearest_code", "contrast.nearest_code", "nearest_code")
implement_triton("_code_sums", "contrast.code_sums", "code_sums")


def _sums_backward(inputs, outputs, grads):
    to_counts, to_sums = grads
    kept, codes = inputs.indices >= 0, inputs.indices.clamp(min=0)
    of_row = torch.where(kept[:, None], to_sums[codes], 0)
    if inputs.weights is None:
        return {"x": of_row}
    along_x = (of_row * inputs.x.to(of_row.dtype)).sum(-1)
    return {
        "x": of_row * inputs.weights[:, None],
        "weights": along_x + torch.where(kept, to_counts[codes], 0),
    }


def _sums_jvp(inputs, outputs, tangents):
    x, indices, weights, num_codes = inputs
    counts = sums = None
    if tangents.weights is not None:
        counts, sums = _code_sums(x, indices, tangents.weights, num_codes)
    if tangents.x is not None:
        moved = _code_sums(tangents.x, indices, weights, num_codes)[1]
        sums = moved if sums is None else sums + moved
    zeros = reference.contrast.code_sums(x[:0], indices[:0], None, num_codes)
    return zeros[0] if counts is None else counts, zeros[1] if sums is None else sums


_code_sums = differentiable(raw_code_sums, backward=_sums_backward, jvp=_sums_jvp)


def _class_sums_of_code_sums(z: Tensor, classes: Tensor) -> Tensor:
    return raw_code_sums(z, classes, None, len(z))[1][classes]


raw_class_sums = define(
    "_class_sums(Tensor z, Tensor classes) -> Tensor",
    reference=_class_sums_of_code_sums,
    fake=lambda z, classes: z.new_empty(z.shape, dtype=compute_dtype(z.dtype)),
    has_kernels=False,
)
# Its own transpose. By autograd the gradient of an index would be added up by atomics.
_class_sums = differentiable(
    raw_class_sums,
    backward=lambda inputs, outputs, grads: {"z": _class_sums(grads[0], inputs.classes)},
    jvp=lambda inputs, outputs, tangents: _class_sums(tangents.z, inputs.classes),
)


def class_sums(z: Tensor, classes: Tensor) -> Tensor:
    """For every row of z [N, D] the sum of the rows of its class, an int64 from 0 to N − 1."""
    return _class_sums(z, classes)


def _differences(inputs, indices: Tensor) -> Tensor:
    """x_n − c_index [N, D] in the type of the distances."""
    dtype = compute_dtype(inputs.x.dtype)
    return inputs.x.to(dtype) - inputs.codebook.to(dtype)[indices]


def _backward(inputs, outputs, grads):
    indices = outputs[0]
    to_x = 2 * grads[1][:, None] * _differences(inputs, indices)
    return {"x": to_x, "codebook": -_code_sums(to_x, indices, None, len(inputs.codebook))[1]}


def _jvp(inputs, outputs, tangents):
    indices = outputs[0]
    differences = _differences(inputs, indices)
    moved = torch.zeros_like(differences)
    if tangents.x is not None:
        moved = moved + tangents.x
    if tangents.codebook is not None:
        moved = moved - tangents.codebook[indices]
    return None, 2 * (differences * moved).sum(-1)


_nearest_code = differentiable(raw_nearest_code, backward=_backward, jvp=_jvp, save_outputs=True)


def nearest_code(
    x: Tensor, codebook: Tensor, *, sums: bool = False, weights: Tensor | None = None
) -> NearestCode:  # fmt: skip
    r"""The nearest code of every row, without the N×K matrix of distances.

    .. math::
        \mathrm{index}_n = \arg\min_k \lVert x_n - c_k \rVert^2, \qquad
        \mathrm{distance}_n = \lVert x_n - c_{\mathrm{index}_n} \rVert^2

    Codes compete by scores from one matrix product; where two are closer than rounding, by their
    differences in fp64. So the code found for fp32, bf16 and fp16 is the one that fp64 finds, also where
    the data lies far from the origin, and of equally near codes, duplicates for one, the first.
    The distance is a sum of squared differences. Extra memory is a copy of the codebook.

    Arguments:
        x: [N, D], fp32, fp64, bf16 or fp16; 16-bit floating point is computed in fp32.
        codebook: [K, D] in the dtype of ``x``, K at least 1.
        sums: whether to return the sums over each code's rows, as codebooks kept by moving averages and
            k-means need them; see :func:`code_sums`.
        weights: [N] in the dtype of ``x``, of the rows in those sums; ones by default.

    Returns:
        indices: int64 [N].
        distances: squared, [N] in fp32 (fp64 for fp64). Differentiable with respect to ``x`` and ``codebook``
            with the indices held fixed.
        counts, sums: [K] and [K, D] in the dtype of the distances; None unless asked for.

        A NaN counts as nearer than any number, as in ``torch.argmin``: a row with a NaN has index 0, a code
        with a NaN takes all other rows, and the distance is NaN.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or device; the message names it.

    References:
        van den Oord et al., Neural Discrete Representation Learning, https://arxiv.org/abs/1711.00937

    Example:
        >>> codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
        >>> found = genssl_fast.nearest_code(torch.tensor([[0.9, 1.0], [0.5, 0.5]]), codebook, sums=True)
        >>> found.indices, found.counts
        (tensor([1, 0]), tensor([1., 1., 0.]))
    """
    _check_rows("x", x)
    check_same("codebook", codebook, x, "x", shape=False)
    is_table = codebook.ndim == 2 and codebook.shape[1] == x.shape[1]
    expected = f"shape [K, D] = [K, {x.shape[1]}], K from 1 to 2^24"
    check(is_table and 1 <= codebook.shape[0] <= MOST_CODES, "codebook", expected, list(codebook.shape))
    check(sums or weights is None, "weights", "None without sums", "a tensor")
    indices, distances = _nearest_code(x, codebook)
    if not sums:
        return NearestCode(indices, distances, None, None)
    return NearestCode(indices, distances, *code_sums(x, indices, codebook.shape[0], weights=weights))


def code_sums(x: Tensor, indices: Tensor, num_codes: int, *, weights: Tensor | None = None) -> CodeSums:
    r"""Sums over the rows of each code, :math:`\sum w_n` and :math:`\sum w_n x_n`, accumulated in fp64.

    No atomics: the same bits in every run, for any number of threads.

    Arguments:
        x: [N, D], fp32, fp64, bf16 or fp16.
        indices: int64 [N], the code of every row; a row of index −1 is left out.
        num_codes: K.
        weights: [N] in the dtype of ``x``; ones by default.

    Returns:
        counts [K] and sums [K, D] in fp32 (fp64 for fp64), differentiable with respect to ``x`` and
        ``weights``.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype or device; the message names it. Indices
            out of range are found on the CPU, and on CUDA under ``GENSSL_CHECK=1``; otherwise left out there.

    Example:
        >>> genssl_fast.code_sums(torch.eye(3), torch.tensor([1, -1, 1]), 2).sums
        tensor([[0., 0., 0.],
                [1., 0., 1.]])
    """
    _check_rows("x", x)
    check_dtype("indices", indices, (torch.int64,))
    check_shape("indices", indices, x.shape[:1], "[N]")
    check(indices.device == x.device, "indices", f"a tensor on {x.device}", f"one on {indices.device}")
    if not isinstance(num_codes, torch.SymInt):
        check_count("num_codes", num_codes)
    if weights is not None:
        check_same("weights", weights, x, "x", shape=False)
        check_shape("weights", weights, x.shape[:1], "[N]")
    if values_are_checked(indices) and indices.numel():
        low, high = (int(value) for value in torch.aminmax(indices))
        check(low >= -1, "indices", "at least -1", low)
        check(high < num_codes, "indices", f"less than num_codes, {num_codes}", high)
    return CodeSums(*_code_sums(x, indices, weights, num_codes))


def _check_rows(name: str, x: Tensor) -> None:
    check_dtype(name, x)
    check(x.ndim == 2 and x.shape[1] > 0, name, "shape [N, D] with D of at least 1", list(x.shape))
