"""Derivatives of operations, generated from a ``backward`` and a ``jvp`` rule.

PyTorch's registration alone gives silently zero tangents under ``torch.func.jvp``, and ``torch.compile``
drops the ``jvp`` of an ``autograd.Function``. So each public function takes one of three paths:

- plain: the dispatcher's operation, with registered autograd;
- ``torch.func`` transforms or dual numbers in eager: an ``autograd.Function`` with every rule;
- the same under ``torch.compile``: unpack the duals, run operation and ``jvp`` rule, pack again. An
  operation that is still transformed or given duals then takes the second path from inside the dispatcher.

Rules name the arguments of the schema::

    def backward(inputs, outputs, grads):   # -> {"x": gradient, ...}, absent means None
    def jvp(inputs, outputs, tangents):     # -> one tangent per output; an absent tangent is None,
                                            #    and so is that of an output of integers

Both are written in differentiable PyTorch, so second derivatives and forward-over-reverse follow.
"""

from collections import namedtuple
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from genssl_fast._autocast import without_autocast
from genssl_fast._library import LIBRARY

__all__ = ["differentiable", "forbid_derivatives", "rules_by_autograd"]

# Before 2.12 PyTorch cannot go back to torch.func's layer from inside a kernel.
REENTRANT = torch.__version__ >= (2, 12)


def differentiable(
    op, *, backward: Callable, jvp: Callable, save_outputs: bool = False, materialize_grads: bool = True
) -> Callable:
    """The function that users call: ``op`` with its derivatives on every path.

    Arguments:
        op: overload defined by :func:`genssl_fast._library.define`.
        backward: rule for gradients.
        jvp: rule for tangents.
        save_outputs: whether the rules read the outputs.
        materialize_grads: whether an output without a gradient gives the rule zeros, or else None.
    """
    rules = _Rules(op, backward, jvp, save_outputs, materialize_grads)
    transform, record = _transform_function(op, rules), _recorder(op, rules)
    _register_autograd(op, rules, transform, record)
    _register_vmap(op)

    def apply(*args):
        if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
            if torch.compiler.is_compiling():
                _check_traceable()
                return _dual(op, rules, args)
            flat, structure = tree_flatten(args)
            return transform.apply(structure, *flat)
        if torch.compiler.is_compiling():
            return op(*args)
        # Without the dispatcher's way to a Python kernel, which takes 11 µs.
        if wants_gradient(args):
            return record(_below_autograd_directly, args)
        return _below_autograd_directly(op, args)

    return apply


def forbid_derivatives(op, advice: str) -> None:
    """Makes a raw operation raise, instead of losing gradients, where a derivative is asked for."""
    _register_vmap(op)

    def guard(keyset, *args):
        if wants_gradient(args) or has_tangent(args):
            raise RuntimeError(f"{op.name()} has no derivative: {advice}")
        return _below_autograd(op, keyset, args)

    LIBRARY.impl(op.name().split("::")[1], guard, "Autograd", with_keyset=True)


def rules_by_autograd(reference: Callable) -> dict[str, Callable]:
    """Both rules of an operation from PyTorch's derivatives of its reference; for what is rarely hot.

    Example:
        >>> from genssl_fast._autograd import rules_by_autograd
        >>> sorted(rules_by_autograd(torch.sin))
        ['backward', 'jvp']
    """

    def over_tensors(inputs):
        """The reference as a function of its floating-point tensors, their names and values."""
        names = [name for name, value in zip(inputs._fields, inputs) if _is_floating(value)]

        def function(*values):
            return reference(*inputs._replace(**dict(zip(names, values))))

        return function, names, [getattr(inputs, name) for name in names]

    def backward(inputs, outputs, grads):
        function, names, values = over_tensors(inputs)
        output, pullback = torch.func.vjp(function, *values)
        found = pullback(tuple(grads) if isinstance(output, tuple) else grads[0])
        return dict(zip(names, found))

    def jvp(inputs, outputs, tangents):
        function, names, values = over_tensors(inputs)
        given = [getattr(tangents, name) for name in names]
        moved = tuple(torch.zeros_like(v) if t is None else t for t, v in zip(given, values))
        # The pullback is linear: its own pullback is the tangent map. Forward mode does not nest.
        output, pullback = torch.func.vjp(function, *values)
        _, pushforward = torch.func.vjp(pullback, tree_map(torch.zeros_like, output))
        return pushforward(moved)[0]

    return {"backward": backward, "jvp": jvp}


def wants_gradient(args) -> bool:
    """Whether autograd records an operation on these arguments."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors(args))


def has_tangent(args) -> bool:
    """Whether a tensor among the arguments is a dual number."""
    if forward_ad._current_level < 0 and not torch._C._are_functorch_transforms_active():
        return False
    return any(torch._VF._unpack_dual(tensor, level=0)[1] is not None for tensor in _tensors(args))


def _tensors(args) -> list:
    """The tensors among arguments and lists of arguments."""
    lists = (arg if isinstance(arg, list | tuple) else (arg,) for arg in args)
    return [leaf for leaves in lists for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _is_floating(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _below_autograd_directly(op, args):
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _below_autograd(op, keyset, args):
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)


class _Rules:
    """The two rules of an operation, with arguments by name."""

    def __init__(self, op, backward, jvp, save_outputs, materialize_grads):
        self.names = [argument.name for argument in op._schema.arguments]
        self.Arguments = namedtuple("Arguments", self.names)  # Dynamo traces it, unlike SimpleNamespace
        self.backward, self.jvp = without_autocast(backward), without_autocast(jvp)
        self.save_outputs, self.materialize_grads = save_outputs, materialize_grads
        self.has_lists = any("List" in str(argument.type) for argument in op._schema.arguments)

    def named(self, values):
        return self.Arguments(*values)

    def flatten(self, args) -> tuple:
        """Leaves of arguments and what puts them together again."""
        return tree_flatten(args) if self.has_lists else (args, None)

    def unflatten(self, leaves, structure):
        return tree_unflatten(leaves, structure) if self.has_lists else leaves

    def save(self, ctx, args, output, forward: bool = False) -> None:
        """Keeps tensors through PyTorch's own saving, and the rest beside it."""
        ctx.set_materialize_grads(self.materialize_grads)
        outputs = _as_tuple(output) if self.save_outputs else ()
        leaves, ctx.structure = self.flatten(tuple(args))
        ctx.num_arguments, leaves = len(leaves), (*leaves, *outputs)
        ctx.is_tensor = [isinstance(leaf, torch.Tensor) for leaf in leaves]
        ctx.others = [None if tensor else leaf for leaf, tensor in zip(leaves, ctx.is_tensor)]
        tensors = [leaf for leaf, tensor in zip(leaves, ctx.is_tensor) if tensor]
        ctx.save_for_backward(*tensors)
        if forward:
            ctx.save_for_forward(*tensors)

    def saved(self, ctx):
        """Arguments and outputs."""
        tensors = iter(ctx.saved_tensors)
        leaves = [next(tensors) if tensor else other for tensor, other in zip(ctx.is_tensor, ctx.others)]
        args = self.unflatten(tuple(leaves[: ctx.num_arguments]), ctx.structure)
        return args, tuple(leaves[ctx.num_arguments :])

    def backward_of_context(self, ctx, *grads):
        args, outputs = self.saved(ctx)
        found = self.backward(self.named(args), outputs, grads)
        return tuple(_like_argument(found.get(name), arg) for name, arg in zip(self.names, args))


def _register_autograd(op, rules: _Rules, transform, record) -> None:
    """Gradients of the dispatcher's operation, and every rule where a transform or a dual reaches it."""

    def kernel(keyset, *args):
        if REENTRANT and torch._C._are_functorch_transforms_active():
            flat, structure = tree_flatten(args)
            with _transforms_from_the_top():
                return transform.apply(structure, *flat)
        if torch._C._is_fwd_grad_enabled() and has_tangent(args):
            flat, structure = tree_flatten(args)
            return transform.apply(structure, *flat)
        if not wants_gradient(args):
            return _below_autograd(op, keyset, args)
        return record(lambda op, args: _below_autograd(op, keyset, args), args)

    LIBRARY.impl(op.name().split("::")[1], kernel, "Autograd", with_keyset=True)


def _recorder(op, rules: _Rules) -> Callable:
    """A call that autograd records; PyTorch's ``register_autograd`` takes 85 µs more for 19 arguments.

    Autograd is given the tensors alone: it looks at every argument, and wants a gradient for each.
    """

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, run, args, *tensors):
            output = run(op, args)
            rules.save(ctx, args, output)
            return tuple(output) if isinstance(output, list) else output

        @staticmethod
        def backward(ctx, *grads):
            found = rules.flatten(rules.backward_of_context(ctx, *grads))[0]
            of_tensors = (grad for grad, is_tensor in zip(found, ctx.is_tensor) if is_tensor)
            return None, None, *of_tensors

    Recorded.__name__ = op.name().split("::_")[-1]
    return lambda run, args: Recorded.apply(run, args, *_tensors(args))


@contextmanager
def _transforms_from_the_top():
    """Inside a kernel the dispatcher has left torch.func's layer; calls go through it again."""
    layer = torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode
    included = torch._C._dispatch_tls_local_include_set() | torch._C.DispatchKeySet(layer)
    excluded = torch._C._dispatch_tls_local_exclude_set().remove(layer)
    with torch._C._ForceDispatchKeyGuard(included, excluded):
        yield


def _transform_function(op, rules: _Rules):
    """The operation as an ``autograd.Function`` over flattened arguments."""

    class Transform(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(structure, *flat):
            return op(*tree_unflatten(flat, structure))

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.arguments = inputs[0]
            rules.save(ctx, tree_unflatten(inputs[1:], inputs[0]), output, forward=True)

        @staticmethod
        def backward(ctx, *grads):
            return None, *tree_flatten(rules.backward_of_context(ctx, *grads))[0]

        @staticmethod
        def jvp(ctx, _, *tangents):
            args, outputs = rules.saved(ctx)
            named = rules.named(tree_unflatten(tangents, ctx.arguments))
            # PyTorch turns forward mode off here, which would lose the tangents of an outer jvp.
            with forward_ad._set_fwd_grad_enabled(True):
                args, outputs = tree_map(_primal, (args, outputs))
                result = rules.jvp(rules.named(args), outputs, named)
            return result if len(op._schema.returns) > 1 else _as_tuple(result)[0]

    Transform.__name__ = op.name().split("::_")[-1]
    return Transform


@torch.compiler.assume_constant_result
def _check_traceable() -> None:
    """Duals inside a gradient make PyTorch fail by internal assertions while it compiles."""
    kinds = [layer.key().name for layer in torch._C._functorch.get_interpreter_stack() or ()]
    if "Jvp" in kinds and "Grad" in kinds[kinds.index("Jvp") :]:
        raise NotImplementedError(
            "torch.compile of forward over reverse mode, as jvp(grad(f)), jacfwd(grad(f)) or hessian(f): "
            "nest reverse modes instead, as jacrev(grad(f)), or leave torch.compile out"
        )


def _dual(op, rules: _Rules, args):
    """Operation and jvp on unpacked dual numbers, packed again; what torch.compile can trace."""
    flat, structure = tree_flatten(args)
    pairs = [
        forward_ad.unpack_dual(leaf) if isinstance(leaf, torch.Tensor) else (leaf, None) for leaf in flat
    ]
    primals = tree_unflatten([pair[0] for pair in pairs], structure)
    output = op(*primals)
    if all(pair[1] is None for pair in pairs):
        return output
    outputs = _as_tuple(output)
    tangents = rules.named(tree_unflatten([pair[1] for pair in pairs], structure))
    found = _as_tuple(rules.jvp(rules.named(primals), outputs, tangents))
    packed = tuple(
        value if tangent is None else forward_ad.make_dual(value, tangent)
        for value, tangent in zip(outputs, found)
    )
    return packed if len(outputs) > 1 else packed[0]


def _register_vmap(op) -> None:
    """Under vmap, one call per entry of the mapped dimension."""

    def rule(info, in_dims, *args):
        flat, structure = tree_flatten(args)
        dims = _broadcast_dims(in_dims, args)

        def entry(i):
            taken = [leaf if dim is None else _entry(leaf, dim, i) for leaf, dim in zip(flat, dims)]
            return op(*tree_unflatten(taken, structure))

        results = [entry(i) for i in range(max(info.batch_size, 1))]  # one of zeros tells the shapes of none
        if isinstance(results[0], torch.Tensor):
            return torch.stack(results)[: info.batch_size], 0
        stacked = (torch.stack(values)[: info.batch_size] for values in zip(*results))
        return tuple(stacked), (0,) * len(results[0])

    torch.library.register_vmap(op, rule, lib=LIBRARY)


def _entry(tensor: torch.Tensor, dim: int, i: int) -> torch.Tensor:
    """Entry i of a dimension; zeros where it has none."""
    if tensor.shape[dim]:
        return tensor.select(dim, i)
    return tensor.new_zeros(tensor.shape[:dim] + tensor.shape[dim + 1 :])


def _broadcast_dims(in_dims, args) -> list:
    """One mapped dimension (or None) per leaf of the arguments."""
    dims = []
    for dim, arg in zip(in_dims, args):
        leaves = tree_flatten(arg)[0]
        dims += list(dim) if isinstance(dim, list | tuple) else [dim] * len(leaves)
    return dims


def _primal(leaf):
    """Without the tangent of the innermost level."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    functorch = torch._C._functorch
    if functorch.is_batchedtensor(leaf):  # unpack_dual has no rule for vmap
        inside = _primal(functorch.get_unwrapped(leaf))
        dim, level = functorch.maybe_get_bdim(leaf), functorch.maybe_get_level(leaf)
        return functorch._add_batch_dim(inside, dim, level)
    return forward_ad.unpack_dual(leaf).primal


def _like_argument(gradient, argument):
    """A list argument needs a list of gradients, even where all are None."""
    if isinstance(argument, list | tuple) and gradient is None:
        return tree_map(lambda _: None, argument)
    return gradient


def _as_tuple(value) -> tuple:
    return value if isinstance(value, tuple) else tuple(value) if isinstance(value, list) else (value,)
