#include "kernels/integrate/langevin_step.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/common.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

// Elements that are worth a thread.
constexpr int64_t kGrain = 32768;

Tensor langevin_step(Tensor x, Tensor score, OptionalTensor noise, double snr, double step_size,
                     double alpha, int64_t seed, OptionalTensor seed_tensor, int64_t step,
                     OptionalTensor step_tensor, int64_t first_sample) {
  STD_TORCH_CHECK(std::isnan(snr) != std::isnan(step_size), "snr, step_size: expected one of them");
  x = as_contiguous(x);
  score = contiguous_like(score, x, "score");
  if (noise) noise = contiguous_like(*noise, x, "noise");
  Tensor next = new_empty_like(x);
  LangevinStepArgs args{
      .type = element_type(x, "x"),
      .elements_per_sample = elements_per_sample(x),
      .segments_per_sample = ceil_div(elements_per_sample(x), kLangevinSegment),
      .x = x.const_data_ptr(),
      .score = score.const_data_ptr(),
      .given_noise = data_of(noise),
      .next = next.mutable_data_ptr(),
      .snr = snr,
      .step_size = step_size,
      .alpha = alpha,
      .seed = static_cast<uint64_t>(value_of(seed, seed_tensor, "seed")),
      .step = static_cast<uint32_t>(value_of(step, step_tensor, "step")),
      .first_sample = static_cast<uint64_t>(first_sample),
  };
  const int64_t segments = num_samples(x) * args.segments_per_sample;
  const int64_t segment = std::clamp<int64_t>(args.elements_per_sample, 1, kLangevinSegment);
  const int64_t grain = ceil_div(kGrain, segment);
  std::vector<double> squares;
  Tensor scratch = next;
  if (!std::isnan(snr)) {
    squares.resize(2 * segments);
    args.squares = squares.data();
    if (!noise) {
      scratch = new_empty(x, x.sizes(), ScalarType::Float);
      args.noise = static_cast<float*>(scratch.mutable_data_ptr());
    }
    parallel_for(0, segments, grain, [&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(langevin_squares)(args, begin, end);
    });
  }
  parallel_for(0, segments, grain, [&](int64_t begin, int64_t end) {
    GENSSL_DISPATCH(langevin_step)(args, begin, end);
  });
  return next;
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_langevin_step", TORCH_BOX(&genssl::langevin_step));
}
