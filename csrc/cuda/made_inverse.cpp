#include <limits>
#include <tuple>

#include "csrc/cuda/device.h"
#include "csrc/made_inputs.h"
#include "kernels/causal/made_inverse_cuda.h"

namespace genssl::cuda {
namespace {

template <class T>
std::vector<const T*> data_of(const Tensor& y, const Tensors& tensors, const char* name) {
  std::vector<const T*> data;
  for (const Tensor& tensor : tensors) {
    data.push_back(static_cast<const T*>(on_device_of(y, tensor, name).const_data_ptr()));
  }
  return data;
}

// The kernel's arrays; whether degrees allow the skips is not read back from the device.
void check_sizes(const MADEInputs& inputs) {
  const size_t count = inputs.weights.size();
  STD_TORCH_CHECK(count <= kMaxMADELayers, "weights: expected at most ", kMaxMADELayers,
                  " layers, got ", count);
  int64_t units = 0;
  for (size_t i = 0; i < count; ++i) {
    units += inputs.width[i];
    const bool fits = i > 0 && i + 1 < count && inputs.width[i + 1] == inputs.width[i - 1];
    STD_TORCH_CHECK(fits || !(inputs.skips >> i & 1), "skips: expected layer ", i,
                    " to have the units of what it adds");
  }
  constexpr int64_t kMaxUnits = std::numeric_limits<int32_t>::max() / 64;
  STD_TORCH_CHECK(units + inputs.width[count] <= kMaxUnits, "weights: expected at most ", kMaxUnits,
                  " units");
}

template <class T>
void run(const MADEInputs& inputs, const Tensor& y, Tensor& x, Tensor& log_abs_det) {
  const auto weights = data_of<T>(y, inputs.weights, "weights");
  const auto biases = data_of<T>(y, inputs.biases, "biases");
  const auto degrees = data_of<int64_t>(y, inputs.degrees, "degrees");
  int64_t per_sample = 0;
  for (size_t i = 0; i < biases.size(); ++i) {
    if (inputs.biases[i].dim() == 2) per_sample |= int64_t{1} << i;
  }
  const MADEInverseArgs<T> args{.device = y.get_device_index(),
                                .dim = static_cast<int32_t>(inputs.width[0]),
                                .parameters = static_cast<int32_t>(inputs.transform.parameters()),
                                .matrices = static_cast<int32_t>(weights.size()),
                                .batch = y.size(0),
                                .width = inputs.width.data(),
                                .weights = weights.data(),
                                .biases = biases.data(),
                                .degrees = degrees.data(),
                                .activated = inputs.activated,
                                .skips = inputs.skips,
                                .per_sample_biases = per_sample,
                                .activation = inputs.activation,
                                .transform = inputs.transform.options<T>(),
                                .y = static_cast<const T*>(y.const_data_ptr()),
                                .x = static_cast<T*>(x.mutable_data_ptr()),
                                .log_abs_det = static_cast<T*>(log_abs_det.mutable_data_ptr())};
  size_t bytes = 0;
  check_launch(made_inverse_workspace(args, &bytes), "made_inverse");
  const Tensor workspace = scratch(y, bytes);
  void* stream = current_stream(args.device);
  check_launch(launch_made_inverse(args, workspace.mutable_data_ptr(), stream), "made_inverse");
}

std::tuple<Tensor, Tensor> made_inverse(Tensor y, Tensors weights, Tensors biases, Tensors degrees,
                                        int64_t activated, int64_t skips, int64_t activation,
                                        int64_t layout, int64_t clamp, bool shift_first,
                                        double limit, double offset, double min_scale, int64_t bins,
                                        int64_t tails, bool zuko, double left, double right,
                                        double bottom, double top, double min_width,
                                        double min_height, double min_derivative, double slope) {
  const torch::stable::accelerator::DeviceGuard guard(y.get_device_index());
  const MADETransform transform{
      static_cast<MADELayout>(layout),
      {static_cast<Clamp>(clamp), limit, offset, min_scale, shift_first},
      {static_cast<int>(bins), static_cast<Tails>(tails), static_cast<SplineParameterization>(zuko),
       left, right, bottom, top, min_width, min_height, min_derivative, slope}};
  const MADEInputs inputs(y, weights, biases, degrees, activated, skips, activation, transform);
  check_sizes(inputs);
  const Tensor contiguous = as_contiguous(y);
  Tensor x = new_empty_like(contiguous);
  Tensor log_abs_det = new_empty(y, y.sizes().slice(0, 1), y.scalar_type());
  if (y.numel() == 0) return {x, log_abs_det};
  if (y.scalar_type() == ScalarType::Double) {
    run<double>(inputs, contiguous, x, log_abs_det);
  } else {
    run<float>(inputs, contiguous, x, log_abs_det);
  }
  return {x, log_abs_det};
}

}  // namespace
}  // namespace genssl::cuda

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CUDA, m) {
  m.impl("_made_inverse", TORCH_BOX(&genssl::cuda::made_inverse));
}
