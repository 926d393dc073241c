// exp, exp2, log, sincos, sigmoid, silu, softplus, tanh and atan for every lane of a Vec.
//
// float   polynomials: exp, exp2, log, sincos within 1.5 ulp, sigmoid and silu within 2.5, the
// others
//         within 3.5; sincos reduces its argument exactly up to 1e5 and beyond that asks libm
// double  libm, lane by lane.
// Results are finite wherever the mathematics is, infinities and NaN follow the C library.
#pragma once

#include "kernels/common/philox.h"
#include "kernels/common/vec.h"

namespace genssl::GENSSL_ISA {

template <class T>
struct SineCosine {
  Vec<T> sine, cosine;
};

// coefficients[0] x^(count - 1) + ... + coefficients[count - 1].
template <int count>
GENSSL_INLINE Vec<float> polynomial(Vec<float> x, const float (&coefficients)[count]) {
  Vec<float> result(coefficients[0]);
  for (int i = 1; i < count; ++i) result = fma(result, x, Vec<float>(coefficients[i]));
  return result;
}

// a 2^n, rounded once, for integral |n| <= 252.
GENSSL_INLINE Vec<float> scale_by_power_of_two(Vec<float> a, Vec<float> n) {
#if defined(__AVX512F__)
  return Vec<float>(_mm512_scalef_ps(a.value, n.value));
#else
  using Integers = Register<float>::Mask;
  const Integers whole = __builtin_convertvector(n.value, Integers);
  const Integers half = whole >> 1, rest = whole - half;
  const auto power = [](Integers e) { return Vec<float>((Vec<float>::Native)((e + 127) << 23)); };
  return a * power(half) * power(rest);
#endif
}

// The bounds lie where the result has become 0 or infinite; between them |n| <= 150.
GENSSL_INLINE Vec<float> exp(Vec<float> x) {
  constexpr float kCoefficients[] = {1.38195115e-3f, 8.3686905e-3f, 4.1668281e-2f, 1.66665211e-1f,
                                     4.9999994e-1f,  1.0f,          1.0f};
  x = min(max(x, Vec<float>(-104.0f)), Vec<float>(89.0f));
  const Vec<float> n = round(x * Vec<float>(1.44269504f));
  Vec<float> remainder = fma(n, Vec<float>(-kLn2High), x);
  remainder = fma(n, Vec<float>(-kLn2Low), remainder);
  return scale_by_power_of_two(polynomial(remainder, kCoefficients), n);
}

// 2^x; fewer operations than exp, for bases that fold into a factor of x.
GENSSL_INLINE Vec<float> exp2(Vec<float> x) {
  constexpr float kCoefficients[] = {
      1.5353362e-4f, 1.33988751e-3f, 9.61843692e-3f, 5.55033237e-2f, 2.40226477e-1f, 6.93147182e-1f,
      1.0f};
#if defined(__AVX512DQ__)
  // Of an infinity the remainder is 0 and the power saturates: no bounds are needed.
  const Vec<float> remainder(
      _mm512_reduce_ps(x.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  return scale_by_power_of_two(polynomial(remainder, kCoefficients), round(x));
#else
  x = min(max(x, Vec<float>(-151.0f)), Vec<float>(129.0f));
  const Vec<float> n = round(x);
  return scale_by_power_of_two(polynomial(x - n, kCoefficients), n);
#endif
}

// e^x - 1 for x <= 88, accurate around 0 too.
GENSSL_INLINE Vec<float> expm1(Vec<float> x) {
  constexpr float kCoefficients[] = {1.38195115e-3f, 8.3686905e-3f, 4.1668281e-2f,
                                     1.66665211e-1f, 4.9999994e-1f, 1.0f};
  const Vec<float> one(1.0f);
  x = max(x, Vec<float>(-104.0f));
  const Vec<float> n = round(x * Vec<float>(1.44269504f));
  Vec<float> remainder = fma(n, Vec<float>(-kLn2High), x);
  remainder = fma(n, Vec<float>(-kLn2Low), remainder);
  const Vec<float> power = scale_by_power_of_two(one, n);
  return fma(power, remainder * polynomial(remainder, kCoefficients), power - one);
}

// A positive normal number as 2^exponent (1 + f), 1 + f in [sqrt(1/2), sqrt(2)).
struct BinaryParts {
  Vec<float> exponent, f;
};
GENSSL_INLINE BinaryParts split_binary(Vec<float> x) {
  using Bits = Register<float>::Mask;
  constexpr int32_t kRootHalf = 0x3f3504f3;
  const Bits shifted = (Bits)x.value - kRootHalf;
  const Bits mantissa = (shifted & 0x007fffff) + kRootHalf;
  return {__builtin_convertvector(shifted >> 23, Vec<float>::Native),
          Vec<float>((Vec<float>::Native)mantissa) - Vec<float>(1.0f)};
}
GENSSL_INLINE Vec<float> log_of_parts(const BinaryParts& x) {
  constexpr float kCoefficients[] = GENSSL_LOG_COEFFICIENTS;
  const Vec<float> square = x.f * x.f;
  Vec<float> tail = x.f * square * polynomial(x.f, kCoefficients);
  tail = fma(x.exponent, Vec<float>(kLn2Low), tail);
  tail = fma(Vec<float>(-0.5f), square, tail);
  return fma(x.exponent, Vec<float>(kLn2High), x.f + tail);
}

GENSSL_INLINE Vec<float> log(Vec<float> x) {
  const Vec<float> zero(0.0f), infinity(__builtin_inff()), nan(__builtin_nanf(""));
  const auto subnormal = x < Vec<float>(0x1p-126f);
  BinaryParts parts = split_binary(select(subnormal, x * Vec<float>(0x1p23f), x));
  parts.exponent = select(subnormal, parts.exponent - Vec<float>(23.0f), parts.exponent);
  const Vec<float> of_positive = select(x < infinity, log_of_parts(parts), x);
  return select(x > zero, of_positive, select(x == zero, -infinity, nan));
}

// log(1 + x) for x in [0, 1].
GENSSL_INLINE Vec<float> log1p_of_unit(Vec<float> x) {
  const auto large = x > Vec<float>(0.414213562f);  // then 1 + x = 2 (1 + (x - 1) / 2)
  const Vec<float> half(0.5f);
  return log_of_parts(
      {select(large, Vec<float>(1.0f), Vec<float>(0.0f)), select(large, fma(x, half, -half), x)});
}

// pi/2 in three parts: with a fused multiply-add the first subtraction is exact.
GENSSL_INLINE Vec<float> remainder_of_half_pi(Vec<float> x, Vec<float> quarter_turns) {
#if defined(__FMA__)
  Vec<float> remainder = fma(quarter_turns, Vec<float>(-1.57079637f), x);
  remainder = fma(quarter_turns, Vec<float>(4.37113883e-8f), remainder);
  return fma(quarter_turns, Vec<float>(1.71512451e-15f), remainder);
#else
  for (int lane = 0; lane < Vec<float>::size; ++lane) {
    x.value[lane] = float(double(x[lane]) - double(quarter_turns[lane]) * 0x1.921fb544p+0 -
                          double(quarter_turns[lane]) * 0x1.0b4611a626331p-34);
  }
  return x;
#endif
}

template <class T>
GENSSL_INLINE SineCosine<T> sincos_by_lane(Vec<T> x) {
  SineCosine<T> result{x, x};
  for (int lane = 0; lane < Vec<T>::size; ++lane) {
    result.sine.value[lane] = T(::sin(double(x[lane])));
    result.cosine.value[lane] = T(::cos(double(x[lane])));
  }
  return result;
}

// The sine and cosine of an angle that is `quadrant` quarter turns further.
GENSSL_INLINE SineCosine<float> rotate_by_quadrant(SineCosine<float> angle,
                                                   Register<float>::Mask quadrant) {
  using Integers = Register<float>::Mask;
  const auto flip_sign = [](Vec<float> a, Integers sign_bit) {
    return Vec<float>((Vec<float>::Native)((Integers)a.value ^ (sign_bit & INT32_MIN)));
  };
  const auto odd = (quadrant & 1) != 0;
  return {flip_sign(select(odd, angle.cosine, angle.sine), quadrant << 30),
          flip_sign(select(odd, angle.sine, angle.cosine), (quadrant + 1) << 30)};
}

GENSSL_INLINE SineCosine<float> sincos(Vec<float> x) {
  constexpr float kSine[] = {2.83253939e-6f, -1.98530659e-4f, 8.3333794e-3f, -1.66666672e-1f};
  constexpr float kCosine[] = {2.44323273e-5f, -1.38873095e-3f, 4.16666456e-2f, -0.5f, 1.0f};
  if (!all(abs(x) <= Vec<float>(1e5f))) return sincos_by_lane(x);
  const Vec<float> quarter_turns = round(x * Vec<float>(0.636619772f));
  const Vec<float> f = remainder_of_half_pi(x, quarter_turns), square = f * f;
  const Vec<float> s = fma(f * square, polynomial(square, kSine), f);
  const Vec<float> c = polynomial(square, kCosine);
  return rotate_by_quadrant({s, c},
                            __builtin_convertvector(quarter_turns.value, Register<float>::Mask));
}

GENSSL_INLINE Vec<double> exp(Vec<double> x) {
  for (int lane = 0; lane < Vec<double>::size; ++lane) x.value[lane] = ::exp(x[lane]);
  return x;
}

GENSSL_INLINE Vec<double> exp2(Vec<double> x) {
  for (int lane = 0; lane < Vec<double>::size; ++lane) x.value[lane] = ::exp2(x[lane]);
  return x;
}

GENSSL_INLINE Vec<double> log(Vec<double> x) {
  for (int lane = 0; lane < Vec<double>::size; ++lane) x.value[lane] = ::log(x[lane]);
  return x;
}

GENSSL_INLINE SineCosine<double> sincos(Vec<double> x) { return sincos_by_lane(x); }

GENSSL_INLINE Vec<double> expm1(Vec<double> x) {
  for (int lane = 0; lane < Vec<double>::size; ++lane) x.value[lane] = ::expm1(x[lane]);
  return x;
}

GENSSL_INLINE Vec<double> log1p_of_unit(Vec<double> x) {
  for (int lane = 0; lane < Vec<double>::size; ++lane) x.value[lane] = ::log1p(x[lane]);
  return x;
}

// With x = n ln(2) / 2 + h, t = tanh(h), p = 2^n: (p - 1 + (p + 1) t) / (p + 1 + (p - 1) t), which
// rounding does not take past 1, and odd to the last bit. From 9.02 on it is 1.
GENSSL_INLINE Vec<float> tanh(Vec<float> x) {
  constexpr float kCoefficients[] = {-5.27255577e-2f, 1.3331179e-1f, -3.33333227e-1f};
  const Vec<float> one(1.0f), bound(9.1f);
  x = min(max(x, -bound), bound);
  const Vec<float> n = round(x * Vec<float>(2.88539008f));
  const Vec<float> h = fma(n, Vec<float>(-0.346573591f), x), square = h * h;
  const Vec<float> t = fma(h * square, polynomial(square, kCoefficients), h);
  const Vec<float> power = scale_by_power_of_two(one, n);
  const Vec<float> less = power - one, more = power + one;
  return fma(more, t, less) / fma(less, t, more);
}
GENSSL_INLINE Vec<double> tanh(Vec<double> x) {
  for (int lane = 0; lane < Vec<double>::size; ++lane) x.value[lane] = ::tanh(x[lane]);
  return x;
}

// Turned by 0, pi/4 or pi/2 so that the tangent of the rest is below tan(pi/8).
GENSSL_INLINE Vec<float> atan(Vec<float> x) {
  constexpr float kCoefficients[] = {8.05374449538e-2f, -1.38776856032e-1f, 1.99777106478e-1f,
                                     -3.33329491539e-1f};
  const Vec<float> zero(0.0f), one(1.0f), size = abs(x);
  const auto steep = size > Vec<float>(2.41421356f), middle = size > Vec<float>(0.414213562f);
  const Vec<float> numerator = select(steep, -one, select(middle, size - one, size));
  const Vec<float> denominator = select(steep, size, select(middle, size + one, one));
  const Vec<float> turn =
      select(steep, Vec<float>(1.57079633f), select(middle, Vec<float>(0.785398163f), zero));
  const Vec<float> rest = numerator / denominator, square = rest * rest;
  const Vec<float> result = turn + fma(polynomial(square, kCoefficients) * square, rest, rest);
  return select(x < zero, -result, result);
}
GENSSL_INLINE Vec<double> atan(Vec<double> x) {
  for (int lane = 0; lane < Vec<double>::size; ++lane) x.value[lane] = ::atan(x[lane]);
  return x;
}

// log(1 + e^x), neither overflowing nor losing a small e^x.
template <class T>
GENSSL_INLINE Vec<T> softplus(Vec<T> x) {
  return max(x, Vec<T>(T(0))) + log1p_of_unit(exp(-abs(x)));
}

// 1 / (1 + e^-x) and x / (1 + e^-x). Where e^-x overflows the quotient is 0, its limit to within
// 2^-127.
template <class T>
GENSSL_INLINE Vec<T> sigmoid(Vec<T> x) {
  return Vec<T>(T(1)) / (Vec<T>(T(1)) + exp(-x));
}
template <class T>
GENSSL_INLINE Vec<T> silu(Vec<T> x) {
  return x / (Vec<T>(T(1)) + exp(-x));
}

}  // namespace genssl::GENSSL_ISA
