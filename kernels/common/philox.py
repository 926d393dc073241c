"""Philox4x32-10 and the maps from its words to random numbers, in Triton.

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.

The twin of philox.h, which states the contract: the same counters, the same polynomials in the
same order, every fused multiply-add written out. One call serves four consecutive elements, and
`interleave` puts its results in memory order without leaving the registers, so that a tile of
random numbers meets 16-byte loads and stores.
"""

import triton
import triton.language as tl

UNIFORM = tl.constexpr(0)
NORMAL = tl.constexpr(1)
RADEMACHER = tl.constexpr(2)

MULTIPLY_0 = tl.constexpr(0xD2511F53)
MULTIPLY_1 = tl.constexpr(0xCD9E8D57)
WEYL_0 = tl.constexpr(0x9E3779B9)
WEYL_1 = tl.constexpr(0xBB67AE85)
ROUNDS = tl.constexpr(10)

LN2_HIGH = tl.constexpr(0.693359375)
LN2_LOW = tl.constexpr(-2.12194440e-4)
ONE_BITS = tl.constexpr(0x3F800000)
SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)


@triton.jit
def polynomial(x, coefficients):
    """Horner's rule in fp32, highest power first."""
    value = tl.full(x.shape, coefficients[0], tl.float32)
    for i in tl.static_range(1, len(coefficients)):
        value = tl.fma(value, x, coefficients[i])
    return value


@triton.jit
def _multiply(constant: tl.constexpr, word):
    """(high, low) words of the 64-bit product; one wide multiplication on the GPU."""
    product = word.to(tl.uint64) * constant
    return (product >> 32).to(tl.uint32), product.to(tl.uint32)


@triton.jit
def philox4x32_10(seed, block, step, sample):
    """The four words of each block; `block` and `sample` broadcast against one another."""
    key0 = seed.to(tl.uint32)
    key1 = (seed >> 32).to(tl.uint32)
    c0 = block.to(tl.uint32)
    c1 = step.to(tl.uint32)
    c2 = sample.to(tl.uint32)
    c3 = (sample >> 32).to(tl.uint32)
    for _ in tl.static_range(ROUNDS):
        high0, low0 = _multiply(MULTIPLY_0, c0)
        high1, low1 = _multiply(MULTIPLY_1, c2)
        c0 = high1 ^ c1 ^ key0
        c2 = high0 ^ c3 ^ key1
        c1 = low1
        c3 = low0
        key0 += WEYL_0
        key1 += WEYL_1
    return c0, c1, c2, c3


@triton.jit
def uniform_from_word(word):
    """(word + 1/2) 2^-32 rounded to fp32: (0, 1]."""
    return (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10


@triton.jit
def rademacher_from_word(word):
    return tl.where((word >> 31) != 0, -1.0, 1.0)


@triton.jit
def log_of_uniform(u):
    """ln u for normal u > 0."""
    bits = u.to(tl.uint32, bitcast=True) + (ONE_BITS - SQRT_HALF_BITS)
    exponent = ((bits >> 23).to(tl.int32) - 127).to(tl.float32)
    mantissa = ((bits & 0x007FFFFF) + SQRT_HALF_BITS).to(tl.float32, bitcast=True)
    f = mantissa - 1.0
    square = f * f
    # ln(1 + f) = f - f^2/2 + f^3 P(f) for 1 + f in [sqrt(1/2), sqrt(2)).
    p = polynomial(
        f,
        (
            7.0376836292e-2,
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ),
    )
    tail = (f * square) * p
    tail = tl.fma(exponent, LN2_LOW, tail)
    tail = tl.fma(square, -0.5, tail)
    return tl.fma(exponent, LN2_HIGH, f + tail)


@triton.jit
def sincos_of_quarters(f, quadrant):
    """(cos, sin) of (quadrant + f) quarter turns, |f| <= 1/2."""
    square = f * f
    # sin(pi f / 2) = f S(f^2) and cos(pi f / 2) = 1 + f^2 C(f^2).
    s = polynomial(square, (1.6044118e-4, -4.6817541e-3, 7.9692626e-2, -6.4596409e-1, 1.5707963))
    c = polynomial(square, (-2.5202042e-5, 9.1926027e-4, -2.0863480e-2, 2.5366950e-1, -1.2337006))
    sine = s * f
    cosine = tl.fma(c, square, 1.0)
    odd = (quadrant & 1) != 0
    first = tl.where(odd, sine, cosine)
    second = tl.where(odd, cosine, sine)
    return (
        tl.where(((quadrant + 1) & 2) != 0, -first, first),
        tl.where((quadrant & 2) != 0, -second, second),
    )


@triton.jit
def sincos_of_turn(u):
    """(cos, sin) of 2 pi u for u in [0, 1]; the reduction to quarter turns is exact."""
    quarter_turns = 4.0 * u
    nearest = tl.floor(quarter_turns + 0.5)
    return sincos_of_quarters(quarter_turns - nearest, nearest.to(tl.int32))


@triton.jit
def normals_from_words(first, second):
    """Box-Muller: the two normals of a pair of words."""
    radius = tl.sqrt_rn(-2.0 * log_of_uniform(uniform_from_word(first)))
    cosine, sine = sincos_of_turn(uniform_from_word(second))
    return radius * cosine, radius * sine


@triton.jit
def interleave(z0, z1, z2, z3):
    """Four tiles [ROWS, GROUPS] as [ROWS, 4 GROUPS]: column 4 g + k is column g of the k-th."""
    groups = tl.join(tl.join(z0, z2), tl.join(z1, z3))
    return tl.reshape(groups, (z0.shape[0], 4 * z0.shape[1]))


@triton.jit
def random_tile(seed, step, sample, first_column, COLUMNS: tl.constexpr, DISTRIBUTION: tl.constexpr):
    """fp32 [ROWS, COLUMNS]: the elements of `sample` [ROWS, 1] from `first_column` = 4 k on."""
    block = first_column // 4 + tl.arange(0, COLUMNS // 4)[None, :]
    w0, w1, w2, w3 = philox4x32_10(seed, block, step, sample)
    if DISTRIBUTION == NORMAL:
        z0, z1 = normals_from_words(w0, w1)
        z2, z3 = normals_from_words(w2, w3)
        tile = interleave(z0, z1, z2, z3)
    elif DISTRIBUTION == UNIFORM:
        tile = uniform_from_word(interleave(w0, w1, w2, w3))
    else:
        tile = rademacher_from_word(interleave(w0, w1, w2, w3))
    return tile
