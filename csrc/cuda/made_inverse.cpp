#include <limits>

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
template <class T>
std::vector<const T*> data_of(const Tensor& y, const std::vector<std::optional<Tensor>>& tensors,
                              const char* name) {
  std::vector<const T*> data;
  for (const auto& tensor : tensors) {
    if (tensor) on_device_of(y, *tensor, name);
    data.push_back(data_or_null<T>(tensor));
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

struct CUDA {
  struct Guard : torch::stable::accelerator::DeviceGuard {
    explicit Guard(const Tensor& y) : DeviceGuard(y.get_device_index()) {}
  };

  template <class T>
  static void run(const MADEInputs& inputs, const Tensor& y, Tensor& x, Tensor& log_abs_det) {
    check_sizes(inputs);
    const auto weights = data_of<T>(y, inputs.weights, "weights");
    const auto biases = data_of<T>(y, inputs.biases, "biases");
    const auto degrees = data_of<int64_t>(y, inputs.degrees, "degrees");
    const auto input_gates = data_of<T>(y, inputs.input_gates, "input_gates");
    const auto output_gates = data_of<T>(y, inputs.output_gates, "output_gates");
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
                                  .input_gates = input_gates.data(),
                                  .output_gates = output_gates.data(),
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
};

}  // namespace
}  // namespace genssl::cuda

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CUDA, m) {
  m.impl("_made_inverse", TORCH_BOX(&genssl::made_inverse<genssl::cuda::CUDA>));
}
