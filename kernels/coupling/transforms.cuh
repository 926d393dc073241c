// The inverses of the elementwise transforms for one element, whose parameters lie `stride` apart.
// Formulas: affine_coupling.h and rational_quadratic_spline.h. A bin's logits are read again
// instead of kept: registers have no room for 64 bins.
#pragma once

#include "kernels/causal/made_inverse.h"
#include "kernels/common/packed_mlp.cuh"

namespace genssl::cuda {

template <typename Real>
struct Transformed {
  Real value, log_derivative;
};

template <typename Real>
struct Parameters {
  const Real* data;
  int stride;

  __device__ Real operator[](int index) const { return data[index * stride]; }
  __device__ Parameters from(int index) const { return {data + index * stride, stride}; }
};

template <typename Real>
__device__ Real softplus(Real x) {
  return larger(x, Real(0)) + log1p(exp(-fabs(x)));
}

template <typename Real>
__device__ Real sigmoid(Real x) {
  return Real(1) / (Real(1) + exp(-x));
}

template <typename Real>
__device__ Real activate(Activation activation, Real x) {
  switch (activation) {
    case Activation::relu:
      return x < Real(0) ? Real(0) : x;
    case Activation::leaky_relu:
      return x < Real(0) ? Real(0.01) * x : x;
    case Activation::elu:
      return x > Real(0) ? x : expm1(x);
    case Activation::silu:
      return silu(x);
    case Activation::tanh:
      return tanh(x);
    case Activation::sigmoid:
      return sigmoid(x);
    default:
      return softplus(x);
  }
}

// A scale and its logarithm. Without a least scale, a tiny softplus is e^u.
template <typename Real>
__device__ Transformed<Real> softplus_scale(const AffineOptions<Real>& options, Real u) {
  constexpr Real kTiny = Real(sizeof(Real) == 4 ? 1e-8 : 1e-17);
  const Real scale = smaller(softplus(u) + options.min_scale, options.limit);
  return {scale, options.min_scale == 0 && scale < kTiny ? u : log(scale)};
}

template <typename Real>
__device__ Transformed<Real> sigmoid_scale(const AffineOptions<Real>& options, Real u) {
  const Real scale = sigmoid(u) + options.min_scale;
  return {scale, options.min_scale == 0 ? -softplus(-u) : log(scale)};
}

template <typename Real>
__device__ Transformed<Real> reciprocal(const Transformed<Real>& scale) {
  return {Real(1) / scale.value, -scale.log_derivative};
}

template <typename Real>
__device__ Real bounded_log_scale(const AffineOptions<Real>& options, Real a) {
  switch (options.clamp) {
    case Clamp::tanh:
      return options.limit * tanh(a * (Real(1) / options.limit));
    case Clamp::atan:
      return options.limit * Real(0.636) * atan(a);
    case Clamp::zuko:
      return a / (Real(1) + fabs(a) / options.limit);
    default:
      return a;
  }
}

// What the inverse multiplies by, and its logarithm.
template <typename Real>
__device__ Transformed<Real> inverse_factor(const AffineOptions<Real>& options, Real a) {
  switch (options.clamp) {
    case Clamp::additive:
      return {1, 0};
    case Clamp::sigmoid:
      return reciprocal(sigmoid_scale(options, a + options.offset));
    case Clamp::reciprocal_sigmoid:
      return sigmoid_scale(options, a + options.offset);
    case Clamp::softplus:
      return reciprocal(softplus_scale(options, a + options.offset));
    default:
      const Real log_factor = -bounded_log_scale(options, a);
      return {exp(log_factor), log_factor};
  }
}

template <typename Real>
__device__ Transformed<Real> affine_inverse(const AffineOptions<Real>& options, Real y, Real shift,
                                            Real raw_log_scale) {
  const Transformed<Real> factor = inverse_factor(options, raw_log_scale);
  const Real value =
      options.shift_first ? fma(y, factor.value, -shift) : (y - shift) * factor.value;
  return {value, factor.log_derivative};
}

// 1 / |ln slope|, of Zuko's soft clip; 0 where nothing is clipped.
template <typename Real>
__device__ Real clip_rate(const SplineOptions<Real>& options) {
  const bool clips = options.parameterization == SplineParameterization::zuko;
  return clips ? Real(-1) / log(options.slope) : Real(0);
}

// Knots 1 to `bins` of one axis in turn; the last is exactly `high`.
template <typename Real>
class SplineAxis {
 public:
  __device__ SplineAxis(int bins, Parameters<Real> logits, Real rate, Real low, Real high,
                        Real min_share)
      : logits_(logits), bins_(bins), rate_(rate), low_(low), high_(high) {
    largest_ = logit(0);
    for (int k = 1; k < bins; ++k) largest_ = larger(largest_, logit(k));
    for (int k = 0; k < bins; ++k) add_bin(k);
    least_ = (high - low) * min_share;
    scale_ = (high - low) * (Real(1) - Real(bins) * min_share) / sum_;
    sum_ = excess_ = 0;
  }

  __device__ Real next_knot() {
    add_bin(knot_++);
    return knot_ == bins_ ? high_ : fma(sum_, scale_, low_ + Real(knot_) * least_);
  }

 private:
  __device__ Real logit(int bin) const {
    const Real logit = logits_[bin];
    return rate_ == 0 ? logit : logit / fma(Real(2) * rate_, fabs(logit), Real(1));
  }
  // Kahan's sum: steep splines magnify the rounding of knots.
  __device__ void add_bin(int bin) {
    const Real share = exp(logit(bin) - largest_) - excess_, next = sum_ + share;
    excess_ = (next - sum_) - share;
    sum_ = next;
  }

  Parameters<Real> logits_;
  int bins_, knot_ = 0;
  Real rate_, low_, high_, least_, largest_, scale_, sum_ = 0, excess_ = 0;
};

template <typename Real>
__device__ Real knot_slope(const SplineOptions<Real>& options, Parameters<Real> derivatives,
                           Real rate, int knot) {
  const bool is_linear = options.tails == Tails::linear;
  if (is_linear && (knot == 0 || knot == options.bins)) return 1;
  const bool wraps = options.tails == Tails::circular && knot == options.bins;
  const Real logit = derivatives[is_linear ? knot - 1 : wraps ? 0 : knot];
  if (rate != 0) return exp(logit / fma(rate, fabs(logit), Real(1)));
  return options.min_derivative + softplus(smaller(Real(kMaxSlopeLogit), logit));
}

template <typename Real>
__device__ Real clamp_to_unit(Real a) {
  return smaller(larger(a, Real(0)), Real(1));
}

// The curve in a bin of width w and height h: s is their ratio, d0 and d1 are the slopes at its
// ends.
template <typename Real>
struct SplineCurve {
  Real w, h, s, d0, d1;

  // The root in [0, 1], as in spline_vec.h.
  __device__ Real solve(Real share_of_height) const {
    const Real e = clamp_to_unit(share_of_height), rest = Real(1) - e;
    const Real g = fma(d0, rest, -(d1 * e)), f = Real(2) * (s * e), b = g + f;
    const Real root = sqrt(fma(g, g, f * (Real(2) * (s * rest))));
    return clamp_to_unit(b >= 0 ? f / (b + root) : (root - b) / (Real(2) * (s - b)));
  }
  __device__ Real slope(Real t) const {
    const Real rest = Real(1) - t, u = t * rest, change = (d0 - s) + (d1 - s);
    const Real m = fma(d1 * t, t, fma(d0 * rest, rest, (s + s) * u));
    const Real ratio = s * (Real(1) / fma(change, u, s));
    return ratio * (ratio * m);
  }
};

template <typename Real>
__device__ Transformed<Real> spline_inverse(const SplineOptions<Real>& options, Real y,
                                            Parameters<Real> parameters) {
  if (!(y >= options.bottom && y <= options.top)) return {y, 0};
  // Bins narrower than rounding of the bounds would have an infinite slope.
  constexpr Real kLeastBin = sizeof(Real) == 4 ? Real(0x1p-23) : Real(0x1p-52);
  const int bins = options.bins;
  const Real rate = clip_rate(options);
  SplineAxis<Real> x_axis(bins, parameters, rate, options.left, options.right,
                          rate == 0 ? options.min_width : Real(0));
  SplineAxis<Real> y_axis(bins, parameters.from(bins), rate, options.bottom, options.top,
                          rate == 0 ? options.min_height : Real(0));
  Real x0 = options.left, y0 = options.bottom, x1 = x_axis.next_knot(), y1 = y_axis.next_knot();
  int bin = 0;
  for (; bin + 1 < bins && y >= y1; ++bin) {
    x0 = x1;
    y0 = y1;
    x1 = x_axis.next_knot();
    y1 = y_axis.next_knot();
  }
  const Parameters<Real> derivatives = parameters.from(2 * bins);
  const Real w = larger(x1 - x0, kLeastBin * (options.right - options.left));
  const Real h = larger(y1 - y0, kLeastBin * (options.top - options.bottom));
  const SplineCurve<Real> curve{w, h, h / w, knot_slope(options, derivatives, rate, bin),
                                knot_slope(options, derivatives, rate, bin + 1)};
  const Real t = curve.solve((y - y0) / h);
  return {smaller(x1, larger(x0, fma(w, t, x0))), -log(curve.slope(t))};
}

template <typename Real>
__device__ Transformed<Real> invert(const ElementwiseOptions<Real>& options, Real y,
                                    Parameters<Real> parameters) {
  if (options.is_spline) return spline_inverse(options.spline, y, parameters);
  const Real first = parameters[0], second = options.has_scale ? parameters[1] : Real(0);
  return options.scale_first ? affine_inverse(options.affine, y, second, first)
                             : affine_inverse(options.affine, y, first, second);
}

}  // namespace genssl::cuda
