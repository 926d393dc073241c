#include "kernels/random/random.h"

#include <algorithm>

#include "csrc/common.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

// A multiple of a batch of counters; one thread fills eight of them before a second one pays.
constexpr int64_t kBlock = 4096;

void random(Tensor out, int64_t distribution, int64_t seed, OptionalTensor seed_tensor,
            int64_t step, OptionalTensor step_tensor, int64_t first_sample) {
  STD_TORCH_CHECK(out.is_contiguous(), "out: expected a contiguous tensor");
  STD_TORCH_CHECK(distribution >= 0 && distribution <= 2, "distribution: expected 0, 1 or 2, got ",
                  distribution);
  const RandomArgs args{
      .target = out.mutable_data_ptr(),
      .type = element_type(out, "out"),
      .distribution = static_cast<Distribution>(distribution),
      .elements_per_sample = elements_per_sample(out),
      .seed = static_cast<uint64_t>(value_of(seed, seed_tensor, "seed")),
      .step = static_cast<uint32_t>(value_of(step, step_tensor, "step")),
      .first_sample = static_cast<uint64_t>(first_sample),
  };
  const int64_t total = out.numel();
  parallel_for(0, ceil_div(total, kBlock), 8, [&](int64_t begin, int64_t end) {
    GENSSL_DISPATCH(random)(args, begin * kBlock, std::min(end * kBlock, total));
  });
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) { m.impl("_random", TORCH_BOX(&genssl::random)); }
