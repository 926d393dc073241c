// Rational-quadratic splines on lanes: every lane is an element with a spline of its own. The
// formula is in rational_quadratic_spline.h.
//
// `parameters` points to num_parameters(options) rows of Vec<T>::size lanes, widths, heights and
// derivatives of a lane's spline below each other. A bin's logits are read once; only the slopes of
// the bin that holds the argument are computed.
//
// The inverse solves a t^2 + b t + c = 0 in [0, 1] in the form that does not cancel, from the
// argument's share of the bin's height, and never leaves the bin.
#pragma once

#include "kernels/common/math.h"
#include "kernels/coupling/rational_quadratic_spline.h"
#include "kernels/coupling/transformed.h"

namespace genssl::GENSSL_ISA {

// What lies between two bounds, cut into bins.
template <class T>
struct SplineAxis {
  T low, high, least;                // `least`: of every bin, in the units of the bounds
  Vec<T> scale;                      // of exponentials to these units
  Vec<T> share[kMaxSplineBins];      // e^(logit - largest logit)
  Vec<T> below[kMaxSplineBins + 1];  // sums of the shares

  // The chain of fused operations over bins ascending; the last knot is exactly `high`.
  GENSSL_INLINE Vec<T> knot(int index, int bins) const {
    if (index == bins) return Vec<T>(high);
    return fma(below[index], scale, Vec<T>(low + T(index) * least));
  }
};

// The bin that holds an argument.
template <class T>
struct SplineBin {
  Vec<T> index;
  Vec<T> x0, x1, y0, y1;
  Vec<T> logit0, logit1;  // of the slopes
};

// 1 / |ln slope|, of Zuko's soft clip.
template <class T>
GENSSL_INLINE T clip_rate(const SplineOptions<T>& options) {
  return options.parameterization == SplineParameterization::zuko
             ? T(-1) / T(::log(double(options.slope)))
             : T(0);
}

template <class T>
GENSSL_INLINE Vec<T> bin_logit(const T* parameters, int bin, T rate) {
  const Vec<T> logit = Vec<T>::load(parameters + bin * Vec<T>::size);
  return rate == T(0) ? logit : logit / fma(Vec<T>(T(2) * rate), abs(logit), Vec<T>(T(1)));
}

template <class T>
GENSSL_INLINE void cut_axis(int bins, const T* logits, T rate, T low, T high, T min_share,
                            SplineAxis<T>& axis) {
  Vec<T> largest = bin_logit(logits, 0, rate), sum(T(0)), excess(T(0));
  for (int k = 1; k < bins; ++k) largest = max(largest, bin_logit(logits, k, rate));
  for (int k = 0; k < bins; ++k) {
    axis.share[k] = exp(bin_logit(logits, k, rate) - largest);
    axis.below[k] = sum;
    // Kahan's sum: steep splines magnify the rounding of knots.
    const Vec<T> share = axis.share[k] - excess, next = sum + share;
    excess = (next - sum) - share;
    sum = next;
  }
  axis.below[bins] = sum;
  axis.low = low;
  axis.high = high;
  axis.least = (high - low) * min_share;
  axis.scale = Vec<T>((high - low) * (T(1) - T(bins) * min_share)) / sum;
}

template <class T>
GENSSL_INLINE T least_share(const SplineOptions<T>& options, T share) {
  return options.parameterization == SplineParameterization::zuko ? T(0) : share;
}

template <class T>
struct SplineAxes {
  SplineAxis<T> x, y;

  GENSSL_INLINE SplineAxes(const SplineOptions<T>& options, const T* parameters) {
    const int bins = options.bins;
    const T rate = clip_rate(options);
    cut_axis(bins, parameters, rate, options.left, options.right,
             least_share(options, options.min_width), x);
    cut_axis(bins, parameters + bins * Vec<T>::size, rate, options.bottom, options.top,
             least_share(options, options.min_height), y);
  }
};

template <class T>
GENSSL_INLINE bool slope_is_given(const SplineOptions<T>& options, int knot) {
  return options.tails == Tails::linear && (knot == 0 || knot == options.bins);
}

// The row of a knot's slope among the derivatives.
template <class T>
GENSSL_INLINE int slope_row(const SplineOptions<T>& options, int knot) {
  if (options.tails == Tails::linear) return knot - 1;
  return options.tails == Tails::circular && knot == options.bins ? 0 : knot;
}

template <class T>
GENSSL_INLINE Vec<T> slope_logit(const SplineOptions<T>& options, const T* derivatives, int knot) {
  if (slope_is_given(options, knot)) return Vec<T>(T(0));
  return Vec<T>::load(derivatives + slope_row(options, knot) * Vec<T>::size);
}

// The bin by y where INVERSE, else by x. Arguments below the first knot get the first bin, NaN too.
template <bool INVERSE, class T>
GENSSL_INLINE SplineBin<T> find_bin(const SplineOptions<T>& options, const SplineAxes<T>& axes,
                                    const T* parameters, Vec<T> argument) {
  const int bins = options.bins;
  const T* derivatives = parameters + 2 * bins * Vec<T>::size;
  Vec<T> x0 = axes.x.knot(0, bins), x1 = axes.x.knot(1, bins);
  Vec<T> y0 = axes.y.knot(0, bins), y1 = axes.y.knot(1, bins);
  Vec<T> logit0 = slope_logit(options, derivatives, 0);
  Vec<T> logit1 = slope_logit(options, derivatives, 1);
  SplineBin<T> bin{Vec<T>(T(0)), x0, x1, y0, y1, logit0, logit1};
  for (int k = 1; k < bins; ++k) {
    x0 = x1, y0 = y1, logit0 = logit1;
    x1 = axes.x.knot(k + 1, bins);
    y1 = axes.y.knot(k + 1, bins);
    logit1 = slope_logit(options, derivatives, k + 1);
    const auto reached = argument >= (INVERSE ? y0 : x0);
    bin = {select(reached, Vec<T>(T(k)), bin.index),
           select(reached, x0, bin.x0),
           select(reached, x1, bin.x1),
           select(reached, y0, bin.y0),
           select(reached, y1, bin.y1),
           select(reached, logit0, bin.logit0),
           select(reached, logit1, bin.logit1)};
  }
  return bin;
}

// Slope at a knot of the bin, `offset` 0 or 1.
template <class T>
GENSSL_INLINE Vec<T> knot_slope(const SplineOptions<T>& options, const SplineBin<T>& bin,
                                int offset) {
  const Vec<T> logit = offset ? bin.logit1 : bin.logit0, one(T(1));
  if (options.parameterization == SplineParameterization::zuko) {
    return exp(logit / fma(Vec<T>(clip_rate(options)), abs(logit), one));
  }
  const Vec<T> slope = Vec<T>(options.min_derivative) + softplus(logit);
  if (options.tails != Tails::linear) return slope;
  return select(bin.index == Vec<T>(T(offset ? options.bins - 1 : 0)), one, slope);
}

// The curve in a bin of width w and height h: s is their ratio, d0 and d1 are the slopes at its
// ends.
template <class T>
struct SplineCurve {
  Vec<T> w, h, s, d0, d1;
};

// Bins narrower than rounding of the bounds would have an infinite slope.
template <class T>
constexpr T kLeastBin = sizeof(T) == 4 ? T(0x1p-23) : T(0x1p-52);

template <class T>
GENSSL_INLINE SplineCurve<T> curve_of(const SplineOptions<T>& options, const SplineBin<T>& bin) {
  const Vec<T> w = max(bin.x1 - bin.x0, Vec<T>(kLeastBin<T> * (options.right - options.left)));
  const Vec<T> h = max(bin.y1 - bin.y0, Vec<T>(kLeastBin<T> * (options.top - options.bottom)));
  return {w, h, h / w, knot_slope(options, bin, 0), knot_slope(options, bin, 1)};
}

template <class T>
GENSSL_INLINE Vec<T> clamp_to_unit(Vec<T> a) {
  return min(max(a, Vec<T>(T(0))), Vec<T>(T(1)));
}

template <class T>
GENSSL_INLINE Vec<T> solve_curve(const SplineCurve<T>& curve, Vec<T> share_of_height) {
  const Vec<T> zero(T(0)), two(T(2)), e = clamp_to_unit(share_of_height);
  const Vec<T> change = (curve.d0 - curve.s) + (curve.d1 - curve.s);
  const Vec<T> a = fma(e, change, curve.s - curve.d0), b = fma(-e, change, curve.d0);
  const Vec<T> c = -curve.s * e;
  const Vec<T> root = sqrt(max(fma(b, b, Vec<T>(T(-4)) * a * c), zero));
  const auto rising = b >= zero;
  return clamp_to_unit(select(rising, two * c, root - b) / select(rising, -b - root, two * a));
}

// The curve at t in [0, 1]: y's share of the bin's height, the slope, and u, v = 1 / denominator
// and m = d1 t^2 + 2 s u + d0 (1 - t)^2 of it.
template <class T>
struct CurvePoint {
  Vec<T> share, slope, u, v, m;
};
template <class T>
GENSSL_INLINE CurvePoint<T> point_of(const SplineCurve<T>& curve, Vec<T> t) {
  const Vec<T> one(T(1)), rest = one - t, u = t * rest;
  const Vec<T> change = (curve.d0 - curve.s) + (curve.d1 - curve.s);
  const Vec<T> v = one / fma(change, u, curve.s);
  const Vec<T> share = fma(curve.s * t, t, curve.d0 * u) * v;
  const Vec<T> m = fma(curve.d1 * t, t, fma(curve.d0 * rest, rest, (curve.s + curve.s) * u));
  const Vec<T> ratio = curve.s * v;
  return {share, ratio * (ratio * m), u, v, m};
}

template <class T>
GENSSL_INLINE typename Vec<T>::Mask lies_within(Vec<T> a, T low, T high) {
  return (a >= Vec<T>(low)) & (a <= Vec<T>(high));
}

// y and log dy/dx.
template <class T>
GENSSL_INLINE Transformed<T> spline_forward(const SplineOptions<T>& options, Vec<T> x,
                                            const T* parameters) {
  const SplineAxes<T> axes(options, parameters);
  const SplineBin<T> bin = find_bin<false>(options, axes, parameters, x);
  const SplineCurve<T> curve = curve_of(options, bin);
  const CurvePoint<T> point = point_of(curve, clamp_to_unit((x - bin.x0) / curve.w));
  const auto inside = lies_within(x, options.left, options.right);
  return {select(inside, fma(curve.h, point.share, bin.y0), x),
          select(inside, log(point.slope), Vec<T>(T(0)))};
}

// x and log dx/dy.
template <class T>
GENSSL_INLINE Transformed<T> spline_inverse(const SplineOptions<T>& options, Vec<T> y,
                                            const T* parameters) {
  const SplineAxes<T> axes(options, parameters);
  const SplineBin<T> bin = find_bin<true>(options, axes, parameters, y);
  const SplineCurve<T> curve = curve_of(options, bin);
  const Vec<T> t = solve_curve(curve, (y - bin.y0) / curve.h);
  const auto inside = lies_within(y, options.bottom, options.top);
  return {select(inside, fma(curve.w, t, bin.x0), y),
          select(inside, -log(point_of(curve, t).slope), Vec<T>(T(0)))};
}

}  // namespace genssl::GENSSL_ISA
