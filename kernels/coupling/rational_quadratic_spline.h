// Monotone rational-quadratic splines (Durkan et al. 2019, https://arxiv.org/abs/1906.04032), one
// for each element. With K bins, knots (x_k, y_k) and slopes d_k, in the bin that holds x:
//
//   w = x_{k+1} - x_k, h = y_{k+1} - y_k, s = h / w, t = (x - x_k) / w, u = t (1 - t)
//   y = y_k + h (s t^2 + d_k u) / (s + (d_k + d_{k+1} - 2 s) u)
//   dy/dx = s^2 (d_{k+1} t^2 + 2 s u + d_k (1 - t)^2) / (s + (d_k + d_{k+1} - 2 s) u)^2
//
// and y = x outside [left, right].
#pragma once

#include <stdint.h>

#include "kernels/common/element_type.h"
#include "kernels/common/isa.h"
#include "kernels/common/vec.h"

namespace genssl {

constexpr int kMaxSplineBins = 64;
// Ranges of elements are counted in blocks.
constexpr int64_t kSplineBlock = 64;
// A larger logit of a slope counts as this one: squares of slopes stay finite.
constexpr float kMaxSlopeLogit = 0x1p40f;

// Slopes at the two ends: free; 1; equal, as on a circle.
enum class Tails { none, linear, circular };
// softmax  w_k = min_width + (1 - K min_width) softmax(W)_k, d_k = min_derivative + softplus(D_k)
// zuko     w_k = softmax(clip(2 W) / 2)_k, d_k = exp(clip(D_k)), clip(a) = a / (1 + |a / ln slope|)
enum class SplineParameterization { softmax, zuko };

template <class T>
struct SplineOptions {
  int bins;
  Tails tails;
  SplineParameterization parameterization;
  T left, right, bottom, top;
  T min_width, min_height, min_derivative, slope;
};

template <class T>
GENSSL_INLINE int num_derivatives(const SplineOptions<T>& options) {
  return options.tails == Tails::linear     ? options.bins - 1
         : options.tails == Tails::circular ? options.bins
                                            : options.bins + 1;
}
template <class T>
GENSSL_INLINE int num_parameters(const SplineOptions<T>& options) {
  return 2 * options.bins + num_derivatives(options);
}

// Logits of many elements: those of element i start at
// data + (i / inner) * outer_stride + (i % inner) * stride.
struct SplineRows {
  const void* data;
  int64_t inner, outer_stride, stride;
};

// x, value and parameters have up to 32 bits; everything else is fp32.
struct SplineArgs {
  ElementType type, parameter_type;  // of x and value, of the logits
  SplineOptions<float> options;
  bool inverse;
  int64_t samples, elements_per_sample;
  const void* x;
  SplineRows widths, heights, derivatives;
  void* value;
  float* log_derivative;  // of every element
};

// Logits of element i go to data + i * stride.
struct SplineTarget {
  void* data;
  int64_t stride;
};

struct SplineGradients {
  const void* value;            // like x
  const float* log_derivative;  // [samples], or of every element
  bool elementwise;
  void* x;
  SplineTarget widths, heights, derivatives;
  bool streaming;  // logits lie together in fp32, aligned to 64 bytes, and bypass the caches
};

struct SplineTangents {
  const void* x;
  SplineRows widths, heights, derivatives;
};

}  // namespace genssl

// Splines of blocks [begin, end) of the flattened elements.
GENSSL_DECLARE_KERNEL(void, transform_splines, (const SplineArgs& args, int64_t begin, int64_t end))
// Gradients of x and of every logit.
GENSSL_DECLARE_KERNEL(void, spline_gradients,
                      (const SplineArgs& args, const SplineGradients& gradients, int64_t begin,
                       int64_t end))
// Tangents of value and log-derivative, written to these.
GENSSL_DECLARE_KERNEL(void, spline_tangents,
                      (const SplineArgs& args, const SplineTangents& tangents, int64_t begin,
                       int64_t end))
// Sums over samples [begin, end) of `log_derivative`, to `sums` [samples].
GENSSL_DECLARE_KERNEL(void, sum_log_derivatives,
                      (const SplineArgs& args, float* sums, int64_t begin, int64_t end))
