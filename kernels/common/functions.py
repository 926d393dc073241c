"""Functions of one number, or of a type, that Triton lacks, or has without their small values."""

import triton
import triton.language as tl


@triton.jit
def lowest(dtype: tl.constexpr):
    """The lowest finite number."""
    return -1.7976931348623157e308 if dtype == tl.float64 else -3.4028234663852886e38


@triton.jit
def log1p(x):
    """log(1 + x) for x in [0, 1]: the rounding of 1 + x is divided out."""
    shifted = 1.0 + x
    rounded = shifted - 1.0
    safe = tl.where(rounded == 0.0, 1.0, rounded)
    return tl.where(rounded == 0.0, x, tl.log(shifted) * (x / safe))


@triton.jit
def softplus(x):
    return tl.where(x > 0.0, x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))
