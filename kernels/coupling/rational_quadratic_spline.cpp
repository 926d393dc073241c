#include "kernels/coupling/rational_quadratic_spline.h"

#include "kernels/coupling/spline_lanes.h"

namespace genssl::GENSSL_ISA {
namespace {

template <bool INVERSE>
void transform_blocks(const SplineArgs& args, int64_t begin, int64_t end) {
  const SplineOptions<float> options = args.options;
  const int derivatives = num_derivatives(options);
  SplineScratch scratch;
  for_each_lanes(args, begin, end, [&](SplineLanes lanes) GENSSL_INLINE_LAMBDA {
    load_parameters(lanes, args.parameter_type, options.bins, derivatives, args.widths,
                    args.heights, args.derivatives, scratch.rows);
    const Vec<float> x = read_lanes(lanes, args.type, args.x);
    const Transformed<float> y = INVERSE ? spline_inverse(options, x, scratch.rows)
                                         : spline_forward(options, x, scratch.rows);
    write_lanes(lanes, args.type, y.value, args.value);
    write_lanes(lanes, ElementType::float32, y.log_derivative, args.log_derivative);
  });
}

}  // namespace

void transform_splines(const SplineArgs& args, int64_t begin, int64_t end) {
  if (args.inverse) return transform_blocks<true>(args, begin, end);
  transform_blocks<false>(args, begin, end);
}

// Sixteen sums in fp64: one order for every instruction set, and long samples lose nothing.
void sum_log_derivatives(const SplineArgs& args, float* sums, int64_t begin, int64_t end) {
  constexpr int kSums = 16;
  const int64_t elements = args.elements_per_sample;
  for (int64_t sample = begin; sample < end; ++sample) {
    const float* values = args.log_derivative + sample * elements;
    double partial[kSums] = {};
    int64_t i = 0;
    for (; i + kSums <= elements; i += kSums) {
      for (int j = 0; j < kSums; ++j) partial[j] += double(values[i + j]);
    }
    for (int j = 0; i + j < elements; ++j) partial[j] += double(values[i + j]);
    for (int half = kSums / 2; half > 0; half /= 2) {
      for (int j = 0; j < half; ++j) partial[j] += partial[j + half];
    }
    sums[sample] = float(partial[0]);
  }
}

}  // namespace genssl::GENSSL_ISA
