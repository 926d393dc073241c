#include "kernels/integrate/film_mlp_sample_cuda.h"

#include <torch/csrc/stable/library.h>

#include "csrc/cuda/film_mlp_inputs.h"

namespace genssl::cuda {
namespace {

constexpr int64_t kTailColumns = 6;

// The scalars of a call, as the kernel takes them; counters on the device win.
FilmMLPSampleArgs sample_args(const FilmMLPInputs& inputs, bool sin_first, const Tensor& coefficients,
                              int64_t num_states, double clip, int64_t seed, int64_t step,
                              int64_t first_sample) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(coefficients.dim() == 2 && coefficients.scalar_type() == ScalarType::Double,
                  "coefficients: expected a float64 tensor [N, S + M + 6]");
  const int64_t predictions = coefficients.size(1) - num_states - kTailColumns;
  STD_TORCH_CHECK(num_states >= 1 && predictions >= 0, "num_states: expected from 1 to ",
                  coefficients.size(1) - kTailColumns, ", got ", num_states);
  FilmMLPSampleArgs args{};
  args.tensors = inputs.tensors(sin_first);
  args.batch = inputs.x.size(0);
  args.coefficients = static_cast<const double*>(pointer(coefficients));
  args.num_rows = static_cast<int32_t>(coefficients.size(0));
  args.num_states = static_cast<int32_t>(num_states);
  args.num_predictions = static_cast<int32_t>(predictions);
  args.clip = clip;
  args.seed = seed;
  args.step = step;
  args.first_sample = first_sample;
  return args;
}

const int64_t* counter(const std::optional<Tensor>& tensor, const Tensor& x, const char* name) {
  if (!tensor) return nullptr;
  STD_TORCH_CHECK(tensor->numel() == 1 &&
                      tensor->scalar_type() == torch::headeronly::ScalarType::Long,
                  name, ": expected an int64 tensor of one element");
  return static_cast<const int64_t*>(pointer(on_device_of(x, *tensor, name)));
}

Tensor film_mlp_sample(Tensor x, Tensor frequencies, bool sin_first, Tensor w_in, Tensor b_in,
                       Tensor w, Tensor c, Tensor w_film, Tensor w_embed1, Tensor w_embed2,
                       Tensor w_out, Tensor b_out, std::optional<Tensor> class_embedding,
                       std::optional<Tensor> labels, Tensor coefficients, int64_t num_states,
                       double clip, int64_t seed, std::optional<Tensor> seed_tensor, int64_t step,
                       std::optional<Tensor> step_tensor, int64_t first_sample,
                       std::optional<Tensor> noise) {
  FilmMLPInputs inputs{x,      frequencies, w_in,     b_in,  w,     c,
                       w_film, w_embed1,    w_embed2, w_out, b_out, class_embedding,
                       labels};
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  inputs.prepare();
  coefficients = on_device_of(inputs.x, coefficients, "coefficients");
  FilmMLPSampleArgs args = sample_args(inputs, sin_first, coefficients, num_states, clip, seed, step,
                                       first_sample);
  args.seed_tensor = counter(seed_tensor, inputs.x, "seed");
  args.step_tensor = counter(step_tensor, inputs.x, "step");
  if (noise) {
    noise = on_device_of(inputs.x, *noise, "noise");
    STD_TORCH_CHECK(noise->numel() == args.num_rows * inputs.x.numel() &&
                        noise->scalar_type() == inputs.x.scalar_type(),
                    "noise: expected shape [N, B, D] and the dtype of x");
    args.noise = pointer(noise);
  }
  if (inputs.x.numel() == 0 || args.num_rows == 0) return torch::stable::clone(inputs.x);
  Tensor output = torch::stable::new_empty(inputs.x, inputs.x.sizes());
  args.output = output.mutable_data_ptr();
  size_t bytes = 0;
  check_launch(film_mlp_sample_workspace(args, &bytes), "film_mlp_sample");
  const Tensor workspace = scratch(inputs.x, bytes);
  void* stream = current_stream(x.get_device_index());
  check_launch(launch_film_mlp_sample(args, workspace.mutable_data_ptr(), stream),
               "film_mlp_sample");
  return output;
}

}  // namespace
}  // namespace genssl::cuda

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CUDA, library) {
  library.impl("_film_mlp_sample", TORCH_BOX(&genssl::cuda::film_mlp_sample));
}
