#include "csrc/common.h"
#include "csrc/film_mlp_inputs.h"
#include "csrc/film_mlp_runner.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

// What the scalar arguments of the operation describe.
struct Sampler {
  Tensor coefficients;
  int64_t num_states;
  double clip;
  uint64_t seed, first_sample;
  uint32_t step;
  OptionalTensor noise;
};

template <class T>
void run(const FilmMLPInputs& inputs, const Sampler& sampler, Tensor& y) {
  FilmMLPSampleArgs<T> args{};
  args.num_states = sampler.num_states;
  args.num_predictions = sampler.coefficients.size(1) - sampler.num_states - 6;
  args.clip = static_cast<T>(sampler.clip);
  args.noise = static_cast<const T*>(data_of(sampler.noise));
  args.seed = sampler.seed;
  args.first_sample = sampler.first_sample;
  args.step = sampler.step;
  args.batch = inputs.x.size(0);
  args.x = static_cast<const T*>(inputs.x.const_data_ptr());
  args.y = static_cast<T*>(y.mutable_data_ptr());
  FilmMLPRunner<T>(inputs.network<T>(), inputs.classes(), thread_memory<T>())
      .sample(args, static_cast<const double*>(sampler.coefficients.const_data_ptr()),
              sampler.coefficients.size(0), inputs.label_data());
}

Tensor film_mlp_sample(Tensor x, Tensor frequencies, bool sin_first, Tensor w_in, Tensor b_in,
                       Tensor w, Tensor c, Tensor w_film, Tensor w_embed1, Tensor w_embed2,
                       Tensor w_out, Tensor b_out, OptionalTensor class_embedding,
                       OptionalTensor labels, Tensor coefficients, int64_t num_states, double clip,
                       int64_t seed, OptionalTensor seed_tensor, int64_t step,
                       OptionalTensor step_tensor, int64_t first_sample, OptionalTensor noise) {
  FilmMLPInputs inputs{x,     frequencies, sin_first,       w_in,     b_in,
                       w,     c,           w_film,          w_embed1, w_embed2,
                       w_out, b_out,       class_embedding, labels};
  inputs.prepare(compute_type(inputs.x));
  check_type(coefficients, "coefficients", ScalarType::Double);
  STD_TORCH_CHECK(
      coefficients.dim() == 2 && num_states >= 1 && num_states + 6 <= coefficients.size(1),
      "coefficients: expected [N, S + M + 6] with S = ", num_states, ", got ",
      shape_of(coefficients));
  if (noise) {
    STD_TORCH_CHECK(noise->dim() == 3 && noise->size(0) == coefficients.size(0) &&
                        noise->size(1) == x.size(0) && noise->size(2) == x.size(1),
                    "noise: expected the shape [", coefficients.size(0), ", ", x.size(0), ", ",
                    x.size(1), "], got ", shape_of(*noise));
    noise = contiguous_to(*noise, compute_type(inputs.x));
  }
  const Sampler sampler{
      as_contiguous(coefficients),
      num_states,
      clip,
      static_cast<uint64_t>(value_of(seed, seed_tensor, "seed")),
      static_cast<uint64_t>(first_sample),
      static_cast<uint32_t>(value_of(step, step_tensor, "step")),
      noise,
  };
  Tensor y = new_empty_like(inputs.x);
  if (compute_type(inputs.x) == ScalarType::Double) {
    run<double>(inputs, sampler, y);
  } else {
    run<float>(inputs, sampler, y);
  }
  return contiguous_to(y, x.scalar_type());
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_film_mlp_sample", TORCH_BOX(&genssl::film_mlp_sample));
}
