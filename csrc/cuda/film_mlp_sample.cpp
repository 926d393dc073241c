#include "csrc/cuda/film_mlp_tensors.h"
#include "kernels/integrate/film_mlp_sample_cuda.h"

namespace genssl::cuda {
namespace {

constexpr int64_t kTailColumns = 6;

// Checks the table, and describes it.
void set_coefficients(const Tensor& coefficients, int64_t num_states, FilmMLPSampleArgs* args) {
  check_type(coefficients, "coefficients", ScalarType::Double);
  STD_TORCH_CHECK(coefficients.dim() == 2 && num_states >= 1 &&
                      num_states + kTailColumns <= coefficients.size(1) &&
                      coefficients.size(1) <= kMaxCoefficients,
                  "coefficients: expected [N, S + M + 6] with S = ", num_states, " and at most ",
                  kMaxCoefficients, " columns, got ", shape_of(coefficients));
  args->coefficients = static_cast<const double*>(coefficients.const_data_ptr());
  args->num_rows = static_cast<int32_t>(coefficients.size(0));
  args->num_states = static_cast<int32_t>(num_states);
  args->num_predictions = static_cast<int32_t>(coefficients.size(1) - num_states - kTailColumns);
}

void check_noise(const Tensor& noise, const Tensor& x, int64_t num_rows) {
  check_type(noise, "noise", x.scalar_type());
  STD_TORCH_CHECK(noise.dim() == 3 && noise.size(0) == num_rows && noise.size(1) == x.size(0) &&
                      noise.size(2) == x.size(1),
                  "noise: expected the shape [", num_rows, ", ", x.size(0), ", ", x.size(1),
                  "], got ", shape_of(noise));
}

// A seed or a step on the device, where the kernel reads it; null where there is none.
const int64_t* counter_data(const OptionalTensor& tensor, const Tensor& x, const char* name) {
  if (!tensor) return nullptr;
  check_type(*tensor, name, ScalarType::Long);
  STD_TORCH_CHECK(tensor->numel() == 1, name, ": expected one element, got the shape ",
                  shape_of(*tensor));
  return static_cast<const int64_t*>(on_device_of(x, *tensor, name).const_data_ptr());
}

Tensor film_mlp_sample(Tensor x, Tensor frequencies, bool sin_first, Tensor w_in, Tensor b_in,
                       Tensor w, Tensor c, Tensor w_film, Tensor w_embed1, Tensor w_embed2,
                       Tensor w_out, Tensor b_out, OptionalTensor class_embedding,
                       OptionalTensor labels, Tensor coefficients, int64_t num_states, double clip,
                       int64_t seed, OptionalTensor seed_tensor, int64_t step,
                       OptionalTensor step_tensor, int64_t first_sample, OptionalTensor noise) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  FilmMLPInputs inputs{x,     frequencies, sin_first,       w_in,     b_in,
                       w,     c,           w_film,          w_embed1, w_embed2,
                       w_out, b_out,       class_embedding, labels};
  inputs.prepare(x.scalar_type());
  coefficients = on_device_of(x, coefficients, "coefficients");
  FilmMLPSampleArgs args{};
  set_coefficients(coefficients, num_states, &args);
  if (noise) {
    check_noise(*noise, x, args.num_rows);
    noise = on_device_of(x, *noise, "noise");
  }
  if (x.numel() == 0 || args.num_rows == 0) return torch::stable::clone(inputs.x);
  Tensor y = new_empty_like(inputs.x);
  args.tensors = film_mlp_tensors(inputs);
  args.batch = x.size(0);
  args.clip = clip;
  args.seed = seed;
  args.step = step;
  args.first_sample = first_sample;
  args.seed_tensor = counter_data(seed_tensor, x, "seed");
  args.step_tensor = counter_data(step_tensor, x, "step");
  args.noise = data_of(noise);
  args.output = y.mutable_data_ptr();
  size_t bytes = 0;
  check_launch(film_mlp_sample_workspace(args, &bytes), "film_mlp_sample");
  const Tensor workspace = scratch(x, bytes);
  void* stream = current_stream(x.get_device_index());
  check_launch(launch_film_mlp_sample(args, workspace.mutable_data_ptr(), stream),
               "film_mlp_sample");
  return y;
}

}  // namespace
}  // namespace genssl::cuda

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CUDA, m) {
  m.impl("_film_mlp_sample", TORCH_BOX(&genssl::cuda::film_mlp_sample));
}
