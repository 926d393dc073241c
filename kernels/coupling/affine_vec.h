// The affine transform of a register of elements, one parameter pair a lane.
#pragma once

#include "kernels/common/math.h"
#include "kernels/coupling/affine_coupling.h"
#include "kernels/coupling/transformed.h"

namespace genssl::GENSSL_ISA {

// e^s = min(softplus(u) + min_scale, limit); without a least scale, a tiny softplus is e^u.
template <class T>
GENSSL_INLINE Transformed<T> softplus_scale(const AffineOptions<T>& options, Vec<T> u) {
  constexpr T kTiny = T(sizeof(T) == 4 ? 1e-8 : 1e-17);
  const Vec<T> scale = min(softplus(u) + Vec<T>(options.min_scale), Vec<T>(options.limit));
  if (options.min_scale != 0) return {scale, log(scale)};
  return {scale, select(scale < Vec<T>(kTiny), u, log(scale))};
}

// e^s = sigmoid(u) + min_scale; without a least scale s = -softplus(-u).
template <class T>
GENSSL_INLINE Transformed<T> sigmoid_scale(const AffineOptions<T>& options, Vec<T> u) {
  const Vec<T> scale = sigmoid(u) + Vec<T>(options.min_scale);
  if (options.min_scale == 0) return {scale, -softplus(-u)};
  return {scale, log(scale)};
}

// Clamps that bound the log-scale, of which the scale is the exponential.
template <Clamp clamp>
constexpr bool bounds_log_scale =
    clamp == Clamp::tanh || clamp == Clamp::atan || clamp == Clamp::zuko;

template <Clamp clamp, class T>
GENSSL_INLINE Vec<T> bounded_log_scale(const AffineOptions<T>& options, Vec<T> a) {
  const Vec<T> limit(options.limit);
  if constexpr (clamp == Clamp::tanh) return limit * tanh(a * Vec<T>(T(1) / options.limit));
  if constexpr (clamp == Clamp::atan) return limit * Vec<T>(T(0.636)) * atan(a);
  if constexpr (clamp == Clamp::zuko) return a / (Vec<T>(T(1)) + abs(a) / limit);
  return a;
}

// The factor that multiplies, and its logarithm: e^s or, for the inverse, e^-s.
template <Clamp clamp, bool inverse, class T>
GENSSL_INLINE Transformed<T> affine_factor(const AffineOptions<T>& options, Vec<T> a) {
  if constexpr (clamp == Clamp::additive) {
    return {Vec<T>(T(1)), Vec<T>(T(0))};
  } else if constexpr (clamp == Clamp::sigmoid || clamp == Clamp::reciprocal_sigmoid ||
                       clamp == Clamp::softplus) {
    const Vec<T> u = a + Vec<T>(options.offset);
    const Transformed<T> scale =
        clamp == Clamp::softplus ? softplus_scale(options, u) : sigmoid_scale(options, u);
    if (inverse == (clamp == Clamp::reciprocal_sigmoid)) return scale;
    return {Vec<T>(T(1)) / scale.value, -scale.log_derivative};
  } else {
    const Vec<T> s = bounded_log_scale<clamp>(options, a);
    const Vec<T> log_factor = inverse ? -s : s;
    return {exp(log_factor), log_factor};
  }
}

// The derivative of the logarithm of that factor by a.
template <Clamp clamp, bool inverse, class T>
GENSSL_INLINE Vec<T> affine_slope(const AffineOptions<T>& options, Vec<T> a) {
  const Vec<T> zero(T(0)), one(T(1)), limit(options.limit), min_scale(options.min_scale);
  const Vec<T> u = a + Vec<T>(options.offset);
  Vec<T> slope = one;
  if constexpr (clamp == Clamp::additive) slope = zero;
  if constexpr (clamp == Clamp::tanh) {
    const Vec<T> bounded = tanh(a * Vec<T>(T(1) / options.limit));
    slope = one - bounded * bounded;
  }
  if constexpr (clamp == Clamp::atan) slope = limit * Vec<T>(T(0.636)) / (one + a * a);
  if constexpr (clamp == Clamp::zuko) {
    const Vec<T> shrink = one / (one + abs(a) / limit);
    slope = shrink * shrink;
  }
  if constexpr (clamp == Clamp::sigmoid || clamp == Clamp::reciprocal_sigmoid) {
    slope = sigmoid(-u);
    if (options.min_scale != 0) slope = slope * sigmoid(u) / (sigmoid(u) + min_scale);
  }
  if constexpr (clamp == Clamp::softplus) {
    const Vec<T> scale = softplus(u) + min_scale;
    // Without a least scale the quotient tends to 1 where both are tiny.
    const auto tiny = scale < Vec<T>(T(1e-30));
    slope = select(tiny, options.min_scale == 0 ? one : zero, sigmoid(u) / scale);
    slope = select(scale <= limit, slope, zero);
  }
  return inverse == (clamp == Clamp::reciprocal_sigmoid) ? slope : -slope;
}

template <bool inverse, class T>
GENSSL_INLINE Vec<T> apply_factor(bool shift_first, Vec<T> x, Vec<T> shift, Vec<T> factor) {
  if (inverse) return shift_first ? fma(x, factor, -shift) : (x - shift) * factor;
  return shift_first ? (x + shift) * factor : fma(x, factor, shift);
}

// Calls body.template operator()<clamp>() with the clamp as a constant.
template <class Body>
GENSSL_INLINE auto with_clamp(Clamp clamp, const Body& body) {
  switch (clamp) {
    case Clamp::tanh:
      return body.template operator()<Clamp::tanh>();
    case Clamp::atan:
      return body.template operator()<Clamp::atan>();
    case Clamp::sigmoid:
      return body.template operator()<Clamp::sigmoid>();
    case Clamp::reciprocal_sigmoid:
      return body.template operator()<Clamp::reciprocal_sigmoid>();
    case Clamp::softplus:
      return body.template operator()<Clamp::softplus>();
    case Clamp::additive:
      return body.template operator()<Clamp::additive>();
    case Clamp::zuko:
      return body.template operator()<Clamp::zuko>();
    default:
      return body.template operator()<Clamp::none>();
  }
}

template <Clamp clamp, bool inverse, class T>
GENSSL_INLINE Transformed<T> affine_transform(const AffineOptions<T>& options, Vec<T> x,
                                              Vec<T> shift, Vec<T> raw_log_scale) {
  const Transformed<T> factor = affine_factor<clamp, inverse>(options, raw_log_scale);
  return {apply_factor<inverse>(options.shift_first, x, shift, factor.value),
          factor.log_derivative};
}

template <class T>
inline Transformed<T> affine_forward(const AffineOptions<T>& options, Vec<T> x, Vec<T> shift,
                                     Vec<T> raw_log_scale) {
  return with_clamp(options.clamp, [&]<Clamp clamp>() GENSSL_INLINE_LAMBDA {
    return affine_transform<clamp, false>(options, x, shift, raw_log_scale);
  });
}

template <class T>
inline Transformed<T> affine_inverse(const AffineOptions<T>& options, Vec<T> y, Vec<T> shift,
                                     Vec<T> raw_log_scale) {
  return with_clamp(options.clamp, [&]<Clamp clamp>() GENSSL_INLINE_LAMBDA {
    return affine_transform<clamp, true>(options, y, shift, raw_log_scale);
  });
}

}  // namespace genssl::GENSSL_ISA
