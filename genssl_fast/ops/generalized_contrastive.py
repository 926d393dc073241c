"""Contrastive losses of squared distances: InfoNCE, and any φ and ψ of their differences."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.checkpoint import checkpoint

from genssl_fast._autocast import without_autocast
from genssl_fast._checks import check, check_choice, check_shape
from genssl_fast.ops import ring as rings
from genssl_fast.ops.contrast_checks import (
    checked_ids,
    checked_matrix,
    checked_number,
    inverse_temperature,
    reduced,
)
from genssl_fast.ops.contrastive import checked_log_epsilon, with_positive
from genssl_fast.ops.fixed_sums import times, total
from genssl_fast.ops.psi import Psi
from genssl_fast.ops.ring import Ring
from genssl_fast.ops.similarity import gram_logsumexp, gram_pair_sum
from genssl_fast.reference.contrast.similarity import PSI
from genssl_fast.reference.integrate import compute_dtype

__all__ = ["generalized_contrastive", "info_nce_distance"]

PSIS = ("exponential", "linear", *PSI)
PHIS = ("identity", "log")
PAIRS_AT_ONCE = 1 << 22  # of a user's ψ


def info_nce_distance(
    z: Tensor,
    z_positive: Tensor,
    temperature: float | Tensor = 1.0,
    epsilon: float = 1.0,
    *,
    group: "dist.ProcessGroup | bool | None" = None,
) -> Tensor:
    r"""InfoNCE of squared distances, as it stands in derivations: a sum over rows, and τ in front.

    .. math::
        L = -\tau \sum_i \log \frac{e^{-d_i / \tau}}
        {\epsilon \, e^{-d_i / \tau} + \sum_{j \ne i} e^{-d_{ij} / \tau}},
        \qquad d_i = \|z_i - z'_i\|^2, \quad d_{ij} = \|z_i - z_j\|^2

    Distances are not halved: on the unit sphere :math:`d = 2 - 2 \cos`, so τ here is twice the temperature of
    :func:`genssl_fast.nt_xent`. The negatives are the other rows of ``z``, without their positives.
    Memory is O(N D).

    Arguments:
        z, z_positive: z and z' [N, D], fp32, fp64, bf16 or fp16 (computed in fp32).
        temperature: τ > 0, a number or a tensor [], learnable.
        epsilon: ε, at least 0, the weight of the positive in the denominator.
        group: processes over which the rows are spread; see :mod:`genssl_fast.ops.contrastive`.

    Returns:
        The loss [], in fp32 (fp64 for fp64).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.

    References:
        Tian, Understanding Deep Contrastive Learning via Coordinate-wise Optimization,
        https://arxiv.org/abs/2201.12680

    Example:
        >>> z = torch.eye(4)
        >>> genssl_fast.info_nce_distance(z, z, 1.0)
        tensor(1.3630)
    """
    return generalized_contrastive(
        z, z_positive, "log", "exponential", temperature=temperature, epsilon=epsilon, group=group
    )


def generalized_contrastive(
    z: Tensor,
    z_positive: Tensor,
    phi: str | Callable[[Tensor], Tensor] = "log",
    psi: str | Psi | Callable[[Tensor], Tensor] = "exponential",
    *,
    temperature: float | Tensor = 1.0,
    margin: float | Tensor = 0.0,
    epsilon: float = 1.0,
    group: "dist.ProcessGroup | bool | None" = None,
) -> Tensor:
    r"""The generalised contrastive loss, of any φ and ψ.

    .. math::
        L = \sum_i \phi(\xi_i), \qquad \xi_i = \sum_{j \ne i} \psi(d_i - d_{ij}), \qquad
        d_i = \|z_i - z'_i\|^2, \quad d_{ij} = \|z_i - z_j\|^2

    The argument of ψ is the distance to the positive minus the distance to a negative, in squares that are
    not halved, so an increasing ψ draws positives near (Tian, 2022; texts that write ψ of the negative of it
    need a decreasing ψ). With :math:`u = (x + \mathrm{margin}) / \tau`:

    ================ ==================== =======================================================
    ``psi``          ψ(x)
    ``"exponential"`` :math:`e^u`          in the logarithm where ``phi`` is ``"log"``
    ``"softplus"``   :math:`\log(1 + e^u)`
    ``"hinge"``      :math:`\max(0, u)`
    ``"sigmoid"``    :math:`1 / (1 + e^{-u})`
    ``"quadratic"``  :math:`u^2`
    ``"linear"``     :math:`u`            in O(N D) operations
    a ``Psi``        its function of u    in GPU kernels, if it has Triton functions, or in tiles
    a function       itself of x          in tiles, without temperature and margin
    ================ ==================== =======================================================

    ``phi="log"`` is :math:`\tau \log(\epsilon + \xi)`. So log and exponential give InfoNCE (of ε = 1 as
    NT-Xent, of 0 as DCL; of ε = 1 with a margin the soft triplet, with τ = 1 the (N+1)-tuplet loss), identity
    and hinge the triplet loss.

    Arguments:
        z, z_positive: z and z' [N, D], fp32, fp64, bf16 or fp16 (computed in fp32).
        phi: ``"log"``, ``"identity"``, or a differentiable function of ξ [N].
        psi: a name of the table, a :class:`genssl_fast.Psi`, or a differentiable elementwise function of the
            difference of distances. Functions are called on tiles of pairs, forward and again backward, so
            that memory stays O(N).
        temperature: τ > 0, a number or a tensor [], learnable.
        margin: a number or a tensor [], learnable.
        epsilon: ε of ``"log"``, at least 0.
        group: processes over which the rows are spread; see :mod:`genssl_fast.ops.contrastive`. For a φ that
            is named, and ψ exponential or linear.

    Returns:
        The loss [], a sum over rows, in fp32 (fp64 for fp64).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or range; the message names it.
        NotImplementedError: φ or ψ do not go over processes.

    References:
        Tian, Understanding Deep Contrastive Learning via Coordinate-wise Optimization,
        https://arxiv.org/abs/2201.12680

    Example:
        >>> z = torch.eye(4)
        >>> genssl_fast.generalized_contrastive(z, z, "identity", "hinge", margin=3.0)
        tensor(12.)
        >>> genssl_fast.generalized_contrastive(z, z, torch.sqrt, lambda x: torch.exp(x / 2))
        tensor(4.2022)
    """
    checked_matrix("z", z)
    checked_matrix("z_positive", z_positive, z, "z")
    check_shape("z_positive", z_positive, z.shape, "that of z")
    scale = inverse_temperature(temperature, z)
    check(scale.ndim == 0, "temperature", "one for all rows", list(scale.shape))
    margin = checked_number("margin", margin, z)
    log_epsilon = checked_log_epsilon(epsilon)
    if not callable(phi):
        check_choice("phi", phi, PHIS)
    ring = _ring(group, (z, z_positive, scale, margin), {"phi": phi, "psi": psi, "epsilon": epsilon})
    z, z_positive = _centered(z, z_positive, ring)
    if callable(psi):
        sums = _sums_of_function(psi, z, _squares(z - z_positive))
    else:
        if not isinstance(psi, Psi):
            check_choice("psi", psi, PSIS)
        # In units in which τ is 1: then no large terms cancel in its gradient.
        root = scale.sqrt()
        z, z_positive = times(root, z), times(root, z_positive)
        near = _squares(z - z_positive)
        shift = near + times(scale * margin, torch.ones_like(near))
        if psi == "exponential":
            log_sums = shift + _log_sums(z, ring)
            if phi == "log":
                return reduced(times(1 / scale, with_positive(log_sums, log_epsilon)), "sum", ring)
            sums = log_sums.exp()
        elif psi == "linear":
            sums = _linear_sums(z, shift, ring)
        elif isinstance(psi, Psi) and not _has_kernels(psi, z):
            sums = _sums_of_function(psi.function, z, shift)
        else:
            sums = gram_pair_sum(z, z.new_tensor(2.0), -_squares(z), shift, psi)
    if callable(phi):
        return total(phi(sums))
    return reduced(times(1 / scale, torch.log(epsilon + sums)) if phi == "log" else sums, "sum", ring)


def _ring(group, tensors: tuple[Tensor, ...], same: dict) -> Ring | None:
    """The processes of a group, and what they must agree on."""
    if group is None:
        return None
    if same["phi"] not in PHIS or same["psi"] not in ("exponential", "linear"):
        raise NotImplementedError(
            "group: expected phi 'log' or 'identity' and psi 'exponential' or 'linear', got "
            f"{same['phi']!r} and {same['psi']!r}: {rings.ALONE}"
        )
    return Ring(group, {"rows": tensors[:1]}, tensors[1:], {"loss": "generalized_contrastive"} | same)


def _log_sums(z, ring) -> Tensor:
    """log Σ_{j≠i} e^(−d_ij) [N]."""
    two, bias = z.new_tensor(2.0), -_squares(z)
    if ring is None:
        return gram_logsumexp(z, two, bias, None)
    ids = checked_ids("ids", None, len(z), z.device, ring.offset("rows"))
    return rings.gram_logsumexp(z, two, bias, ids, ring)


def _sum_of_rows(z, ring) -> Tensor:
    """[D], or with a ring for each row that of all processes [N, D]."""
    if ring is None:
        return z.sum(0)
    return rings.class_sums(z, torch.zeros(len(z), dtype=torch.int32, device=z.device), ring)


def _centered(z, z_positive, ring) -> tuple[Tensor, Tensor]:
    """Relative to the mean: distances do not change, and the squares that are to cancel become small."""
    dtype = compute_dtype(z.dtype)
    z, z_positive = z.to(dtype).contiguous(), z_positive.to(dtype).contiguous()
    origin = z.detach().mean(0) if ring is None else _sum_of_rows(z.detach(), ring)[:1] / ring.count
    return z - origin, z_positive - origin


def _squares(z: Tensor) -> Tensor:
    return z.square().sum(1)


def _linear_sums(z, shift, ring) -> Tensor:
    """Σ_{j≠i} (shift_i − d_ij) [N], from the sum of all rows."""
    squares, count = _squares(z), len(z) if ring is None else ring.count
    total = _sum_of_rows(torch.cat([z, squares[:, None]], 1), ring)
    distances = count * squares + total[..., -1] - 2 * (z * total[..., :-1]).sum(1)
    return (count - 1) * shift - distances


def _has_kernels(psi: Psi, z: Tensor) -> bool:
    return psi.number is not None and z.is_cuda


def _sums_of_function(psi, z, shift) -> Tensor:
    """Σ_{j≠i} ψ(shift_i − d_ij) [N], by tiles of rows that are computed again for the gradient."""
    columns, numbers = z.mT, torch.arange(len(z), device=z.device)
    squares = _squares(z)

    @without_autocast
    def tile(rows, shift, of_rows, first):
        products = rows @ columns
        differences = shift[:, None] - (of_rows[:, None] + squares - 2 * products)
        values = psi(differences)
        check_shape("psi", values, differences.shape, "that of its argument, [rows, N]")
        itself = numbers[first : first + len(rows), None] == numbers
        return values.masked_fill(itself, 0.0).sum(1)

    size = max(1, PAIRS_AT_ONCE // len(z))
    starts = range(0, len(z), size)
    parts = zip(z.split(size), shift.split(size), squares.split(size), starts)
    if torch._C._are_functorch_transforms_active():  # they refuse checkpoints
        return torch.cat([tile(*part) for part in parts])
    return torch.cat([checkpoint(tile, *part, use_reentrant=False) for part in parts])
