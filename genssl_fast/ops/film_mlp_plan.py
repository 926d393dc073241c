"""A FiLM-MLP on the CPU whose packed weights outlive one call."""

import math

import torch
from torch import Tensor

from genssl_fast._checks import check
from genssl_fast._library import native_module
from genssl_fast._random import fold_seed, fold_step
from genssl_fast.ops.coefficient_table import CoefficientTable
from genssl_fast.ops.film_mlp_sample import FIRST_STEP, check_sampling
from genssl_fast.ops.score import FilmMLPWeights, check_film_mlp, embedding_frequencies

__all__ = ["FilmMLPPlan"]


class FilmMLPPlan:
    """A FiLM-MLP that keeps its weights packed between calls; CPU, fp32 or fp64, no derivatives.

    Weights changed in place are noticed by their data pointer and version and packed anew. A change
    that PyTorch does not count, as through NumPy, needs :meth:`refresh`. Results have the bits of
    :func:`genssl_fast.film_mlp` and :func:`genssl_fast.film_mlp_sample`.

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
        w_in = weights.w_in
        check(w_in.device.type == "cpu", "weights", "tensors on the CPU", f"ones on {w_in.device}")
        dtypes = (torch.float32, torch.float64)
        check(w_in.dtype in dtypes, "weights", "dtype torch.float32 or torch.float64", w_in.dtype)
        self.weights = weights
        time_dim = weights.w_embed1.shape[1]
        self._embedding = embedding_frequencies(
            time_dim, kind, convention, max_period, frequencies, w_in.device
        )
        self._key, self._native = None, None

    def refresh(self) -> None:
        """Packs the weights anew at the next call."""
        self._key = None

    @torch.no_grad()
    def __call__(self, x: Tensor, t: float | Tensor, *, labels: Tensor | None = None) -> Tensor:
        """The network: see :func:`genssl_fast.film_mlp`."""
        check_film_mlp(x, self.weights, labels)
        times = torch.as_tensor(t, dtype=x.dtype).contiguous()
        check(times.ndim == 0 or times.shape == x.shape[:1], "t", "shape [] or [B]", list(times.shape))
        x, labels, y = x.contiguous(), _contiguous(labels), x.new_empty(x.shape)
        self._packed().forward(
            x.data_ptr(), times.data_ptr(), times.ndim == 0, _address(labels), len(x), y.data_ptr()
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
        check_film_mlp(x, self.weights, labels)
        check_sampling(x, table, clip_denoised, first_sample, noise)
        x, labels, noise = x.contiguous(), _contiguous(labels), _contiguous(noise)
        y = x.new_empty(x.shape)
        self._packed().sample(
            x=x.data_ptr(),
            labels=_address(labels),
            batch=len(x),
            coefficients=table.coefficients.data_ptr(),
            num_rows=len(table),
            num_states=table.num_states,
            num_predictions=table.num_predictions,
            clip=math.nan if clip_denoised is None else clip_denoised,
            seed=_number(fold_seed(seed, x.device)),
            step=_number(fold_step(step, x.device)),
            first_sample=first_sample,
            noise=_address(noise),
            y=y.data_ptr(),
        )
        return y

    def _packed(self):
        """The native plan of the weights as they are now."""
        key = [None if w is None else (w.data_ptr(), w._version) for w in self.weights]
        if key != self._key:
            self._native = self._pack()
            self._key = key
        return self._native

    def _pack(self):
        weights = [_contiguous(w) for w in self.weights]
        frequencies, sin_first = self._embedding
        frequencies = frequencies.to(weights[0].dtype).contiguous()
        self._held = weights, frequencies  # whose memory the native plan reads
        w_in, _, w, _, _, w_embed1, *_, class_embedding = weights
        classes = 0 if class_embedding is None else len(class_embedding)
        widths = (w_in.shape[1], w_in.shape[0], w.shape[0], *w_embed1.shape, classes)
        double = w_in.dtype == torch.float64
        native = native_module.FilmMLPPlanDouble if double else native_module.FilmMLPPlanFloat
        return native(widths, [*map(_address, weights), frequencies.data_ptr()], sin_first)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _number(folded: tuple[int, Tensor | None]) -> int:
    number, tensor = folded
    return number if tensor is None else int(tensor)
