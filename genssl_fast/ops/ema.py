"""Exponential moving averages of parameters, also of 16-bit ones in fp32."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from genssl_fast import reference
from genssl_fast._autograd import forbid_derivatives
from genssl_fast._checks import check, check_dtype, check_shape
from genssl_fast._library import define

__all__ = ["ema_update"]

HALF = (torch.bfloat16, torch.float16)

raw_ema_update = define(
    "_ema_update(Tensor(a!)[] averages, Tensor[] parameters, float weight) -> ()",
    reference=reference.contrast.ema_update,
    fake=lambda averages, parameters, weight: None,
)
forbid_derivatives(
    raw_ema_update, "averages are no function of the parameters; call it under torch.no_grad()"
)


@torch.no_grad()
def ema_update(
    averages: nn.Module | Iterable[Tensor], parameters: nn.Module | Iterable[Tensor], decay: float
) -> None:
    r"""Moves averages towards parameters, in place: :math:`a \leftarrow d\,a + (1 - d)\,p`.

    Averages are fp32 or fp64 whatever the parameters are. 16-bit averages are refused: with a decay of 0.9999
    the step rounds to nothing, and they stay where they began. The averages of a 16-bit model are those of
    ``copy.deepcopy(model).float()``.

    Arguments:
        averages: fp32 or fp64 tensors, or a module whose parameters are meant; its buffers are the caller's.
        parameters: as many, of the same shapes and devices, fp32, fp64, bf16 or fp16; or a module.
        decay: d in [0, 1]: 0.996 and more in BYOL and DINO, 0.999 in MoCo.

    Raises:
        ValueError, TypeError: different numbers of tensors, or one of the wrong shape, dtype or device; the
            message names it.

    Example:
        >>> average, parameter = torch.zeros(3), torch.ones(3, dtype=torch.bfloat16)
        >>> genssl_fast.ema_update([average], [parameter], decay=0.75)
        >>> average
        tensor([0.2500, 0.2500, 0.2500])
    """
    averages, parameters = _tensors_of(averages), _tensors_of(parameters)
    check(len(averages) == len(parameters), "parameters", f"{len(averages)}, like averages", len(parameters))
    check(0 <= decay <= 1, "decay", "a number in [0, 1]", decay)
    for i, (average, parameter) in enumerate(zip(averages, parameters)):
        _check_pair(i, average, parameter)
    half, same = [], []
    for pair in zip(averages, parameters):
        in_one_pass = pair[0].dtype == torch.float32 and pair[1].dtype in HALF and pair[0].is_contiguous()
        (half if in_one_pass and not pair[0].is_cuda else same).append(pair)
    if half:
        raw_ema_update(*map(list, zip(*half)), 1 - decay)
    if same:
        torch._foreach_lerp_([a for a, _ in same], [p.to(a.dtype) for a, p in same], 1 - decay)


def _tensors_of(tensors: nn.Module | Iterable[Tensor]) -> list[Tensor]:
    return list(tensors.parameters() if isinstance(tensors, nn.Module) else tensors)


def _check_pair(i: int, average: Tensor, parameter: Tensor) -> None:
    check_dtype(f"averages[{i}]", average, (torch.float32, torch.float64))
    check_dtype(f"parameters[{i}]", parameter)
    check_shape(f"parameters[{i}]", parameter, tuple(average.shape), f"that of averages[{i}]")
    expected = f"a tensor on {average.device}, like averages[{i}]"
    check(parameter.device == average.device, f"parameters[{i}]", expected, f"one on {parameter.device}")
