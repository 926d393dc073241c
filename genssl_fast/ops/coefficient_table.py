"""Samplers as data: one row of coefficients per step."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genssl_fast._checks import check

__all__ = ["CoefficientTable"]

# Columns after the S state and the M prediction coefficients.
TAIL = ("output", "noise", "denoise0", "denoise1", "clip", "time")


class CoefficientTable:
    r"""Coefficients of every step of an explicit sampler, in fp64 on the host.

    Row *i* is executed by :func:`genssl_fast.sampler_step` on the state :math:`x` and the network's output

    .. math::
        \hat{x}_0 &= \mathrm{clip}(d_0 x + d_1 \mathrm{output}) \\
        x' &= \sum_j a_j \mathrm{state}_j + \sum_j b_j \mathrm{prediction}_j
              + e \, \mathrm{output} + c \, \mathrm{noise}

    with state 0 the current ``x`` and prediction 0 the new :math:`\hat{x}_0`; higher indices are older.

    Arguments:
        coefficients: fp64 tensor [N, S + M + 6], columns ``state[S], prediction[M], output, noise,
            denoise[2], clip, time``. ``clip`` is the bound of the prediction, infinity for none;
            ``time`` is what the network is given.
        num_states: S, at least 1.

    Attributes:
        draws_noise: for every row, whether its noise coefficient is not zero.

    Example:
        >>> table = CoefficientTable.from_rows([dict(state=[0.5], prediction=[0.5], time=1.0)])
        >>> table
        CoefficientTable(rows=1, states=1, predictions=1)
    """

    def __init__(self, coefficients: Tensor, num_states: int):
        with torch.inference_mode(False):  # a copy of its own that autograd can save
            coefficients = torch.as_tensor(coefficients, dtype=torch.float64, device="cpu")
            coefficients = coefficients.detach().clone(memory_format=torch.contiguous_format)
        check(coefficients.ndim == 2, "coefficients", "shape [N, S + M + 6]", list(coefficients.shape))
        width = coefficients.shape[1]
        expected = f"from 1 to {width - len(TAIL)} for rows of {width}"
        check(1 <= num_states <= width - len(TAIL), "num_states", expected, num_states)
        self.coefficients, self.num_states = coefficients, num_states
        self.draws_noise = tuple((coefficients[:, -5] != 0).tolist())
        self._copies: dict[torch.device, Tensor] = {torch.device("cpu"): coefficients}

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping]) -> "CoefficientTable":
        """Table from one mapping per row; shorter histories are padded with zeros.

        Keys and defaults: ``state`` (1,), ``prediction`` (), ``output`` 0, ``noise`` 0,
        ``denoise`` (0, 1), ``clip`` infinity, ``time`` 0.
        """
        known = {"state", "prediction", "output", "noise", "denoise", "clip", "time"}
        for number, row in enumerate(rows):
            check(set(row) <= known, f"rows[{number}]", f"keys among {sorted(known)}", sorted(row))
        states = max((len(row.get("state", (1,))) for row in rows), default=1)
        predictions = max((len(row.get("prediction", ())) for row in rows), default=0)
        values = [_row_values(row, states, predictions) for row in rows]
        width = states + predictions + len(TAIL)
        return cls(torch.tensor(values, dtype=torch.float64).reshape(len(values), width), states)

    @property
    def num_rows(self) -> int:
        return self.coefficients.shape[0]

    @property
    def num_predictions(self) -> int:
        return self.coefficients.shape[1] - self.num_states - len(TAIL)

    @property
    def state(self) -> Tensor:
        """[N, S]"""
        return self.coefficients[:, : self.num_states]

    @property
    def prediction(self) -> Tensor:
        """[N, M]"""
        return self.coefficients[:, self.num_states : -len(TAIL)]

    @property
    def output(self) -> Tensor:
        """[N]"""
        return self.coefficients[:, -6]

    @property
    def noise(self) -> Tensor:
        """[N]"""
        return self.coefficients[:, -5]

    @property
    def denoise(self) -> Tensor:
        """[N, 2]"""
        return self.coefficients[:, -4:-2]

    @property
    def clip(self) -> Tensor:
        """[N]"""
        return self.coefficients[:, -2]

    @property
    def time(self) -> Tensor:
        """[N]"""
        return self.coefficients[:, -1]

    def on(self, device: torch.device) -> Tensor:
        """The coefficients on a device, copied there once."""
        if device not in self._copies:
            with torch.inference_mode(False):
                self._copies[device] = self.coefficients.to(device)
        return self._copies[device]

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        return (
            f"CoefficientTable(rows={self.num_rows}, states={self.num_states}, "
            f"predictions={self.num_predictions})"
        )


def _row_values(row: Mapping, states: int, predictions: int) -> list[float]:
    def padded(key, default, length):
        values = list(row.get(key, default))
        return values + [0.0] * (length - len(values))

    denoise = row.get("denoise", (0.0, 1.0))
    tail = [row.get("output", 0.0), row.get("noise", 0.0), *denoise]
    tail += [row.get("clip", math.inf), row.get("time", 0.0)]
    return [*padded("state", (1.0,), states), *padded("prediction", (), predictions), *map(float, tail)]
