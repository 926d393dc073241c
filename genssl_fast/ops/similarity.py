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


def _numbers(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=compute_dtype(like.dtype))


def _fake_pair(x, y, *args):
    return _numbers(x, len(x)), _numbers(x, len(y) if args[-1] else 0)


def _fake_pair_backward(grad_rows, grad_columns, rows, columns, x, y, scale, row_bias, column_bias, *args):
    to_x, to_y = args[-2:]
    return (
        x.new_empty(x.shape if to_x else (0,)),
        y.new_empty(y.shape if to_y else (0,)),
        _numbers(x),
        _numbers(x, 0 if row_bias is None else len(x)),
        _numbers(x, 0 if column_bias is None else len(y)),
    )


def _fake_gram(z, *args):
    return _numbers(z, len(z))


def _fake_gram_backward(grad, log_sum, z, scale, bias, *args):
    return z.new_empty(z.shape), _numbers(z), _numbers(z, 0 if bias is None else len(z))


def _fake_pair_sum_backward(grad, z, scale, bias, *args):
    return *_fake_gram_backward(grad, None, z, scale, bias), _numbers(z, len(z))


def _fake_sigmoid(x, y, *args):
    found = (x.new_empty(x.shape), y.new_empty(y.shape), _numbers(x), _numbers(x))
    nothing = (x.new_empty(0), y.new_empty(0), _numbers(x, 0), _numbers(x, 0))
    return _numbers(x), *(found if args[-1] else nothing)


raw_pair_logsumexp = define(
    f"_pair_logsumexp({PAIR}, {PAIR_OPTIONS}, bool columns) -> (Tensor, Tensor)",
    reference=plain.pair_logsumexp,
    fake=_fake_pair,
)
raw_pair_logsumexp_backward = define(
    "_pair_logsumexp_backward(Tensor grad_rows, Tensor grad_columns, Tensor rows, Tensor columns, "
    f"{PAIR}, {PAIR_OPTIONS}, bool to_x, bool to_y) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=plain.pair_logsumexp_backward,
    fake=_fake_pair_backward,
)
raw_gram_logsumexp = define(
    f"_gram_logsumexp({GRAM}, Tensor? ids) -> Tensor",
    reference=plain.gram_logsumexp,
    fake=_fake_gram,
)
raw_gram_logsumexp_backward = define(
    f"_gram_logsumexp_backward(Tensor grad, Tensor log_sum, {GRAM}, Tensor? ids) -> (Tensor, Tensor, Tensor)",
    reference=plain.gram_logsumexp_backward,
    fake=_fake_gram_backward,
)
raw_gram_pair_sum = define(
    f"_gram_pair_sum({GRAM}, Tensor shift, int psi) -> Tensor",
    reference=plain.gram_pair_sum,
    fake=_fake_gram,
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


def _pair_backward(inputs, outputs, grads):
    options = inputs[:-1]
    to_x, to_y = _is_wanted(inputs.x) or _is_wanted(inputs.scale), _is_wanted(inputs.y)
    found = _pair_logsumexp_backward(*grads, *outputs, *options, to_x, to_y)
    names = ("x", "y", "scale", "row_bias", "column_bias")
    wanted = (to_x, to_y, True, inputs.row_bias is not None, inputs.column_bias is not None)
    return {name: grad for name, grad, want in zip(names, found, wanted) if want}


def _gram_backward(inputs, outputs, grads):
    to_z, to_scale, to_bias = _gram_logsumexp_backward(*grads, *outputs, *inputs)
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
    given = [torch.zeros_like(o) if g is None else g for o, g in zip(outputs, grads)]
    return rules_by_autograd(plain.sigmoid_pairs)["backward"](inputs, outputs, given)


pair_logsumexp = differentiable(
    raw_pair_logsumexp,
    backward=_pair_backward,
    jvp=rules_by_autograd(plain.pair_logsumexp)["jvp"],
    save_outputs=True,
)
gram_logsumexp = differentiable(
    raw_gram_logsumexp,
    backward=_gram_backward,
    jvp=rules_by_autograd(plain.gram_logsumexp)["jvp"],
    save_outputs=True,
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
