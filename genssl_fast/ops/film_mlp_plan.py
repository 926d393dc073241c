"""A FiLM-MLP on the CPU whose packed weights outlive one call."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from genssl_fast._autograd import has_tangent
from genssl_fast._checks import check
from genssl_fast._library import native_module
from genssl_fast._packing import address, check_runs_here, contiguous, identity, number
from genssl_fast._random import fold_seed, fold_step
from genssl_fast.ops.coefficient_table import CoefficientTable
from genssl_fast.ops.film_mlp_sample import FIRST_STEP, check_sampling
from genssl_fast.ops.score import FilmMLPWeights, check_film_mlp, embedding_frequencies

__all__ = ["FilmMLPPlan"]


class FilmMLPPlan:
    """A FiLM-MLP that keeps its weights packed between calls; CPU, fp32 or fp64, no derivatives.

    Weights changed in place are noticed by their data pointer and version and packed anew. A change
    that PyTorch does not count, as through NumPy or by an optimizer with ``fused=True``, needs
    :meth:`refresh`. Results have the bits of :func:`genssl_fast.film_mlp` and
    :func:`genssl_fast.film_mlp_sample`.

    Arguments:
        weights: the network; the tensors are kept, and read again where they have changed.
        kind, convention, max_period, frequencies: as for :func:`genssl_fast.film_mlp`.

    Raises:
        RuntimeError: the compiled library is missing.
        ValueError, TypeError: weights of the wrong shape, dtype or device.

    Example:
        >>> network = genssl_fast.nn.FilmMLP(2, hidden=32, blocks=2)
        >>> plan = FilmMLPPlan(network.weights())
        >>> plan(torch.randn(5, 2), 0.5).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        weights: FilmMLPWeights,
        *,
        kind: str = "sinusoidal",
        convention: str = "dit",
        max_period: float = 10_000.0,
        frequencies: Tensor | None = None,
    ):
        if native_module is None:
            raise RuntimeError("FilmMLPPlan: expected genssl_fast with its compiled library")
        self.weights = weights
        self._embedding = kind, convention, max_period, frequencies
        self._packing = None
        check_runs_here("weights", weights.w_in)
        self._frequencies()

    def refresh(self) -> None:
        """Packs the weights anew at the next call."""
        self._packing = None

    def __getstate__(self) -> dict:
        """Without the packing, which a copy makes for itself."""
        return {**self.__dict__, "_packing": None}

    @torch.no_grad()
    def __call__(self, x: Tensor, t: float | Tensor, *, labels: Tensor | None = None) -> Tensor:
        """The network: see :func:`genssl_fast.film_mlp`."""
        self._check(x, labels, t)
        times = torch.as_tensor(t, dtype=x.dtype).contiguous()
        check(times.ndim == 0 or times.shape == x.shape[:1], "t", "shape [] or [B]", list(times.shape))
        check(times.device == x.device, "t", f"a tensor on {x.device}", f"one on {times.device}")
        x, labels, y = x.contiguous(), contiguous(labels), x.new_empty(x.shape)
        packing = self._packed()
        packing.native.forward(
            x.data_ptr(), times.data_ptr(), times.ndim == 0, address(labels), len(x), y.data_ptr()
        )
        return y

    @torch.no_grad()
    def sample(
        self,
        x: Tensor,
        table: CoefficientTable,
        *,
        labels: Tensor | None = None,
        clip_denoised: float | None = None,
        seed: int | Tensor | None = None,
        step: int | Tensor = FIRST_STEP,
        first_sample: int = 0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Every step of a sampler: see :func:`genssl_fast.film_mlp_sample`."""
        self._check(x, labels, noise)
        check_sampling(x, table, clip_denoised, first_sample, noise)
        x, labels, noise = x.contiguous(), contiguous(labels), contiguous(noise)
        y, packing = x.new_empty(x.shape), self._packed()
        packing.native.sample(
            x=x.data_ptr(),
            labels=address(labels),
            batch=len(x),
            coefficients=table.coefficients.data_ptr(),
            num_rows=len(table),
            num_states=table.num_states,
            num_predictions=table.num_predictions,
            clip=math.nan if clip_denoised is None else clip_denoised,
            seed=number(fold_seed(seed, x.device)),
            step=number(fold_step(step, x.device)),
            first_sample=first_sample,
            noise=address(noise),
            y=y.data_ptr(),
        )
        return y

    def _check(self, x: Tensor, labels: Tensor | None, other) -> None:
        check_film_mlp(x, self.weights, labels)
        check_runs_here("x", x)
        if has_tangent([x, other, *self.weights]):
            raise RuntimeError("FilmMLPPlan has no derivative: call genssl_fast.film_mlp")

    def _frequencies(self) -> tuple[Tensor, bool]:
        w_embed1 = self.weights.w_embed1
        return embedding_frequencies(w_embed1.shape[1], *self._embedding, w_embed1.device)

    def _packed(self) -> "_Packing":
        """The native plan of the weights as they are now; it lives as long as the caller holds it."""
        key = [identity(tensor) for tensor in (*self.weights, self._embedding[-1])]
        packing = self._packing
        if packing is None or packing.key != key:
            self._packing = packing = self._pack(key)
        return packing

    def _pack(self, key: list) -> "_Packing":
        weights = [contiguous(w) for w in self.weights]
        frequencies, sin_first = self._frequencies()
        frequencies = contiguous(frequencies.to(weights[0].dtype))
        w_in, _, w, _, _, w_embed1, *_, class_embedding = weights
        classes = 0 if class_embedding is None else len(class_embedding)
        widths = (w_in.shape[1], w_in.shape[0], w.shape[0], *w_embed1.shape, classes)
        double = w_in.dtype == torch.float64
        native = native_module.FilmMLPPlanDouble if double else native_module.FilmMLPPlanFloat
        native = native(widths, [*map(address, weights), frequencies.data_ptr()], sin_first)
        originals = [None if w is None else w.detach() for w in self.weights]
        return _Packing(key, native, [*weights, frequencies, *originals])


class _Packing(NamedTuple):
    """A native plan, the weights that it was made from, and the memory that it reads.

    The originals of copied weights are held, too, so that no other weights can take their address.
    """

    key: list
    native: object
    tensors: list
