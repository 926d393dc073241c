#include "kernels/coupling/rational_quadratic_spline.h"

#include <tuple>

#include "csrc/common.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

// Blocks that are worth a thread, and samples whose sums are.
constexpr int64_t kGrain = 32, kSumGrain = 4096;
// Logits and gradients that together exceed this do not fit into the last cache.
constexpr int64_t kCacheBytes = int64_t{32} << 20;

struct OptionArguments {
  bool inverse, elementwise;
  int64_t tails;
  bool zuko;
  double left, right, bottom, top, min_width, min_height, min_derivative, slope;
};

// A tensor of logits [*x.shape, columns], copied where two strides do not describe it.
struct Logits {
  Tensor tensor;
  SplineRows rows;

  Logits(Tensor given, const Tensor& x, const Tensor& model, int64_t columns, const char* name)
      : tensor(std::move(given)) {
    std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
    shape.push_back(columns);
    check_shape(tensor, name, shape);
    check_type(tensor, name, model.scalar_type());
    if (!find_rows()) {
      tensor = torch::stable::contiguous(tensor);
      find_rows();
    }
    rows.data = tensor.const_data_ptr();
  }

 private:
  bool find_rows() {
    int64_t count[2] = {1, 1}, stride[2] = {0, 0};
    int group = 0;
    for (int64_t dim = tensor.dim() - 2; dim >= 0; --dim) {
      const int64_t size = tensor.size(dim), step = tensor.stride(dim);
      if (size == 1) continue;
      if (count[group] > 1 && step != count[group] * stride[group] && ++group == 2) return false;
      if (count[group] == 1) stride[group] = step;
      count[group] *= size;
    }
    rows = {.inner = count[0], .outer_stride = stride[1], .stride = stride[0]};
    const int64_t columns = tensor.size(tensor.dim() - 1);
    return columns < 2 || tensor.stride(tensor.dim() - 1) == 1;
  }
};

// Rows of the three kinds of logits, and what holds them: three tensors, or one with all of them.
struct Parameters {
  std::vector<Tensor> tensors;
  SplineRows widths, heights, derivatives;

  Parameters(const Tensor& first, const OptionalTensor& second, const OptionalTensor& third,
             const Tensor& x, const SplineOptions<float>& options) {
    STD_TORCH_CHECK(second.has_value() == third.has_value(),
                    "heights, derivatives: expected both or neither");
    const int64_t bins = options.bins, slopes = num_derivatives(options);
    if (second) {
      widths = hold(Logits(first, x, first, bins, "widths"));
      heights = hold(Logits(*second, x, first, bins, "heights"));
      derivatives = hold(Logits(*third, x, first, slopes, "derivatives"));
    } else {
      widths = hold(Logits(first, x, first, num_parameters(options), "widths"));
      heights = after(widths, bins * first.element_size());
      derivatives = after(heights, bins * first.element_size());
    }
  }

 private:
  SplineRows hold(Logits logits) {
    tensors.push_back(logits.tensor);
    return logits.rows;
  }
  static SplineRows after(SplineRows rows, int64_t bytes) {
    rows.data = static_cast<const char*>(rows.data) + bytes;
    return rows;
  }
};

SplineOptions<float> kernel_options(const Tensor& widths, bool packed, const OptionArguments& o) {
  STD_TORCH_CHECK(widths.dim() >= 1, "widths: expected bins in the last dimension");
  SplineOptions<float> options{
      .bins = 0,
      .tails = static_cast<Tails>(o.tails),
      .parameterization = o.zuko ? SplineParameterization::zuko : SplineParameterization::softmax,
      .left = float(o.left),
      .right = float(o.right),
      .bottom = float(o.bottom),
      .top = float(o.top),
      .min_width = float(o.min_width),
      .min_height = float(o.min_height),
      .min_derivative = float(o.min_derivative),
      .slope = float(o.slope),
  };
  const int64_t columns = widths.size(widths.dim() - 1);
  const int64_t bins = packed ? (columns - num_derivatives(options)) / 3 : columns;
  STD_TORCH_CHECK(bins >= 1 && bins <= kMaxSplineBins, "widths: expected 1 to ", kMaxSplineBins,
                  " bins in the last dimension, got ", bins);
  options.bins = static_cast<int>(bins);
  return options;
}

// Holds what `args` points to.
struct Call {
  Tensor x;
  SplineOptions<float> options;
  Parameters parameters;
  SplineArgs args;

  Call(const Tensor& given, const Tensor& widths, const OptionalTensor& heights,
       const OptionalTensor& derivatives, const OptionArguments& o)
      : x(as_contiguous(given)),
        options(kernel_options(widths, !heights, o)),
        parameters(widths, heights, derivatives, x, options),
        args{.type = element_type(x, "x"),
             .parameter_type = element_type(widths, "widths"),
             .options = options,
             .inverse = o.inverse,
             .samples = num_samples(x),
             .elements_per_sample = elements_per_sample(x),
             .x = x.const_data_ptr(),
             .widths = parameters.widths,
             .heights = parameters.heights,
             .derivatives = parameters.derivatives} {
    STD_TORCH_CHECK(args.type != ElementType::float64, "x: expected up to 32 bits, got float64");
    STD_TORCH_CHECK(args.parameter_type != ElementType::float64,
                    "widths: expected up to 32 bits, got float64");
  }

  int64_t num_blocks() const { return ceil_div(x.numel(), kSplineBlock); }
};

// Runs body(begin, end) over the blocks of a call that fills value and log-derivative; returns
// them, the latter summed over samples unless `elementwise`.
template <class Body>
std::tuple<Tensor, Tensor> fill_outputs(Call& call, bool elementwise, const Body& body) {
  const Tensor& x = call.x;
  Tensor value = new_empty_like(x), logs = new_empty(x, x.sizes(), ScalarType::Float);
  call.args.value = value.mutable_data_ptr();
  call.args.log_derivative = static_cast<float*>(logs.mutable_data_ptr());
  parallel_for(0, call.num_blocks(), kGrain, body);
  if (elementwise) return {value, logs};
  const int64_t samples = call.args.samples;
  Tensor sums = new_empty(x, {samples}, ScalarType::Float);
  float* target = static_cast<float*>(sums.mutable_data_ptr());
  parallel_for(0, samples, ceil_div(kSumGrain * 16, call.args.elements_per_sample + 1),
               [&](int64_t begin, int64_t end) {
                 GENSSL_DISPATCH(sum_log_derivatives)(call.args, target, begin, end);
               });
  return {value, sums};
}

std::tuple<Tensor, Tensor> rational_quadratic_spline(
    Tensor x, Tensor widths, OptionalTensor heights, OptionalTensor derivatives, bool inverse,
    bool elementwise, int64_t tails, bool zuko, double left, double right, double bottom,
    double top, double min_width, double min_height, double min_derivative, double slope) {
  Call call(x, widths, heights, derivatives,
            {inverse, elementwise, tails, zuko, left, right, bottom, top, min_width, min_height,
             min_derivative, slope});
  return fill_outputs(call, elementwise, [&](int64_t begin, int64_t end) {
    GENSSL_DISPATCH(transform_splines)(call.args, begin, end);
  });
}

std::tuple<Tensor, Tensor> rational_quadratic_spline_tangent(
    Tensor dx, Tensor dwidths, OptionalTensor dheights, OptionalTensor dderivatives, Tensor x,
    Tensor widths, OptionalTensor heights, OptionalTensor derivatives, bool inverse,
    bool elementwise, int64_t tails, bool zuko, double left, double right, double bottom,
    double top, double min_width, double min_height, double min_derivative, double slope) {
  Call call(x, widths, heights, derivatives,
            {inverse, elementwise, tails, zuko, left, right, bottom, top, min_width, min_height,
             min_derivative, slope});
  dx = contiguous_like(dx, x, "dx");
  const Parameters moved(dwidths, dheights, dderivatives, call.x, call.options);
  check_type(dwidths, "dwidths", widths.scalar_type());
  const SplineTangents tangents{dx.const_data_ptr(), moved.widths, moved.heights,
                                moved.derivatives};
  return fill_outputs(call, elementwise, [&](int64_t begin, int64_t end) {
    GENSSL_DISPATCH(spline_tangents)(call.args, tangents, begin, end);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> rational_quadratic_spline_backward(
    Tensor grad_value, Tensor grad_log, Tensor x, Tensor widths, OptionalTensor heights,
    OptionalTensor derivatives, bool inverse, bool elementwise, int64_t tails, bool zuko,
    double left, double right, double bottom, double top, double min_width, double min_height,
    double min_derivative, double slope) {
  const Call call(x, widths, heights, derivatives,
                  {inverse, elementwise, tails, zuko, left, right, bottom, top, min_width,
                   min_height, min_derivative, slope});
  grad_value = contiguous_like(grad_value, x, "grad_value");
  check_type(grad_log, "grad_log", ScalarType::Float);
  if (elementwise) {
    check_shape(grad_log, "grad_log", x.sizes());
  } else {
    check_shape(grad_log, "grad_log", {call.args.samples});
  }
  grad_log = as_contiguous(grad_log);
  const auto like = [&](const OptionalTensor& given) {
    return given ? new_empty_like(*given) : new_empty(x, {0}, x.scalar_type());
  };
  Tensor to_x = new_empty_like(x), to_widths = new_empty_like(widths);
  Tensor to_heights = like(heights), to_derivatives = like(derivatives);
  const int64_t bins = call.options.bins, slopes = num_derivatives(call.options);
  const int64_t stride = num_parameters(call.options), bytes = bins * widths.element_size();
  char* packed = static_cast<char*>(to_widths.mutable_data_ptr());
  const bool apart = heights.has_value();
  const SplineGradients gradients{
      .value = grad_value.const_data_ptr(),
      .log_derivative = static_cast<const float*>(grad_log.const_data_ptr()),
      .elementwise = elementwise,
      .x = to_x.mutable_data_ptr(),
      .widths = {packed, apart ? bins : stride},
      .heights = apart ? SplineTarget{to_heights.mutable_data_ptr(), bins}
                       : SplineTarget{packed + bytes, stride},
      .derivatives = apart ? SplineTarget{to_derivatives.mutable_data_ptr(), slopes}
                           : SplineTarget{packed + 2 * bytes, stride},
      .streaming = !apart && call.args.parameter_type == ElementType::float32 &&
                   reinterpret_cast<uintptr_t>(packed) % 64 == 0 &&
                   2 * to_widths.numel() * 4 > kCacheBytes,
  };
  parallel_for(0, call.num_blocks(), kGrain, [&](int64_t begin, int64_t end) {
    GENSSL_DISPATCH(spline_gradients)(call.args, gradients, begin, end);
  });
  return {to_x, to_widths, to_heights, to_derivatives};
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_rational_quadratic_spline", TORCH_BOX(&genssl::rational_quadratic_spline));
  m.impl("_rational_quadratic_spline_backward",
         TORCH_BOX(&genssl::rational_quadratic_spline_backward));
  m.impl("_rational_quadratic_spline_tangent",
         TORCH_BOX(&genssl::rational_quadratic_spline_tangent));
}
