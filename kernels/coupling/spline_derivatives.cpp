#include "kernels/coupling/spline_derivatives.h"

#include "kernels/coupling/rational_quadratic_spline.h"
#include "kernels/coupling/spline_lanes.h"

namespace genssl::GENSSL_ISA {
namespace {

// Of the log-derivatives of these lanes: that of their sample, or their own.
GENSSL_INLINE Vec<float> gradient_of_log(const SplineArgs& args, const SplineGradients& gradients,
                                         const SplineLanes& lanes) {
  if (gradients.elementwise) {
    return read_lanes(lanes, ElementType::float32, gradients.log_derivative);
  }
  const float* of_samples = gradients.log_derivative;
  int64_t sample = lanes.index / args.elements_per_sample;
  int64_t left = (sample + 1) * args.elements_per_sample - lanes.index;
  if (left >= lanes.count) return Vec<float>(of_samples[sample]);
  float values[Vec<float>::size] = {};
  for (int lane = 0; lane < lanes.count; ++lane, --left) {
    if (left == 0) {
      ++sample;
      left = args.elements_per_sample;
    }
    values[lane] = of_samples[sample];
  }
  return Vec<float>::load(values);
}

template <bool INVERSE>
void gradient_blocks(const SplineArgs& args, const SplineGradients& gradients, int64_t begin,
                     int64_t end) {
  const SplineOptions<float> options = args.options;
  const int bins = options.bins, derivatives = num_derivatives(options), size = Vec<float>::size;
  SplineScratch parameters, found;
  for_each_lanes(args, begin, end, [&](SplineLanes lanes) GENSSL_INLINE_LAMBDA {
    load_parameters(lanes, args.parameter_type, bins, derivatives, args.widths, args.heights,
                    args.derivatives, parameters.rows);
    const Vec<float> to_x =
        spline_gradient<INVERSE>(options, read_lanes(lanes, args.type, args.x), parameters.rows,
                                 read_lanes(lanes, args.type, gradients.value),
                                 gradient_of_log(args, gradients, lanes), found.rows);
    write_lanes(lanes, args.type, to_x, gradients.x);
    if (gradients.streaming && lanes.count == size) {
      return stream_rows(lanes, found.rows, num_parameters(options), gradients.widths.data);
    }
    store_rows(lanes, args.parameter_type, found.rows, bins, gradients.widths);
    store_rows(lanes, args.parameter_type, found.rows + bins * size, bins, gradients.heights);
    store_rows(lanes, args.parameter_type, found.rows + 2 * bins * size, derivatives,
               gradients.derivatives);
  });
  if (gradients.streaming) finish_streaming();
}

template <bool INVERSE>
void tangent_blocks(const SplineArgs& args, const SplineTangents& tangents, int64_t begin,
                    int64_t end) {
  const SplineOptions<float> options = args.options;
  const int derivatives = num_derivatives(options);
  SplineScratch parameters, moved;
  for_each_lanes(args, begin, end, [&](SplineLanes lanes) GENSSL_INLINE_LAMBDA {
    load_parameters(lanes, args.parameter_type, options.bins, derivatives, args.widths,
                    args.heights, args.derivatives, parameters.rows);
    load_parameters(lanes, args.parameter_type, options.bins, derivatives, tangents.widths,
                    tangents.heights, tangents.derivatives, moved.rows);
    const Transformed<float> y =
        spline_tangent<INVERSE>(options, read_lanes(lanes, args.type, args.x), parameters.rows,
                                read_lanes(lanes, args.type, tangents.x), moved.rows);
    write_lanes(lanes, args.type, y.value, args.value);
    write_lanes(lanes, ElementType::float32, y.log_derivative, args.log_derivative);
  });
}

}  // namespace

void spline_gradients(const SplineArgs& args, const SplineGradients& gradients, int64_t begin,
                      int64_t end) {
  if (args.inverse) return gradient_blocks<true>(args, gradients, begin, end);
  gradient_blocks<false>(args, gradients, begin, end);
}

void spline_tangents(const SplineArgs& args, const SplineTangents& tangents, int64_t begin,
                     int64_t end) {
  if (args.inverse) return tangent_blocks<true>(args, tangents, begin, end);
  tangent_blocks<false>(args, tangents, begin, end);
}

}  // namespace genssl::GENSSL_ISA
