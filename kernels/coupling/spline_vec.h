// Rational-quadratic splines on lanes: every lane is an element with a spline of its own. The
// formula is in rational_quadratic_spline.h.
//
// `parameters` points to num_parameters(options) rows of Vec<T>::size lanes, widths, heights and
// derivatives of a lane's spline below each other. A bin's logits are read once; only the slopes of
// the bin that holds the argument are computed.
//
// The inverse solves (s - b) t^2 + b t = s e in [0, 1] from the argument's share e of the bin's
// height, where b = g + 2 s e and g = d0 (1 - e) - d1 e: with b^2 + 4 (s - b) s e = g^2 + 4 s^2 e
// (1 - e) nothing cancels, and no root is of a negative number.
#pragma once

#include "kernels/common/math.h"
#include "kernels/coupling/rational_quadratic_spline.h"
#include "kernels/coupling/transformed.h"

namespace genssl::GENSSL_ISA {

// NaN stays NaN.
template <class T>
GENSSL_INLINE Vec<T> clamp(Vec<T> a, T low, T high) {
  return min(max(a, Vec<T>(low)), Vec<T>(high));
}
template <class T>
GENSSL_INLINE Vec<T> clamp_to_unit(Vec<T> a) {
  return clamp(a, T(0), T(1));
}

// A number in two parts, the second below the rounding of the first.
template <class T>
struct Pair {
  Vec<T> high, low;
};

template <class T>
GENSSL_INLINE Pair<T> two_sum(Vec<T> a, Vec<T> b) {
  const Vec<T> sum = a + b, second = sum - a;
  return {sum, (a - (sum - second)) + (b - second)};
}
template <class T>
GENSSL_INLINE Pair<T> two_product(Vec<T> a, Vec<T> b) {
  const Vec<T> product = a * b;
  return {product, exact_fma(a, b, -product)};
}

// A bin's share, e^(logit - offset), and the sum of those below in two parts that never rounded.
template <class T>
struct AxisBin {
  Vec<T> share, below, below_low;
};

// What lies between two bounds, cut into bins.
template <class T>
struct SplineAxis {
  T low, high, least;              // `least`: of every bin, in the units of the bounds
  Pair<T> scale;                   // of shares to these units
  Vec<T> sum;                      // of the shares
  AxisBin<T> bin[kMaxSplineBins];  // side by side: arrays of 4 KiB would share a few cache lines
  Vec<T> clip[kMaxSplineBins];     // Zuko's: clipped logit / logit

  // From `low` to the lower end of a bin, rounded.
  GENSSL_INLINE Vec<T> knot(int index) const {
    const Vec<T> below = bin[index].below + bin[index].below_low;
    return fma(below, scale.high, Vec<T>(T(index) * least));
  }
  // The same in full.
  GENSSL_INLINE Pair<T> start(const AxisBin<T>& bin, Vec<T> index) const {
    const Pair<T> scaled = two_product(bin.below, scale.high);
    const Pair<T> start = two_sum(scaled.high, index * Vec<T>(least));
    const Vec<T> rest = fma(bin.below, scale.low, fma(bin.below_low, scale.high, scaled.low));
    return {start.high, start.low + rest};
  }
  GENSSL_INLINE Vec<T> width(const AxisBin<T>& bin) const {
    return fma(bin.share, scale.high, fma(bin.share, scale.low, Vec<T>(least)));
  }

  // How far an argument lies behind the start of a bin, and what lies so far behind it, at most at
  // the bound: rounding does not leave the box.
  GENSSL_INLINE Vec<T> distance(Vec<T> argument, const Pair<T>& start) const {
    const Pair<T> offset = two_sum(argument, Vec<T>(-low));
    return (offset.high - start.high) + (offset.low - start.low);
  }
  GENSSL_INLINE Vec<T> behind(const Pair<T>& start, Vec<T> width, Vec<T> share) const {
    const Pair<T> knot = two_sum(Vec<T>(low), start.high);
    return clamp(knot.high + (knot.low + fma(width, share, start.low)), low, high);
  }
};

// The bin that holds an argument.
template <class T>
struct SplineBin {
  Vec<T> index;
  AxisBin<T> x, y;
  Vec<T> logit0, logit1;  // of the slopes
};

// 1 / |ln slope|, of Zuko's soft clip.
template <class T>
GENSSL_INLINE T clip_rate(const SplineOptions<T>& options) {
  return options.parameterization == SplineParameterization::zuko
             ? T(-1) / T(::log(double(options.slope)))
             : T(0);
}

// Powers of e up to that of the largest logit, over a power of two near the latter: the difference
// to the largest is never rounded. Beyond kPlain the logits' own rounding is what counts.
struct Powers {
  static constexpr float kPlain = 4096.0f;
  Vec<float> offset, least, exponent;

  GENSSL_INLINE explicit Powers(Vec<float> largest)
      : offset(select(abs(largest) > Vec<float>(kPlain), largest, Vec<float>(0.0f))),
        least((largest - offset) - Vec<float>(104.0f)),
        exponent(round((largest - offset) * Vec<float>(1.44269504f))) {}

  // Of several logits side by side: one after the other, each would wait for itself.
  template <int count>
  GENSSL_INLINE void replace(Vec<float> (&x)[count]) const {
    constexpr float kCoefficients[] = {1.38195115e-3f, 8.3686905e-3f, 4.1668281e-2f, 1.66665211e-1f,
                                       4.9999994e-1f,  1.0f,          1.0f};
    Vec<float> n[count], power[count];
    const auto each = [&](const auto& step) GENSSL_INLINE_LAMBDA {
#pragma GCC unroll 4
      for (int i = 0; i < count; ++i) step(i);
    };
    each([&](int i) GENSSL_INLINE_LAMBDA { x[i] = max(x[i] - offset, least); });
    each([&](int i) GENSSL_INLINE_LAMBDA { n[i] = round(x[i] * Vec<float>(1.44269504f)); });
    each([&](int i) GENSSL_INLINE_LAMBDA { x[i] = fma(n[i], Vec<float>(-kLn2High), x[i]); });
    each([&](int i) GENSSL_INLINE_LAMBDA { x[i] = fma(n[i], Vec<float>(-kLn2Low), x[i]); });
    each([&](int i) GENSSL_INLINE_LAMBDA { power[i] = Vec<float>(kCoefficients[0]); });
#pragma GCC unroll 6
    for (int c = 1; c < 7; ++c) {
      const Vec<float> coefficient(kCoefficients[c]);
      each([&](int i) GENSSL_INLINE_LAMBDA { power[i] = fma(power[i], x[i], coefficient); });
    }
    each([&](int i)
             GENSSL_INLINE_LAMBDA { x[i] = scale_by_power_of_two(power[i], n[i] - exponent); });
  }
};

template <class T>
struct PowersOf {
  using type = Powers;
};
struct DoublePowers {
  Vec<double> largest;
  GENSSL_INLINE explicit DoublePowers(Vec<double> largest) : largest(largest) {}
  template <int count>
  GENSSL_INLINE void replace(Vec<double> (&x)[count]) const {
    for (Vec<double>& logit : x) logit = exp(logit - largest);
  }
};
template <>
struct PowersOf<double> {
  using type = DoublePowers;
};

template <class T>
GENSSL_INLINE void cut_axis(int bins, const T* logits, T rate, T low, T high, T min_share,
                            SplineAxis<T>& axis) {
  const Vec<T> one(T(1)), lowest(-T(__builtin_inff()));
  Vec<T> largest = lowest;
  for (int k = 0; k < bins; ++k) {
    Vec<T> logit = Vec<T>::load(logits + k * Vec<T>::size);
    if (rate != T(0)) {
      axis.clip[k] = one / fma(Vec<T>(T(2) * rate), abs(logit), one);
      logit = logit * axis.clip[k];
    }
    axis.bin[k].share = logit;
    largest = max(largest, logit);
  }
  const typename PowersOf<T>::type powers(largest);
  // Shares are cut at a fixed place, so that neither the sum of the upper parts nor that of the
  // lower ones rounds: steep splines magnify the rounding of knots.
  const Vec<T> place(T(96));
  Vec<T> sum(T(0)), sum_low(T(0));
  constexpr int kTogether = 4;
  for (int first = 0; first < bins; first += kTogether) {
    Vec<T> share[kTogether];
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) {
      share[i] = first + i < bins ? axis.bin[first + i].share : lowest;
    }
    powers.replace(share);
#pragma GCC unroll 4
    for (int i = 0; i < kTogether; ++i) {
      const Vec<T> upper = (share[i] + place) - place;
      axis.bin[first + i] = {share[i], sum, sum_low};
      sum = sum + upper;
      sum_low = sum_low + (share[i] - upper);
    }
  }
  axis.low = low;
  axis.high = high;
  axis.least = (high - low) * min_share;
  axis.sum = sum + sum_low;
  const double shared = (double(high) - double(low)) * (1 - bins * double(min_share));
  const Vec<T> range(static_cast<T>(shared)), range_low(T(shared - double(T(shared))));
  const Vec<T> scale = range / axis.sum;
  const Vec<T> left = exact_fma(-scale, axis.sum, range) + range_low;
  const Vec<T> missing = fma(-scale, (sum - axis.sum) + sum_low, left);
  axis.scale = {scale, missing * scale * Vec<T>(shared > 0 ? T(1 / shared) : T(0))};
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

template <class T>
GENSSL_INLINE AxisBin<T> select_bin(typename Vec<T>::Mask mask, const AxisBin<T>& yes,
                                    const AxisBin<T>& no) {
  return {select(mask, yes.share, no.share), select(mask, yes.below, no.below),
          select(mask, yes.below_low, no.below_low)};
}

// The bin by y where INVERSE, else by x. Arguments below the first knot get the first bin, NaN too.
template <bool INVERSE, class T>
GENSSL_INLINE SplineBin<T> find_bin(const SplineOptions<T>& options, const SplineAxes<T>& axes,
                                    const T* parameters, Vec<T> argument) {
  const int bins = options.bins;
  const T* derivatives = parameters + 2 * bins * Vec<T>::size;
  const SplineAxis<T>& searched = INVERSE ? axes.y : axes.x;
  const Vec<T> offset = argument - Vec<T>(searched.low);
  Vec<T> logit0 = slope_logit(options, derivatives, 0);
  Vec<T> logit1 = slope_logit(options, derivatives, 1);
  SplineBin<T> bin{Vec<T>(T(0)), axes.x.bin[0], axes.y.bin[0], logit0, logit1};
  for (int k = 1; k < bins; ++k) {
    logit0 = logit1;
    logit1 = slope_logit(options, derivatives, k + 1);
    const auto reached = offset >= searched.knot(k);
    bin = {select(reached, Vec<T>(T(k)), bin.index), select_bin(reached, axes.x.bin[k], bin.x),
           select_bin(reached, axes.y.bin[k], bin.y), select(reached, logit0, bin.logit0),
           select(reached, logit1, bin.logit1)};
  }
  return bin;
}

// Slope at the lower (0) or upper (1) end of a bin, and its derivative by the logit.
template <class T>
struct KnotSlope {
  Vec<T> slope, by_logit;
};
template <class T>
GENSSL_INLINE KnotSlope<T> knot_slope(const SplineOptions<T>& options, const SplineBin<T>& bin,
                                      int offset) {
  const Vec<T> logit = offset ? bin.logit1 : bin.logit0, zero(T(0)), one(T(1));
  KnotSlope<T> knot;
  if (options.parameterization == SplineParameterization::zuko) {
    const Vec<T> clip = one / fma(Vec<T>(clip_rate(options)), abs(logit), one);
    knot.slope = exp(logit * clip);
    knot.by_logit = knot.slope * clip * clip;
  } else {
    const Vec<T> most = T(kMaxSlopeLogit), power = exp(-abs(logit));
    const Vec<T> linear = select(logit > most, most, max(logit, zero));
    knot.slope = Vec<T>(options.min_derivative) + (linear + log1p_of_unit(power));
    const Vec<T> upper = select(logit > most, zero, one);
    knot.by_logit = select(logit < zero, power, upper) / (one + power);
  }
  if (options.tails != Tails::linear) return knot;
  const auto given = bin.index == Vec<T>(T(offset ? options.bins - 1 : 0));
  return {select(given, one, knot.slope), select(given, zero, knot.by_logit)};
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
GENSSL_INLINE SplineCurve<T> curve_of(const SplineOptions<T>& options, const SplineAxes<T>& axes,
                                      const SplineBin<T>& bin, Vec<T> d0, Vec<T> d1) {
  const Vec<T> least_w(kLeastBin<T> * (options.right - options.left));
  const Vec<T> least_h(kLeastBin<T> * (options.top - options.bottom));
  const Vec<T> w = max(axes.x.width(bin.x), least_w), h = max(axes.y.width(bin.y), least_h);
  return {w, h, h / w, d0, d1};
}

template <class T>
GENSSL_INLINE Vec<T> solve_curve(const SplineCurve<T>& curve, Vec<T> share_of_height) {
  const Vec<T> one(T(1)), two(T(2)), e = share_of_height, rest = one - e;
  const Vec<T> g = fma(curve.d0, rest, -(curve.d1 * e)), f = two * (curve.s * e), b = g + f;
  const Vec<T> root = sqrt(fma(g, g, f * (two * (curve.s * rest))));
  const auto rising = b >= Vec<T>(T(0));
  return clamp_to_unit(select(rising, f, root - b) / select(rising, b + root, two * (curve.s - b)));
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

// The curve around an argument, and the argument's share of the bin.
template <class T>
struct Located {
  SplineCurve<T> curve;
  Vec<T> share;
  Pair<T> start;  // of the bin on the other axis
};

template <bool INVERSE, class T>
GENSSL_INLINE Located<T> locate(const SplineOptions<T>& options, const SplineAxes<T>& axes,
                                const SplineBin<T>& bin, Vec<T> argument, Vec<T> d0, Vec<T> d1) {
  const Pair<T> x = axes.x.start(bin.x, bin.index), y = axes.y.start(bin.y, bin.index);
  const SplineCurve<T> curve = curve_of(options, axes, bin, d0, d1);
  const Vec<T> distance = INVERSE ? axes.y.distance(argument, y) : axes.x.distance(argument, x);
  const Vec<T> share = clamp_to_unit(distance / (INVERSE ? curve.h : curve.w));
  return {curve, share, INVERSE ? x : y};
}

// y and log dy/dx.
template <class T>
GENSSL_INLINE Transformed<T> spline_forward(const SplineOptions<T>& options, Vec<T> x,
                                            const T* parameters) {
  const SplineAxes<T> axes(options, parameters);
  const SplineBin<T> bin = find_bin<false>(options, axes, parameters, x);
  const auto [curve, t, start] = locate<false>(
      options, axes, bin, x, knot_slope(options, bin, 0).slope, knot_slope(options, bin, 1).slope);
  const CurvePoint<T> point = point_of(curve, t);
  const auto inside = lies_within(x, options.left, options.right);
  const Vec<T> y = select(x == Vec<T>(options.right), Vec<T>(options.top),
                          axes.y.behind(start, curve.h, clamp_to_unit(point.share)));
  return {select(inside, y, x), select(inside, log(point.slope), Vec<T>(T(0)))};
}

// x and log dx/dy.
template <class T>
GENSSL_INLINE Transformed<T> spline_inverse(const SplineOptions<T>& options, Vec<T> y,
                                            const T* parameters) {
  const SplineAxes<T> axes(options, parameters);
  const SplineBin<T> bin = find_bin<true>(options, axes, parameters, y);
  const auto [curve, share, start] = locate<true>(
      options, axes, bin, y, knot_slope(options, bin, 0).slope, knot_slope(options, bin, 1).slope);
  const Vec<T> t = solve_curve(curve, share);
  const auto inside = lies_within(y, options.bottom, options.top);
  const Vec<T> x =
      select(y == Vec<T>(options.top), Vec<T>(options.right), axes.x.behind(start, curve.w, t));
  return {select(inside, x, y), select(inside, -log(point_of(curve, t).slope), Vec<T>(T(0)))};
}

}  // namespace genssl::GENSSL_ISA
