// Derivatives of a spline on lanes. In a bin, y = y0 + h r and l = log dy/dx depend on t, s and the
// slopes d0 and d1, and these on the knots and the logits; with u = t (1 - t) and q = d0 + d1 - 2
// s, v = 1 / (s + q u), m = d1 t^2 + 2 s u + d0 (1 - t)^2:
//
//   r_t  = s m v^2                  l_t  = 2 ((d1 - s) t - (d0 - s) (1 - t)) / m - 2 q (1 - 2 t) v
//   r_s  = (t^2 - r (1 - 2 u)) v    l_s  = 2 / s + 2 u / m - 2 (1 - 2 u) v
//   r_d0 = (1 - r) u v              l_d0 = (1 - t)^2 / m - 2 u v
//   r_d1 = -r u v                   l_d1 = t^2 / m - 2 u v
//
// The inverse has x_y = 1 / y_x and x_p = -y_p / y_x for every parameter p.
#pragma once

#include "kernels/coupling/spline_vec.h"

namespace genssl::GENSSL_ISA {

// Derivatives of one function by t, s, d0 and d1.
template <class T>
struct CurveSlopes {
  Vec<T> t, s, d0, d1;
};

// A spline at an argument, and the derivatives of y (in heights of the bin) and of l.
template <class T>
struct SplineAt {
  SplineAxes<T> axes;
  SplineBin<T> bin;
  SplineCurve<T> curve;
  Vec<T> t;
  CurvePoint<T> point;
  CurveSlopes<T> share, log;
  Vec<T> lower_by_logit, upper_by_logit;  // of the slopes at the bin's ends
  typename Vec<T>::Mask inside;

  GENSSL_INLINE SplineAt(const SplineOptions<T>& options, const T* parameters)
      : axes(options, parameters) {}

  template <bool INVERSE>
  static GENSSL_INLINE SplineAt of(const SplineOptions<T>& options, const T* parameters,
                                   Vec<T> argument) {
    SplineAt at(options, parameters);
    at.inside = INVERSE ? lies_within(argument, options.bottom, options.top)
                        : lies_within(argument, options.left, options.right);
    argument = select(at.inside, argument, Vec<T>(INVERSE ? options.bottom : options.left));
    at.bin = find_bin<INVERSE>(options, at.axes, parameters, argument);
    const KnotSlope<T> lower = knot_slope(options, at.bin, 0);
    const KnotSlope<T> upper = knot_slope(options, at.bin, 1);
    const Located<T> located =
        locate<INVERSE>(options, at.axes, at.bin, argument, lower.slope, upper.slope);
    at.curve = located.curve;
    at.t = INVERSE ? solve_curve(at.curve, located.share) : located.share;
    at.lower_by_logit = lower.by_logit;
    at.upper_by_logit = upper.by_logit;
    at.point = point_of(at.curve, at.t);
    at.find_slopes();
    return at;
  }

  GENSSL_INLINE void find_slopes() {
    const auto [w, h, s, d0, d1] = curve;
    const auto [r, slope, u, v, m] = point;
    const Vec<T> one(T(1)), two(T(2)), rest = one - t, middle = one - two * u, inverse_m = one / m;
    const Vec<T> change = (d0 - s) + (d1 - s), uv = u * v;
    share = {slope / s, (t * t - r * middle) * v, (one - r) * uv, -r * uv};
    log = {two * (((d1 - s) * t - (d0 - s) * rest) * inverse_m - change * (rest - t) * v),
           two * (one / s + u * inverse_m - middle * v), rest * rest * inverse_m - two * uv,
           t * t * inverse_m - two * uv};
  }
};

// Gradients of an axis' logits from those of the knots at the ends of the chosen bin. A softmax:
// the shares below a knot move it.
template <class T>
GENSSL_INLINE void axis_gradients(int bins, const SplineAxis<T>& axis, const AxisBin<T>& bin,
                                  T rate, Vec<T> index, Vec<T> lower, Vec<T> upper, T* gradients) {
  const Vec<T> scale = axis.scale.high, both = lower + upper;
  const Vec<T> mean = fma(bin.below + bin.below_low, both, bin.share * upper) / axis.sum;
  const Vec<T> above = -mean * scale, inside = (upper - mean) * scale,
               below = (both - mean) * scale;
  for (int k = 0; k < bins; ++k) {
    const Vec<T> number = Vec<T>(T(k));
    Vec<T> gradient = select(number < index, below, select(number == index, inside, above));
    gradient = axis.bin[k].share * gradient;
    if (rate != T(0)) gradient = gradient * (axis.clip[k] * axis.clip[k]);
    gradient.store(gradients + k * Vec<T>::size);
  }
}

template <class T>
GENSSL_INLINE void slope_gradients(const SplineOptions<T>& options, Vec<T> index, Vec<T> lower,
                                   Vec<T> upper, T* gradients) {
  const Vec<T> zero(T(0)), one(T(1));
  const int first = options.tails == Tails::linear ? 1 : 0, count = num_derivatives(options);
  for (int row = 0; row < count; ++row) {
    const Vec<T> knot = Vec<T>(T(row + first));
    Vec<T> gradient = select(index == knot, lower, zero) + select(index + one == knot, upper, zero);
    if (options.tails == Tails::circular && row == 0) {
      gradient = gradient + select(index + one == Vec<T>(T(options.bins)), upper, zero);
    }
    gradient.store(gradients + row * Vec<T>::size);
  }
}

// Gradients of the argument, returned, and of the logits, in rows like `parameters`.
template <bool INVERSE, class T>
GENSSL_INLINE Vec<T> spline_gradient(const SplineOptions<T>& options, Vec<T> argument,
                                     const T* parameters, Vec<T> to_value, Vec<T> to_log,
                                     T* gradients) {
  const SplineAt<T> at = SplineAt<T>::template of<INVERSE>(options, parameters, argument);
  const auto& [w, h, s, d0, d1] = at.curve;
  const Vec<T> zero(T(0)), one(T(1)), per_width = one / w, r = at.point.share, t = at.t;
  Vec<T> to_y = select(at.inside, to_value, zero), to_l = select(at.inside, to_log, zero);
  Vec<T> to_argument;
  if constexpr (INVERSE) {
    to_l = -to_l;
    to_argument = fma(to_l, at.log.t * per_width, to_y) / at.point.slope;
    to_y = -to_argument;
  }
  const Vec<T> to_share = to_y * h;
  const Vec<T> to_t = fma(to_share, at.share.t, to_l * at.log.t) * per_width;
  const Vec<T> to_s = fma(to_share, at.share.s, to_l * at.log.s) * per_width;
  if constexpr (!INVERSE) to_argument = to_t;

  const int bins = options.bins, size = Vec<T>::size;
  const T rate = clip_rate(options);
  axis_gradients(bins, at.axes.x, at.bin.x, rate, at.bin.index, fma(s, to_s, (t - one) * to_t),
                 -fma(s, to_s, t * to_t), gradients);
  axis_gradients(bins, at.axes.y, at.bin.y, rate, at.bin.index, fma(to_y, one - r, -to_s),
                 fma(to_y, r, to_s), gradients + bins * size);
  const Vec<T> lower = fma(to_share, at.share.d0, to_l * at.log.d0);
  const Vec<T> upper = fma(to_share, at.share.d1, to_l * at.log.d1);
  slope_gradients(options, at.bin.index, lower * at.lower_by_logit, upper * at.upper_by_logit,
                  gradients + 2 * bins * size);
  return select(at.inside, to_argument, to_value);
}

template <class T>
struct KnotTangents {
  Vec<T> lower, upper;
};

// Tangents of the knots at the ends of the chosen bin.
template <class T>
GENSSL_INLINE KnotTangents<T> axis_tangents(int bins, const SplineAxis<T>& axis,
                                            const AxisBin<T>& bin, const T* dlogits, T rate,
                                            Vec<T> index) {
  const Vec<T> zero(T(0));
  KnotTangents<T> moved{zero, zero};
  Vec<T> sum = zero;
  for (int k = 0; k < bins; ++k) {
    const auto chosen = index == Vec<T>(T(k));
    moved.lower = select(chosen, sum, moved.lower);
    Vec<T> dlogit = Vec<T>::load(dlogits + k * Vec<T>::size);
    if (rate != T(0)) dlogit = dlogit * (axis.clip[k] * axis.clip[k]);
    sum = fma(axis.bin[k].share, dlogit, sum);
    moved.upper = select(chosen, sum, moved.upper);
  }
  const Vec<T> mean = sum / axis.sum, below = bin.below + bin.below_low;
  return {axis.scale.high * fma(-below, mean, moved.lower),
          axis.scale.high * fma(-(below + bin.share), mean, moved.upper)};
}

// Tangent of a slope of the bin: the logits' tangents are in rows like `derivatives`.
template <class T>
GENSSL_INLINE KnotTangents<T> slope_tangents(const SplineOptions<T>& options, const SplineAt<T>& at,
                                             const T* dderivatives) {
  const Vec<T> zero(T(0));
  KnotTangents<T> moved{zero, zero};
  for (int k = 0; k < options.bins; ++k) {
    const auto chosen = at.bin.index == Vec<T>(T(k));
    moved.lower = select(chosen, slope_logit(options, dderivatives, k), moved.lower);
    moved.upper = select(chosen, slope_logit(options, dderivatives, k + 1), moved.upper);
  }
  return {moved.lower * at.lower_by_logit, moved.upper * at.upper_by_logit};
}

// Tangents of value and log-derivative, from those of the argument and of the logits.
template <bool INVERSE, class T>
GENSSL_INLINE Transformed<T> spline_tangent(const SplineOptions<T>& options, Vec<T> argument,
                                            const T* parameters, Vec<T> dargument,
                                            const T* dparameters) {
  const SplineAt<T> at = SplineAt<T>::template of<INVERSE>(options, parameters, argument);
  const auto& [w, h, s, d0, d1] = at.curve;
  const int bins = options.bins, size = Vec<T>::size;
  const T rate = clip_rate(options);
  const Vec<T> zero(T(0)), one(T(1)), per_width = one / w, t = at.t;
  const KnotTangents<T> x =
      axis_tangents(bins, at.axes.x, at.bin.x, dparameters, rate, at.bin.index);
  const KnotTangents<T> y =
      axis_tangents(bins, at.axes.y, at.bin.y, dparameters + bins * size, rate, at.bin.index);
  const KnotTangents<T> d = slope_tangents(options, at, dparameters + 2 * bins * size);

  const Vec<T> ds = fma(-s, x.upper - x.lower, y.upper - y.lower) * per_width;
  const auto by_shape = [&](const CurveSlopes<T>& slopes) GENSSL_INLINE_LAMBDA {
    return fma(slopes.s, ds, fma(slopes.d0, d.lower, slopes.d1 * d.upper));
  };
  // At a fixed x.
  Vec<T> dt = -fma(one - t, x.lower, t * x.upper) * per_width;
  Vec<T> dvalue = fma(h, fma(at.share.t, dt, by_shape(at.share)),
                      fma(at.point.share, y.upper - y.lower, y.lower));
  const Vec<T> dx = INVERSE ? (dargument - dvalue) / at.point.slope : dargument;
  dvalue = INVERSE ? dx : fma(at.point.slope, dx, dvalue);
  dt = fma(dx, per_width, dt);
  const Vec<T> dlog = fma(at.log.t, dt, by_shape(at.log));
  return {select(at.inside, dvalue, dargument), select(at.inside, INVERSE ? -dlog : dlog, zero)};
}

}  // namespace genssl::GENSSL_ISA
