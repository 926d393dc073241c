"""Sampling: process, sampler and network make samples that depend on the seed and their number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import Tensor, nn

from genssl_fast._checks import check, check_choice, check_shape
from genssl_fast.diffusion.loops import CompiledLoop, EagerLoop, LangevinCorrector
from genssl_fast.diffusion.processes import GaussianProcess
from genssl_fast.diffusion.samplers import SAMPLERS
from genssl_fast.nn import FilmMLP
from genssl_fast.ops.coefficient_table import CoefficientTable

__all__ = ["sample"]


@torch.no_grad()
def sample(
    model: Callable[..., Tensor],
    process: GaussianProcess,
    *,
    shape: tuple[int, ...],
    sampler: str | CoefficientTable = "ddim",
    steps: int = 50,
    parameterization: str = "noise",
    clip_denoised: float | None = None,
    labels: Tensor | None = None,
    time_scale: float = 1.0,
    input_scale: Callable[[Tensor, Tensor], Tensor] | None = None,
    corrector: LangevinCorrector | None = None,
    initial: Tensor | None = None,
    seed: int | None = None,
    first_sample: int = 0,
    batch: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    callback: Callable[[int, int, Tensor], None] | None = None,
    check_finite: bool = False,
    **sampler_options,
) -> Tensor:
    r"""Draws samples from the model of a score network.

    The noise of sample number ``first_sample + k`` at step i depends only on (seed, number, i):
    the same samples come out whatever the batch, and a share of them can be drawn anywhere. For a
    :class:`genssl_fast.nn.FilmMLP` this holds bit for bit on one device, and the whole loop runs
    as one compiled operation; other networks are as independent of the batch as their own
    operations are.

    Arguments:
        model: The network, called as ``model(x, t)`` or ``model(x, t, labels)`` with x [B, ...] and
            t [B] in fp32 or better.
        process: The forward process that the network was trained with.
        shape: The shape [count, ...] of the samples.
        sampler: A name in :data:`SAMPLERS`, or a table. Arguments that describe the network must be
            those that a table was made with.
        steps: The number of steps of a named sampler.
        parameterization: What the network predicts.
        clip_denoised: Bound of the absolute value of the denoised prediction.
        labels: Class labels [count], int64.
        time_scale: The network is given ``time_scale * t``.
        input_scale: The network is given ``input_scale(alpha, sigma) * x``, see :class:`TimeGrid`.
        corrector: Langevin steps between those of the sampler; runs eagerly.
        initial: The initial states in the shape of the samples, instead of draws from the prior.
        seed: The seed. ``None`` takes one from PyTorch's default generator.
        first_sample: The number of the first sample.
        batch: The number of samples in the works at once, all by default.
        device: The device, that of the network's parameters by default, else the CPU.
        dtype: The data type, that of the network's parameters by default, else fp32.
        backend: ``"compiled"`` for the whole loop as one operation, ``"eager"`` for a loop in
            Python, ``"auto"`` for the first where it is possible.
        callback: Called as ``callback(done, total, x)`` after every step, or after every batch of
            the compiled loop; ``done`` and ``total`` count steps over all batches.
        check_finite: Whether to look for NaN and infinity in every output of the network, or in
            the result of the compiled loop. On a GPU this waits for every step.
        sampler_options: Options of the named sampler, such as ``eta`` or ``spacing``.

    Returns:
        The samples, of shape ``shape``.

    Raises:
        ValueError: If an argument is out of range or of the wrong shape.
        NonFiniteError: If ``check_finite`` finds NaN or infinity.

    Example:
        >>> from genssl_fast.diffusion import VPSDE, sample
        >>> def exact_noise(x, t):  # the data are one Gaussian of standard deviation 1
        ...     return VPSDE().sigma(t)[:, None] * x
        >>> x = sample(exact_noise, VPSDE(), shape=(4, 2), steps=10, seed=0)
        >>> half = sample(exact_noise, VPSDE(), shape=(2, 2), steps=10, seed=0, first_sample=2)
        >>> torch.equal(x[2:], half)
        True
    """
    _check_arguments(model, process, shape, steps, labels, initial, batch)
    count = shape[0]
    network = {
        "parameterization": parameterization,
        "time_scale": time_scale,
        "input_scale": input_scale,
    }
    table = _table(sampler, process, steps, clip_denoised, network, sampler_options)
    device, dtype = _placement(model, device, dtype)
    seed = int(torch.randint(2**63 - 1, ())) if seed is None else seed
    loop = _loop(backend, model, corrector)(
        model=model,
        table=table,
        seed=seed,
        clip_denoised=clip_denoised,
        corrector=corrector,
        corrector_rows=corrector and corrector.rows(process, table, **network),
        check_finite=check_finite,
    )
    scale = _initial_scale(process, table, time_scale, input_scale)

    batch = max(batch or count, 1)
    done, total = 0, len(table) * math.ceil(count / batch)

    def report(rows: int, x: Tensor) -> None:
        nonlocal done
        done += rows
        if callback is not None:
            callback(done, total, x)

    samples = torch.empty(shape, device=device, dtype=dtype)
    for first in range(0, count, batch):
        part = slice(first, min(first + batch, count))
        if initial is None:
            numbers = {"seed": seed, "first_sample": first_sample + first}
            x = process.prior_sampling(samples[part].shape, **numbers, dtype=dtype, device=device)
        else:
            x = initial[part].to(device, dtype)
        part_labels = None if labels is None else labels[part].to(device)
        samples[part] = loop(scale * x, part_labels, first_sample + first, report)
    return samples


def _check_arguments(model, process, shape, steps, labels, initial, batch) -> None:
    check(isinstance(process, GaussianProcess), "process", "a process, such as VPSDE()", process)
    shaped = isinstance(shape, Sequence) and len(shape) >= 2
    shaped = shaped and all(isinstance(size, Integral) and size >= 0 for size in shape)
    check(shaped, "shape", "whole numbers (count, ...), at least two of them", shape)
    check(isinstance(steps, Integral), "steps", "a whole number", repr(steps))
    if isinstance(model, FilmMLP):
        expected = f"[count, *{list(model.shape)}] as of the network"
        check(tuple(shape[1:]) == model.shape, "shape", expected, list(shape))
    check(batch is None or batch >= 1, "batch", "at least 1", batch)
    if labels is not None:
        check_shape("labels", labels, shape[:1], "[count]")
    if initial is not None:
        check_shape("initial", initial, shape, "[count, ...]")


def _table(sampler, process, steps, clip_denoised, network, options) -> CoefficientTable:
    if isinstance(sampler, CoefficientTable):
        check(not options, "sampler", "no options beside a table", ", ".join(options))
        return sampler
    check_choice("sampler", sampler, SAMPLERS)
    return SAMPLERS[sampler](process, steps, clip_denoised=clip_denoised, **network, **options)


def _placement(model, device, dtype) -> tuple[torch.device, torch.dtype]:
    """The given device and dtype, or those of the network's parameters."""
    parameters = model.parameters() if isinstance(model, nn.Module) else iter(())
    like = next(parameters, torch.empty(0, dtype=torch.float32, device="cpu"))
    return torch.device(device or like.device), dtype or like.dtype


def _loop(backend: str, model, corrector) -> type[EagerLoop]:
    check_choice("backend", backend, ("auto", "compiled", "eager"))
    possible = isinstance(model, FilmMLP) and corrector is None
    expected = "a FilmMLP without a corrector for 'compiled'"
    check(possible or backend != "compiled", "backend", expected, type(model).__name__)
    return CompiledLoop if possible and backend != "eager" else EagerLoop


def _initial_scale(process, table: CoefficientTable, time_scale: float, input_scale) -> float:
    """What the network wants the first states to be multiplied by."""
    if input_scale is None or len(table) == 0:
        return 1.0
    t = table.time[0] / time_scale
    return float(input_scale(process.alpha(t), process.sigma(t)))
