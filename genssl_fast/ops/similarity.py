"""Reductions over all pairs of rows, without the matrix of pairs: what the contrastive losses are made of.

The logit of a pair is ``s_ij = scale ⟨x_i, y_j⟩ + row_bias_i + column_bias_j``, in fp32 or better. Pairs with
equal ids are left out. ``scale`` is a tensor [] and ids are int32; the functions here check nothing.
"""

import torch
from torch import Tensor
from torch.autograd import forward_ad

from genssl_fast import reference
from genssl_fast._autograd import differentiable, rules_by_autograd, wants_gradient
from genssl_fast._library import define, implement_triton
from genssl_fast.ops.psi import Psi
from genssl_fast.reference.contrast.similarity import PSI
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["gram_logsumexp", "gram_pair_sum", "pair_logsumexp", "sigmoid_pairs"]

plain = reference.contrast.similarity
PAIR = "Tensor x, Tensor y, Tensor scale"
PAIR_OPTIONS = "Tensor? row_bias, Tensor? column_bias, Tensor? row_ids, Tensor? column_ids"
GRAM = "Tensor z, Tensor scale, Tensor? bias"
SCORES_PER_NUMBER = 4


def _numbers(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=compute_dtype(like.dtype))


def _fake_scores(x, y, keep):
    return _numbers(x, len(x), len(y)) if keep else _numbers(x, 1)


def _fake_pair(x, y, *args):
    columns, keep = args[-2:]
    return _numbers(x, len(x)), _numbers(x, len(y) if columns else 0), _fake_scores(x, y, keep)


def _fake_pair_backward(
    grad_rows, grad_columns, rows, columns, scores, x, y, scale, row_bias, column_bias, *args
):
    to_x, to_y = args[-2:]
    return (
        x.new_empty(x.shape if to_x else (0,)),
        y.new_empty(y.shape if to_y else (0,)),
        _numbers(x),
        _numbers(x, 0 if row_bias is None else len(x)),
        _numbers(x, 0 if column_bias is None else len(y)),
    )


def _fake_gram(z, *args):
    return _numbers(z, len(z)), _fake_scores(z, z, args[-1])


def _fake_gram_backward(grad, log_sum, scores, z, scale, bias, *args):
    return z.new_empty(z.shape), _numbers(z), _numbers(z, 0 if bias is None else len(z))


def _fake_pair_sum(z, *args):
    return _numbers(z, len(z))


def _fake_pair_sum_backward(grad, z, scale, bias, *args):
    return *_fake_gram_backward(grad, None, None, z, scale, bias), _numbers(z, len(z))


def _fake_sigmoid(x, y, *args):
    found = (x.new_empty(x.shape), y.new_empty(y.shape), _numbers(x), _numbers(x))
    nothing = (x.new_empty(0), y.new_empty(0), _numbers(x, 0), _numbers(x, 0))
    return _numbers(x), *(found if args[-1] else nothing)


raw_pair_logsumexp = define(
    f"_pair_logsumexp({PAIR}, {PAIR_OPTIONS}, bool columns, bool keep) -> (Tensor, Tensor, Tensor)",
    reference=plain.pair_logsumexp,
    fake=_fake_pair,
)
raw_pair_logsumexp_backward = define(
    "_pair_logsumexp_backward(Tensor grad_rows, Tensor grad_columns, Tensor rows, Tensor columns, "
    f"Tensor scores, {PAIR}, {PAIR_OPTIONS}, bool to_x, bool to_y) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=plain.pair_logsumexp_backward,
    fake=_fake_pair_backward,
)
raw_gram_logsumexp = define(
    f"_gram_logsumexp({GRAM}, Tensor? ids, bool keep) -> (Tensor, Tensor)",
    reference=plain.gram_logsumexp,
    fake=_fake_gram,
)
raw_gram_logsumexp_backward = define(
    f"_gram_logsumexp_backward(Tensor grad, Tensor log_sum, Tensor scores, {GRAM}, Tensor? ids) "
    "-> (Tensor, Tensor, Tensor)",
    reference=plain.gram_logsumexp_backward,
    fake=_fake_gram_backward,
)
raw_gram_pair_sum = define(
    f"_gram_pair_sum({GRAM}, Tensor shift, int psi) -> Tensor",
    reference=plain.gram_pair_sum,
    fake=_fake_pair_sum,
)
raw_gram_pair_sum_backward = define(
    f"_gram_pair_sum_backward(Tensor grad, {GRAM}, Tensor shift, int psi) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference=plain.gram_pair_sum_backward,
    fake=_fake_pair_sum_backward,
)
raw_sigmoid_pairs = define(
    f"_sigmoid_pairs({PAIR}, Tensor bias, Tensor row_ids, Tensor column_ids, bool gradients) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=plain.sigmoid_pairs,
    fake=_fake_sigmoid,
)
for operation in (
    "pair_logsumexp",
    "pair_logsumexp_backward",
    "gram_logsumexp",
    "gram_logsumexp_backward",
    "gram_pair_sum",
    "gram_pair_sum_backward",
    "sigmoid_pairs",
):
    implement_triton(f"_{operation}", "contrast.pairs", operation)

_pair_logsumexp_backward = differentiable(
    raw_pair_logsumexp_backward, **rules_by_autograd(plain.pair_logsumexp_backward)
)
_gram_logsumexp_backward = differentiable(
    raw_gram_logsumexp_backward, **rules_by_autograd(plain.gram_logsumexp_backward)
)
_gram_pair_sum_backward = differentiable(
    raw_gram_pair_sum_backward, **rules_by_autograd(plain.gram_pair_sum_backward)
)


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active()


def _is_wanted(tensor: Tensor) -> bool:
    return tensor.requires_grad or _is_transformed()


def _keeps_scores(x: Tensor, y: Tensor, *others: Tensor | None) -> bool:
    """Whether the backward pass finds the scores of the forward pass instead of computing them again.

    Only while they are a few times as many as the numbers of both matrices: memory stays O((N + M) D).
    """
    few = len(x) * len(y) <= SCORES_PER_NUMBER * (x.numel() + y.numel())
    # A GPU reads scores no faster than it computes them.
    plain_gradient = wants_gradient((x, y, *others)) and forward_ad._current_level < 0
    return few and x.device.type == "cpu" and plain_gradient and not _is_transformed()


def _zeros_if_none(grad: Tensor | None, output: Tensor) -> Tensor:
    return torch.zeros_like(output) if grad is None else grad


def _pair_backward(inputs, outputs, grads):
    options = inputs[:-2]
    to_x, to_y = _is_wanted(inputs.x) or _is_wanted(inputs.scale), _is_wanted(inputs.y)
    to_sums = [_zeros_if_none(grad, output) for grad, output in zip(grads[:2], outputs)]
    found = _pair_logsumexp_backward(*to_sums, *outputs, *options, to_x, to_y)
    names = ("x", "y", "scale", "row_bias", "column_bias")
    wanted = (to_x, to_y, True, inputs.row_bias is not None, inputs.column_bias is not None)
    return {name: grad for name, grad, want in zip(names, found, wanted) if want}


def _gram_backward(inputs, outputs, grads):
    to_sums = _zeros_if_none(grads[0], outputs[0])
    to_z, to_scale, to_bias = _gram_logsumexp_backward(to_sums, *outputs, *inputs[:-1])
    return {"z": to_z, "scale": to_scale, "bias": None if inputs.bias is None else to_bias}


def _pair_sum_backward(inputs, outputs, grads):
    to_z, to_scale, to_bias, to_shift = _gram_pair_sum_backward(*grads, *inputs)
    found = {"z": to_z, "scale": to_scale, "shift": to_shift}
    return found | {"bias": None if inputs.bias is None else to_bias}


def _sigmoid_backward(inputs, outputs, grads):
    """The saved gradients times that of the loss; where they have gradients of their own, by PyTorch."""
    to_loss, *to_gradients = grads
    names = ("x", "y", "scale", "bias")
    if to_loss is not None and all(grad is None for grad in to_gradients):
        return {name: (to_loss * grad).to(grad.dtype) for name, grad in zip(names, outputs[1:])}
    given = [_zeros_if_none(grad, output) for grad, output in zip(grads, outputs)]
    return rules_by_autograd(plain.sigmoid_pairs)["backward"](inputs, outputs, given)


_pair_logsumexp = differentiable(
    raw_pair_logsumexp,
    backward=_pair_backward,
    jvp=rules_by_autograd(plain.pair_logsumexp)["jvp"],
    save_outputs=True,
    materialize_grads=False,
)
_gram_logsumexp = differentiable(
    raw_gram_logsumexp,
    backward=_gram_backward,
    jvp=rules_by_autograd(plain.gram_logsumexp)["jvp"],
    save_outputs=True,
    materialize_grads=False,
)
_gram_pair_sum = differentiable(
    raw_gram_pair_sum, backward=_pair_sum_backward, jvp=rules_by_autograd(plain.gram_pair_sum)["jvp"]
)
_sigmoid_pairs = differentiable(
    raw_sigmoid_pairs,
    backward=_sigmoid_backward,
    jvp=rules_by_autograd(plain.sigmoid_pairs)["jvp"],
    save_outputs=True,
    materialize_grads=False,
)


def pair_logsumexp(
    x: Tensor, y: Tensor, scale: Tensor, row_bias: Tensor | None, column_bias: Tensor | None,
    row_ids: Tensor | None, column_ids: Tensor | None, columns: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """log Σ_j e^(s_ij) [N] and, if ``columns``, log Σ_i e^(s_ij) [M], which else is empty."""
    keep = _keeps_scores(x, y, scale, row_bias, column_bias)
    options = (row_bias, column_bias, row_ids, column_ids, columns, keep)
    of_rows, of_columns, _ = _pair_logsumexp(x, y, scale, *options)
    return of_rows, of_columns


def gram_logsumexp(z: Tensor, scale: Tensor, bias: Tensor | None, ids: Tensor | None) -> Tensor:
    """log Σ_{j≠i} e^(s_ij) [N], with ids over the rows of another id."""
    return _gram_logsumexp(z, scale, bias, ids, _keeps_scores(z, z, scale, bias))[0]


def gram_pair_sum(z: Tensor, scale: Tensor, bias: Tensor | None, shift: Tensor, psi: str | Psi) -> Tensor:
    """Σ_{j≠i} ψ(shift_i + s_ij) [N] for a ψ of the menu, by its name, or one of a user that has kernels."""
    number = psi.number if isinstance(psi, Psi) else list(PSI).index(psi)
    return _gram_pair_sum(z, scale, bias, shift, number)


def sigmoid_pairs(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, row_ids: Tensor, column_ids: Tensor
) -> Tensor:
    """Σ_ij of log(1 + e^s_ij), or log(1 + e^−s_ij) where ids are equal; its gradients are found with it."""
    gradients = wants_gradient((x, y, scale, bias)) or forward_ad._current_level >= 0 or _is_transformed()
    return _sigmoid_pairs(x, y, scale, bias, row_ids, column_ids, gradients)[0]
